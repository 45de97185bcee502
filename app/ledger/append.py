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
from typing import get_args
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct
from msgspec.structs import fields, replace

from app.db.locks import Lock
from app.db.wakeup import FEED_CHANNEL
from app.domain.duplicates import idempotency_keys
from app.domain.fold import fold
from app.domain.values import (
    Action,
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

LOCK = f"SELECT pg_advisory_xact_lock({Lock.FEED.key})"
"""Has the feed's lock until the transaction ends. A statement of its own: what is looked at later sees all that was committed
before the lock was had."""


class _DeliveryRow(Struct, frozen=True, gc=False):
    """A row of `deliveries`, but for its body."""

    id: UUID
    entity_type: str
    status: str
    received_at: datetime
    client: str
    proof: str
    headers: str
    data_offset: int | None
    size: int
    reading: str
    reason: str | None
    event_sequence: int | None
    duplicate_of: UUID | None
    traceparent: str | None


class _EventRow(Struct, frozen=True, gc=False):
    """A row of `events`, but for its changes and its data."""

    sequence: int
    id: UUID
    entity_type: str
    entity_id: str
    action: str
    action_inferred: bool
    stale: bool
    source: str
    occurred_at: datetime | None
    received_at: datetime
    delivery_id: UUID | None
    changed: tuple[str, ...]
    entity_version: int
    entity_sequence: int
    entity_data_sequence: int | None
    entity_source_updated_at: datetime | None


class _EntityRow(Struct, frozen=True, gc=False):
    """A row of `entities`."""

    entity_type: str
    entity_id: str
    version: int
    sequence: int
    data_sequence: int | None
    created_at: datetime
    updated_at: datetime
    heard_at: datetime
    source_updated_at: datetime | None
    newest_at: datetime | None
    deleted_at: datetime | None


class _Proof(Struct, frozen=True, gc=False):
    """Where the newest callback of an entity type was proven."""

    entity_type: str
    proof: str
    received_at: datetime


_KINDS = {
    tuple[str, ...]: "text[]",  # before the kind of what is in it
    UUID: "uuid",
    str: "text",
    int: "bigint",
    bool: "boolean",
    datetime: "timestamptz",
}


def _given(row: type[Struct], parameter: int, **arrays: tuple[int, str]) -> tuple[str, str]:
    """The names of columns, and SQL for their rows: those of `row` come as JSON in one parameter, as the driver takes ten
    times as long for an array each; what is wide, or may hold what JSON in Postgres cannot, in an array of its own.
    """  # noqa: D205 - one sentence
    described = ", ".join(
        f"{column.name} {next(kind for given, kind in _KINDS.items() if given in (column.type, *get_args(column.type)))}"
        for column in fields(row)
    )
    beside = "".join(f", unnest(${number}::{kind}[])" for number, kind in arrays.values())
    names = ", ".join((*row.__struct_fields__, *arrays))
    return names, f"ROWS FROM (json_to_recordset(${parameter}::json) AS ({described}){beside}) AS given({names})"


def _insertion(table: str, row: type[Struct], parameter: int, **arrays: tuple[int, str]) -> str:
    names, rows = _given(row, parameter, **arrays)
    return f"INSERT INTO {table} ({names}) SELECT {names} FROM {rows}"  # noqa: S608 - made of constants


# All that a batch has to know in one statement, and all that it writes in another, as each costs a round trip, which a lone
# callback waits for. LATERAL with a LIMIT has each row found by its key, whatever Postgres takes for cheap: see
# `app.db.engine.PLANNED_ONCE`. The numbers are drawn while the lock is held, and behind the newest event wherever the sequence
# stands, as after a replication that leaves sequences out: a number below one that a reader has passed would never be seen.
_LOOK = """
    SELECT 'drawn' AS what,
           setval(
               'event_sequence',
               greatest(
                   nextval('event_sequence'), coalesce((SELECT sequence FROM events ORDER BY sequence DESC LIMIT 1), 0) + 1
               ) + $1::int - 1
           ) AS sequence,
           NULL::uuid AS event_id, NULL::uuid AS delivery_id, NULL::bytea AS key, NULL AS entity_type, NULL AS entity_id,
           NULL::bigint AS version, NULL::bigint AS data_sequence, NULL::int AS data_size, NULL AS data,
           NULL::timestamptz AS data_at,
           clock_timestamp() AS created_at,
           (SELECT received_at FROM events ORDER BY received_at DESC LIMIT 1) AS updated_at,
           NULL::timestamptz AS heard_at, NULL::timestamptz AS source_updated_at, NULL::timestamptz AS newest_at,
           NULL::timestamptz AS deleted_at
    UNION ALL
    SELECT 'original', k.sequence, e.id, e.delivery_id, k.key,
           NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
    FROM idempotency_keys k
    LEFT JOIN LATERAL (SELECT id, delivery_id FROM events WHERE sequence = k.sequence LIMIT 1) e ON true
    WHERE k.key = ANY($2::bytea[])
    UNION ALL
    SELECT 'entity', n.sequence, e.id, e.delivery_id, NULL, n.entity_type, n.entity_id,
           n.version, n.data_sequence, octet_length(d.data),
           CASE WHEN wanted.compared AND octet_length(d.data) <= $6::int THEN d.data END,
           d.occurred_at, n.created_at, n.updated_at, n.heard_at, n.source_updated_at, n.newest_at, n.deleted_at
    FROM unnest($3::text[], $4::text[], $5::boolean[]) AS wanted(entity_type, entity_id, compared)
    CROSS JOIN LATERAL (
        SELECT * FROM entities one WHERE one.entity_type = wanted.entity_type AND one.entity_id = wanted.entity_id LIMIT 1
    ) n
    LEFT JOIN LATERAL (SELECT id, delivery_id FROM events WHERE sequence = n.sequence LIMIT 1) e ON true
    LEFT JOIN LATERAL (SELECT data, occurred_at FROM events WHERE sequence = n.data_sequence LIMIT 1) d ON true
"""
_LOAD_DATA = "SELECT data FROM events WHERE sequence = $1"
_FIND_KEPT = """
    SELECT d.id, d.status, d.event_sequence, e.id AS event_id, e.entity_type, e.entity_id, e.action, e.action_inferred,
           e.occurred_at, e.data
    FROM deliveries d
    LEFT JOIN LATERAL (SELECT * FROM events WHERE sequence = d.event_sequence LIMIT 1) e ON true
    WHERE d.id = ANY($1::uuid[])
"""
_STORE = f"""
    WITH delivered AS (
        {_insertion("deliveries", _DeliveryRow, 1, body=(2, "bytea"))}
    ), entered AS (
        {_insertion("events", _EventRow, 3, changes=(4, "text"), data=(5, "text"))}
    ), kept AS (
        INSERT INTO idempotency_keys (key, sequence) SELECT * FROM unnest($6::bytea[], $7::bigint[])
    ), noted AS (
        UPDATE registrations r SET proof = free.proof, last_callback_at = free.received_at
        FROM (
            SELECT given.entity_type, given.proof, given.received_at
            FROM {_given(_Proof, 8)[1]} JOIN registrations r ON r.entity_type = given.entity_type
            -- What was told long ago and is read now says nothing of where the proof is today.
            WHERE (r.last_callback_at IS NULL OR r.last_callback_at <= given.received_at)
            -- Under load the row is written once a second, not with every batch.
            AND (r.proof IS DISTINCT FROM given.proof OR r.last_callback_at < given.received_at - interval '1 second')
            -- Who registers may hold the row, and the next batch will note it as well.
            FOR NO KEY UPDATE OF r SKIP LOCKED
        ) AS free
        WHERE r.entity_type = free.entity_type
    ), moved AS (
        {_insertion("entities", _EntityRow, 9)}
        ON CONFLICT (entity_type, entity_id) DO UPDATE SET
            version = excluded.version, sequence = excluded.sequence, data_sequence = excluded.data_sequence,
            updated_at = excluded.updated_at, heard_at = excluded.heard_at,
            source_updated_at = excluded.source_updated_at, newest_at = excluded.newest_at,
            deleted_at = excluded.deleted_at
    )
    SELECT pg_notify($10, $11) WHERE $11 IS NOT NULL
"""  # noqa: S608 - made of constants
_STORE_REREAD = f"""
    UPDATE deliveries d SET
        status = given.status, body = given.body, data_offset = given.data_offset, reading = given.reading,
        reason = given.reason, event_sequence = given.event_sequence, duplicate_of = given.duplicate_of
    FROM {_given(_DeliveryRow, 1, body=(2, "bytea"))[1]}
    WHERE d.id = given.id
"""  # noqa: S608 - made of constants

_EARLIEST = datetime.min.replace(tzinfo=UTC)

_Identity = tuple[EntityType, str]


_MOST_LOADED = 64 * 1024
"""Bytes of an entity's data up to which it is loaded with all others of the batch; a larger one is loaded by itself when it is
needed, so that a batch of hundreds of small callbacks about large entities fills no memory."""

_NOT_LOADED = JsonText(b"")
"""Stands for data that there is, but that was not loaded: it is large, or nothing is compared with it."""


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

    kept: dict[UUID, _Kept]
    numbers: Iterator[int]
    now: datetime
    latest: datetime
    originals: dict[bytes, _Original] = field(default_factory=dict)
    entities: dict[_Identity, Entity] = field(default_factory=dict)
    newest: dict[_Identity, _Original] = field(default_factory=dict)
    changed: set[_Identity] = field(default_factory=set)
    deliveries: list[tuple[_DeliveryRow, bytes]] = field(default_factory=list)
    reread: dict[UUID, tuple[_DeliveryRow, bytes]] = field(default_factory=dict)
    events: list[tuple[_EventRow, str, str | None]] = field(default_factory=list)
    new_keys: dict[bytes, int] = field(default_factory=dict)
    last_sequence: int | None = None


async def append(connection: asyncpg.Connection, entries: Sequence[Entry]) -> list[Receipt]:
    """Write a batch within the caller's open transaction; one receipt for each entry, true once that has committed.

    The transaction holds the feed's lock (`LOCK`) since before anything was looked at. Raises asyncpg's errors as they are;
    then nothing of the batch may be committed.
    """
    keys = [_keys(entry) for entry in entries]
    batch = await _look(connection, entries, keys)
    receipts = []
    for entry, own in zip(entries, keys, strict=True):
        sequence = _large_one_to_compare(batch, entry)
        large = None if sequence is None else await connection.fetchval(_LOAD_DATA, sequence)
        receipts.append(_enter(batch, entry, own, large))
    await _store(connection, batch, entries)
    return receipts


def _is_compared(entry: Entry) -> bool:
    """Whether the data that an entry brings may be compared with the entity's: only an update tells differences."""
    reading = entry.reading
    return isinstance(reading, Reading) and reading.data is not None and reading.action in {None, Action.UPDATE}


def _large_one_to_compare(batch: _Batch, entry: Entry) -> int | None:
    """The number of the event that holds the data to compare with, where that is not loaded yet."""
    if isinstance(entry.reading, Unreadable) or not _is_compared(entry):
        return None
    entity = batch.entities.get((entry.entity_type, entry.reading.entity_id))
    return entity.data_sequence if entity is not None and entity.data is _NOT_LOADED else None


def _keys(entry: Entry) -> tuple[bytes, ...]:
    if isinstance(entry.reading, Unreadable):
        return ()
    return idempotency_keys(entry.entity_type, entry.reading, entry.delivery.body if entry.delivery else None)


async def _look(connection: asyncpg.Connection, entries: Sequence[Entry], keys: Sequence[tuple[bytes, ...]]) -> _Batch:
    """Everything the batch has to know, however large it is."""
    wanted: dict[_Identity, bool] = {}
    for entry in entries:
        if isinstance(entry.reading, Reading):
            identity = (entry.entity_type, entry.reading.entity_id)
            wanted[identity] = wanted.get(identity, False) or _is_compared(entry)
    rows = await connection.fetch(
        _LOOK,
        len(entries),
        [key for own in keys for key in own],
        [entity_type for entity_type, _ in wanted],
        [entity_id for _, entity_id in wanted],
        list(wanted.values()),
        _MOST_LOADED,
    )
    ids = [entry.delivery_id for entry in entries if entry.delivery_id is not None]
    kept = await connection.fetch(_FIND_KEPT, ids) if ids else []
    [drawn] = [row for row in rows if row["what"] == "drawn"]
    batch = _Batch(
        kept={row["id"]: _kept(row) for row in kept},
        numbers=iter(range(drawn["sequence"] - len(entries) + 1, drawn["sequence"] + 1)),
        now=drawn["created_at"],
        latest=drawn["updated_at"] or _EARLIEST,
    )
    for row in rows:
        found = _Original(row["sequence"], row["event_id"], row["delivery_id"])
        if row["what"] == "original":
            batch.originals[row["key"]] = found
        elif row["what"] == "entity":
            identity = (EntityType(row["entity_type"]), row["entity_id"])
            batch.entities[identity], batch.newest[identity] = _entity(row), found
    return batch


def _entity(row: asyncpg.Record) -> Entity:
    data = row["data"]
    return Entity(
        version=row["version"],
        sequence=row["sequence"],
        data=None if row["data_size"] is None else _NOT_LOADED if data is None else JsonText(data.encode()),
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


def _enter(batch: _Batch, entry: Entry, keys: tuple[bytes, ...], large: str | None = None) -> Receipt:
    """Decide what becomes of one entry, in the light of all before it in the batch; `large` is the entity's data where it was
    loaded by itself.
    """  # noqa: D205 - one sentence
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
    if before is not None and large is not None:
        before = replace(before, data=JsonText(large.encode()))
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
    row = _event_row(folded.event, folded.entity, event_id, created.delivery_id)
    data = None if folded.event.data is None else folded.event.data.decode()
    batch.events.append((row, folded.event.changes.decode(), data))
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
    row = _DeliveryRow(
        id=delivery_id,
        entity_type=delivery.entity_type,
        status=status,
        received_at=min(delivery.received_at, batch.now),  # should it be read later, this is when it was heard
        client=delivery.client,
        proof=delivery.proof,
        headers=msgspec.json.encode(delivery.headers).decode(),
        data_offset=offset,
        size=len(delivery.body),
        reading=_as_json((("proof", delivery.proof), *entry.reading.places.items())),
        reason=reason,
        event_sequence=original.sequence if original else None,
        duplicate_of=original.delivery_id if original and status is DeliveryStatus.DUPLICATE else None,
        traceparent=delivery.traceparent,
    )
    if delivery_id in batch.kept:
        batch.reread[delivery_id] = row, body
    else:
        batch.deliveries.append((row, body))
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


def _event_row(event: Event, after: Entity, event_id: UUID, delivery_id: UUID | None) -> _EventRow:
    return _EventRow(
        sequence=event.sequence,
        id=event_id,
        entity_type=event.entity_type,
        entity_id=event.entity_id,
        action=event.action,
        action_inferred=event.action_inferred,
        stale=event.stale,
        source=event.source,
        occurred_at=event.occurred_at,
        received_at=event.received_at,
        delivery_id=delivery_id,
        changed=event.changed,
        entity_version=after.version,
        entity_sequence=after.sequence,
        entity_data_sequence=after.data_sequence,
        entity_source_updated_at=after.source_updated_at,
    )


async def _store(connection: asyncpg.Connection, batch: _Batch, entries: Sequence[Entry]) -> None:
    """Write the batch, and wake the readers when it commits."""
    if batch.reread:
        reread, bodies = zip(*batch.reread.values(), strict=True)
        await connection.execute(_STORE_REREAD, _as_rows(reread), bodies)
    # In one order for all writers, so that rows are found near each other.
    changed = [_entity_row(identity, batch.entities[identity]) for identity in sorted(batch.changed)]
    newest: dict[EntityType, Delivery] = {}
    for delivery in filter(None, (entry.delivery for entry in entries)):
        if delivery.entity_type not in newest or newest[delivery.entity_type].received_at <= delivery.received_at:
            newest[delivery.entity_type] = delivery
    proofs = [_Proof(one.entity_type, one.proof, one.received_at) for one in newest.values()]
    await connection.execute(
        _STORE,
        _as_rows([row for row, _ in batch.deliveries]),
        [body for _, body in batch.deliveries],
        _as_rows([row for row, _, _ in batch.events]),
        [changes for _, changes, _ in batch.events],
        [data for _, _, data in batch.events],
        list(batch.new_keys),
        list(batch.new_keys.values()),
        _as_rows(proofs),
        _as_rows(changed),
        FEED_CHANNEL,
        None if batch.last_sequence is None else str(batch.last_sequence),
    )


def _as_rows(rows: Sequence[Struct]) -> str:
    return msgspec.json.encode(rows).decode()


def _entity_row(identity: _Identity, entity: Entity) -> _EntityRow:
    entity_type, entity_id = identity
    return _EntityRow(
        entity_type=entity_type,
        entity_id=entity_id,
        version=entity.version,
        sequence=entity.sequence,
        data_sequence=entity.data_sequence,
        created_at=entity.created_at,
        updated_at=entity.updated_at,
        heard_at=entity.heard_at,
        source_updated_at=entity.source_updated_at,
        newest_at=entity.newest_at,
        deleted_at=entity.deleted_at,
    )
