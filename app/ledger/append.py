"""One transaction of the ledger: lock, look, fold, number, insert, wake the readers.

Every event in the feed enters here, whether it came by callback, by reprocessing or by reconciliation. The lock is held
until the commit has become visible, so the numbers become visible in their order: a reader that was given position N never
finds a new event at or below it afterwards (`docs/decisions/0003-group-commit-under-a-lock.md`). Times grow with the
numbers: an event was received when its callback came, but not before the event in front of it, nor after the present time
of Postgres, so that one replica whose clock is wrong does not shift all that follows.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct

from app.db.locks import Lock
from app.db.wakeup import FEED_CHANNEL
from app.domain.duplicates import idempotency_keys
from app.domain.fold import fold
from app.domain.values import (
    Delivery,
    DeliveryStatus,
    Entity,
    EntityType,
    Entry,
    Event,
    JsonText,
    Reading,
    Receipt,
    Unreadable,
)
from app.ids import new_id

_DELIVERY_COLUMNS = (
    *("id", "entity_type", "status", "received_at", "client", "proof", "headers", "body", "data_offset", "size"),
    *("reading", "reason", "event_sequence", "duplicate_of", "traceparent"),
)
_EVENT_COLUMNS = (
    *("sequence", "id", "entity_type", "entity_id", "action", "action_inferred", "stale", "source", "occurred_at"),
    *("received_at", "delivery_id", "changed", "changes", "data"),
    *("entity_version", "entity_sequence", "entity_data_sequence", "entity_source_updated_at"),
)

# The numbers are drawn where the lock is held: a subquery that calls a volatile function is computed first, as it stands.
_LOCK_AND_DRAW = """
    SELECT setval('event_sequence', nextval('event_sequence') + $2::int - 1) AS last, clock_timestamp() AS now
    FROM (SELECT pg_advisory_xact_lock($1)) AS held
"""
_FIND_LATEST = "SELECT max(received_at) FROM events"
_FIND_ORIGINALS = """
    SELECT k.key, k.sequence, e.id AS event_id, e.delivery_id
    FROM idempotency_keys k LEFT JOIN events e ON e.sequence = k.sequence
    WHERE k.key = ANY($1::bytea[])
"""
_FIND_ENTITIES = """
    SELECT n.*, d.data, d.occurred_at AS data_at, e.id AS event_id, e.delivery_id
    FROM unnest($1::text[], $2::text[]) AS wanted(entity_type, entity_id)
    JOIN entities n ON n.entity_type = wanted.entity_type AND n.entity_id = wanted.entity_id
    LEFT JOIN events e ON e.sequence = n.sequence
    LEFT JOIN events d ON d.sequence = n.data_sequence
"""
_FIND_KEPT = """
    SELECT d.id, d.status, d.event_sequence, e.id AS event_id, e.entity_type, e.entity_id, e.action, e.action_inferred,
           e.occurred_at, e.data
    FROM deliveries d LEFT JOIN events e ON e.sequence = d.event_sequence
    WHERE d.id = ANY($1::uuid[])
"""
# All that is small in one statement, as each costs a round trip: keys, proofs, entities, and the word for the readers.
_STORE_STATE = """
    WITH kept AS (
        INSERT INTO idempotency_keys (key, sequence) SELECT * FROM unnest($1::bytea[], $2::bigint[])
    ), noted AS (
        UPDATE registrations r SET proof = seen.proof, last_callback_at = seen.received_at
        FROM unnest($3::text[], $4::text[], $5::timestamptz[]) AS seen(entity_type, proof, received_at)
        WHERE r.entity_type = seen.entity_type
            -- What was told long ago and is read now says nothing of where the proof is today.
            AND (r.last_callback_at IS NULL OR r.last_callback_at <= seen.received_at)
            -- Under load the row is written once a second, not with every batch.
            AND (r.proof IS DISTINCT FROM seen.proof OR r.last_callback_at < seen.received_at - interval '1 second')
    ), moved AS (
        INSERT INTO entities (entity_type, entity_id, version, sequence, data_sequence, created_at, updated_at, heard_at,
                              source_updated_at, newest_at, deleted_at)
        SELECT * FROM unnest(
            $6::text[], $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::timestamptz[], $12::timestamptz[],
            $13::timestamptz[], $14::timestamptz[], $15::timestamptz[], $16::timestamptz[]
        )
        ON CONFLICT (entity_type, entity_id) DO UPDATE SET
            version = excluded.version, sequence = excluded.sequence, data_sequence = excluded.data_sequence,
            updated_at = excluded.updated_at, heard_at = excluded.heard_at,
            source_updated_at = excluded.source_updated_at, newest_at = excluded.newest_at,
            deleted_at = excluded.deleted_at
    )
    SELECT pg_notify($17, $18) WHERE $18 IS NOT NULL
"""
_STORE_REREAD = """
    UPDATE deliveries d SET
        status = reread.status, body = reread.body, data_offset = reread.data_offset, reading = reread.reading,
        reason = reread.reason, event_sequence = reread.event_sequence, duplicate_of = reread.duplicate_of
    FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::int[], $5::text[], $6::text[], $7::bigint[], $8::uuid[])
        AS reread(id, status, body, data_offset, reading, reason, event_sequence, duplicate_of)
    WHERE d.id = reread.id
"""
_reread_columns = itemgetter(
    *map(
        _DELIVERY_COLUMNS.index,
        ("id", "status", "body", "data_offset", "reading", "reason", "event_sequence", "duplicate_of"),
    )
)

_EARLIEST = datetime.min.replace(tzinfo=UTC)

_Identity = tuple[EntityType, str]


class _Original(Struct, frozen=True, gc=False):
    """What a duplicate repeats."""

    sequence: int
    event_id: UUID | None
    delivery_id: UUID | None


class _Kept(Struct, frozen=True, gc=False):
    """What came before of a delivery that is read again now; `says` is what its event says, None where that is gone."""

    status: DeliveryStatus
    event_id: UUID | None
    says: tuple[object, ...] | None

    def stands(self, entry: Entry) -> bool:
        """Whether reading it again changes nothing: what was read once is never taken back, nor written twice."""
        if isinstance(entry.reading, Unreadable):
            return self.status is not DeliveryStatus.QUARANTINED
        return self.status is DeliveryStatus.ACCEPTED and self.says in {None, _said(entry.entity_type, entry.reading)}


def _said(entity_type: EntityType, reading: Reading) -> tuple[object, ...]:
    """What makes two readings of one delivery the same."""
    return (entity_type, reading.entity_id, reading.action, reading.occurred_at, reading.data)


@dataclass(slots=True)
class _Batch:
    """What is known and what is to be written.

    `numbers` are for its events, `now` is the time of Postgres, `latest` that of the newest event. `changed` are the
    entities whose state moved.
    """

    originals: dict[bytes, _Original]
    entities: dict[_Identity, Entity]
    newest: dict[_Identity, _Original]
    kept: dict[UUID, _Kept]
    numbers: Iterator[int]
    now: datetime
    latest: datetime
    changed: set[_Identity] = field(default_factory=set)
    deliveries: list[tuple[object, ...]] = field(default_factory=list)
    reread: dict[UUID, tuple[object, ...]] = field(default_factory=dict)
    events: list[tuple[object, ...]] = field(default_factory=list)
    new_keys: dict[bytes, int] = field(default_factory=dict)
    last_sequence: int | None = None


async def append(connection: asyncpg.Connection, entries: Sequence[Entry]) -> list[Receipt]:
    """Write a batch within the caller's open transaction; one receipt for each entry, true once that has committed.

    Raises asyncpg's errors as they are; then nothing of the batch may be committed.
    """
    keys = [_keys(entry) for entry in entries]
    [drawn] = await connection.fetch(_LOCK_AND_DRAW, Lock.FEED.key, len(entries))
    batch = await _look(connection, entries, keys, drawn)
    receipts = [_enter(batch, entry, own) for entry, own in zip(entries, keys, strict=True)]
    await _store(connection, batch, entries)
    return receipts


def _keys(entry: Entry) -> tuple[bytes, ...]:
    if isinstance(entry.reading, Unreadable):
        return ()
    return idempotency_keys(entry.entity_type, entry.reading, entry.delivery.body if entry.delivery else None)


async def _look(
    connection: asyncpg.Connection, entries: Sequence[Entry], keys: Sequence[tuple[bytes, ...]], drawn: asyncpg.Record
) -> _Batch:
    """Everything the batch has to know, in one query a table however large the batch is."""
    readable = [(entry.entity_type, entry.reading.entity_id) for entry in entries if isinstance(entry.reading, Reading)]
    wanted = list(dict.fromkeys(readable))
    originals = await connection.fetch(_FIND_ORIGINALS, [key for own in keys for key in own]) if any(keys) else []
    known = await connection.fetch(_FIND_ENTITIES, *_columns(wanted, 2)) if wanted else []
    ids = [entry.delivery_id for entry in entries if entry.delivery_id is not None]
    kept = await connection.fetch(_FIND_KEPT, ids) if ids else []
    identities = [(EntityType(row["entity_type"]), row["entity_id"]) for row in known]
    return _Batch(
        originals={row["key"]: _Original(row["sequence"], row["event_id"], row["delivery_id"]) for row in originals},
        entities={identity: _entity(row) for identity, row in zip(identities, known, strict=True)},
        newest={
            identity: _Original(row["sequence"], row["event_id"], row["delivery_id"])
            for identity, row in zip(identities, known, strict=True)
        },
        kept={row["id"]: _kept(row) for row in kept},
        numbers=iter(range(drawn["last"] - len(entries) + 1, drawn["last"] + 1)),
        now=drawn["now"],
        latest=await connection.fetchval(_FIND_LATEST) or _EARLIEST,
    )


def _entity(row: asyncpg.Record) -> Entity:
    return Entity(
        version=row["version"],
        sequence=row["sequence"],
        data=None if row["data"] is None else JsonText(row["data"].encode()),
        data_sequence=row["data_sequence"],
        data_at=row["data_at"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        heard_at=row["heard_at"],
        source_updated_at=row["source_updated_at"],
        newest_at=row["newest_at"],
        deleted_at=row["deleted_at"],
    )


def _kept(row: asyncpg.Record) -> _Kept:
    says = None
    if row["event_id"] is not None:
        action = None if row["action_inferred"] else row["action"]
        data = None if row["data"] is None else row["data"].encode()
        says = (row["entity_type"], row["entity_id"], action, row["occurred_at"], data)
    return _Kept(DeliveryStatus(row["status"]), row["event_id"], says)


def _enter(batch: _Batch, entry: Entry, keys: tuple[bytes, ...]) -> Receipt:
    """Decide what becomes of one entry, in the light of all before it in the batch."""
    delivery_id = entry.delivery_id or new_id()
    kept = batch.kept.get(delivery_id)
    if kept is not None and kept.stands(entry):
        return Receipt(kept.status, delivery_id, kept.event_id)
    if isinstance(entry.reading, Unreadable):
        _keep(batch, entry, delivery_id, DeliveryStatus.QUARANTINED, reason=entry.reading.reason)
        return Receipt(DeliveryStatus.QUARANTINED, delivery_id, None)

    original = next((batch.originals[key] for key in keys if key in batch.originals), None)
    if original is not None:
        return _repeat(batch, entry, delivery_id, original, "the same delivery was committed before")

    identity = (entry.entity_type, entry.reading.entity_id)
    before = batch.entities.get(identity)
    folded = fold(
        before,
        entry.reading,
        entity_type=entry.entity_type,
        sequence=next(batch.numbers),
        received_at=max(batch.latest, min(entry.received_at, batch.now)),
        heard_at=None if entry.delivery_id is None else entry.heard_at,
        source=entry.source,
    )
    if folded.entity != before:
        batch.entities[identity] = folded.entity
        batch.changed.add(identity)
    if folded.event is None:
        # Its own retry may come after the entity has been brought back, and must not delete it then.
        _remember(batch, keys, batch.newest[identity])
        return _repeat(batch, entry, delivery_id, batch.newest[identity], "the entity is deleted already")

    event_id = new_id()
    created = _Original(folded.event.sequence, event_id, delivery_id if entry.delivery else None)
    if not folded.event.stale:
        batch.newest[identity] = created
    _remember(batch, keys, created)
    batch.last_sequence, batch.latest = created.sequence, folded.event.received_at
    batch.events.append(_event_row(folded.event, folded.entity, event_id, created.delivery_id))
    _keep(batch, entry, delivery_id, DeliveryStatus.ACCEPTED, original=created)
    return Receipt(DeliveryStatus.ACCEPTED, delivery_id, event_id)


def _remember(batch: _Batch, keys: tuple[bytes, ...], original: _Original) -> None:
    """From now on whatever shares one of the keys repeats `original`."""
    for key in keys:
        batch.originals[key] = original
        batch.new_keys[key] = original.sequence


def _repeat(batch: _Batch, entry: Entry, delivery_id: UUID, original: _Original, reason: str) -> Receipt:
    kept = batch.kept.get(delivery_id)
    if kept is not None and kept.status is DeliveryStatus.ACCEPTED:  # it has an event, its own or another's twin
        return Receipt(kept.status, delivery_id, kept.event_id)
    _keep(batch, entry, delivery_id, DeliveryStatus.DUPLICATE, original=original, reason=reason)
    return Receipt(DeliveryStatus.DUPLICATE, delivery_id, original.event_id)


def _keep(
    batch: _Batch,
    entry: Entry,
    delivery_id: UUID,
    status: DeliveryStatus,
    *,
    original: _Original | None = None,
    reason: str | None = None,
) -> None:
    """Note the delivery, if the entry came by one."""
    delivery = entry.delivery
    if delivery is None:
        return
    body, offset = _without_data(delivery, entry.reading, status)
    row = (  # in the order of _DELIVERY_COLUMNS
        delivery_id,
        delivery.entity_type,
        status,
        delivery.received_at,
        delivery.client,
        delivery.proof,
        msgspec.json.encode(delivery.headers).decode(),
        body,
        offset,
        len(delivery.body),
        _as_json((("proof", delivery.proof), *entry.reading.places.items())),
        reason,
        original.sequence if original else None,
        original.delivery_id if original and status is DeliveryStatus.DUPLICATE else None,
        delivery.traceparent,
    )
    if delivery_id in batch.kept:
        batch.reread[delivery_id] = _reread_columns(row)
    else:
        batch.deliveries.append(row)
    if entry.delivery_id is not None:
        says = _said(entry.entity_type, entry.reading) if isinstance(entry.reading, Reading) else None
        batch.kept[delivery_id] = _Kept(status, original.event_id if original else None, says)


@lru_cache  # callbacks of one sender are all read in the same way
def _as_json(places: tuple[tuple[str, str], ...]) -> str:
    return json.dumps(dict(places))


def _without_data(
    delivery: Delivery, reading: Reading | Unreadable, status: DeliveryStatus
) -> tuple[bytes, int | None]:
    """The body without the entity's text, which its event keeps, and where that text belongs; else the whole body."""
    if status is not DeliveryStatus.ACCEPTED or not isinstance(reading, Reading) or reading.data is None:
        return delivery.body, None
    body, data = delivery.body, reading.data
    offset = body.find(data[:_BEGINNING])  # to look for a long text at once takes ten times as long
    if not body.startswith(data, offset):
        offset = body.find(data)
    if offset < 0:
        return body, None
    return body[:offset] + body[offset + len(data) :], offset


_BEGINNING = 64


def _event_row(event: Event, after: Entity, event_id: UUID, delivery_id: UUID | None) -> tuple[object, ...]:
    return (
        event.sequence,
        event_id,
        event.entity_type,
        event.entity_id,
        event.action,
        event.action_inferred,
        event.stale,
        event.source,
        event.occurred_at,
        event.received_at,
        delivery_id,
        list(event.changed),
        event.changes.decode(),
        None if event.data is None else event.data.decode(),
        after.version,
        after.sequence,
        after.data_sequence,
        after.source_updated_at,
    )


async def _store(connection: asyncpg.Connection, batch: _Batch, entries: Sequence[Entry]) -> None:
    """Write the batch, one statement a table."""
    if batch.deliveries:
        await connection.copy_records_to_table("deliveries", records=batch.deliveries, columns=_DELIVERY_COLUMNS)
    if batch.reread:
        await connection.execute(_STORE_REREAD, *_columns(list(batch.reread.values()), 8))
    if batch.events:
        await connection.copy_records_to_table("events", records=batch.events, columns=_EVENT_COLUMNS)
    # In one order for all writers, so that rows are found near each other.
    changed = [(*identity, *_entity_row(batch.entities[identity])) for identity in sorted(batch.changed)]
    seen: dict[EntityType, Delivery] = {}
    for delivery in filter(None, (entry.delivery for entry in entries)):
        if delivery.entity_type not in seen or seen[delivery.entity_type].received_at <= delivery.received_at:
            seen[delivery.entity_type] = delivery
    proofs = [(delivery.entity_type, delivery.proof, delivery.received_at) for delivery in seen.values()]
    await connection.execute(
        _STORE_STATE,
        *(list(batch.new_keys), list(batch.new_keys.values())),
        *_columns(proofs, 3),
        *_columns(changed, 11),
        *(FEED_CHANNEL, None if batch.last_sequence is None else str(batch.last_sequence)),
    )


def _entity_row(entity: Entity) -> tuple[object, ...]:
    return (
        entity.version,
        entity.sequence,
        entity.data_sequence,
        entity.created_at,
        entity.updated_at,
        entity.heard_at,
        entity.source_updated_at,
        entity.newest_at,
        entity.deleted_at,
    )


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    """Rows turned into columns, as `unnest` takes them."""
    return [[row[number] for row in rows] for number in range(width)]
