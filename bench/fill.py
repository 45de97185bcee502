"""Fills the service's tables with a long past, as the ledger would have left it, at the speed of COPY.

Every entity has a create and then updates, each of which changes `price` and `updated_at`; one entity has a long history,
and a handful of events change `note`, which no other does. Two things differ from what the ledger writes: the idempotency
keys are made up, so a repetition of one of these callbacks would not be recognised, and entities share their texts. The
last of it happened just before the callbacks of `bench.products` begin.
"""

import math
import random
from array import array
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import islice
from uuid import UUID

import asyncpg
import msgspec

from bench.products import BEGIN, FIRST_ID, Product, made_up

RARE_NAME = "note"
"""The member that hardly any event changed."""

_RARE_CHANGES = 10
_TEXTS = 500
_CHUNK = 1_000
_STRIDE = 1_000_003
_LAG = timedelta(milliseconds=250)
_NULL = r"\N"
_HEADERS = (
    '[["host", "127.0.0.1"], ["content-type", "application/json"], ["x-signing-secret", "[redacted]"], '
    '["x-from", "benchmark"], ["content-length", "3000"]]'
)
_READING = (
    '{"proof": "header:x-signing-secret", "entity_id": "/data/id", "action": "/event", "data": "/data", '
    '"occurred_at": "/data/updated_at"}'
)
_EVENT_COLUMNS = (
    *("sequence", "id", "entity_type", "entity_id", "action", "action_inferred", "stale", "source", "occurred_at"),
    *("received_at", "delivery_id", "changed", "changes", "data"),
    *("entity_version", "entity_sequence", "entity_data_sequence", "entity_source_updated_at"),
)
_DELIVERY_COLUMNS = (
    *("id", "entity_type", "status", "received_at", "client", "proof", "headers", "body", "data_offset", "size"),
    *("reading", "reason", "event_sequence", "duplicate_of"),
)
_ENTITY_COLUMNS = (
    *("entity_type", "entity_id", "version", "sequence", "data_sequence", "created_at", "updated_at", "heard_at"),
    *("source_updated_at", "newest_at", "deleted_at"),
)


@dataclass(frozen=True, slots=True)
class Past:
    """How much there was: `events` (numbered from 1) of so many `entities`, not all of which need have come up."""

    events: int
    entities: int

    @property
    def busy_id(self) -> str:
        """The entity with the long history: 10,000 events, or a tenth of all."""
        return str(FIRST_ID)

    @property
    def busy_every(self) -> int:
        """After how many events the busy entity has its next."""
        return max(10, self.events // 10_000)

    @property
    def quiet_id(self) -> str:
        """An entity like most others."""
        return str(FIRST_ID + 1 + self.entities // 2)

    def time(self, sequence: int) -> datetime:
        """When an event happened."""
        return BEGIN - timedelta(seconds=self.events - sequence + 1)


@dataclass(frozen=True, slots=True)
class _Event:
    """One event: of which entity, as its how manieth, after which one, and how often `note` had been changed with it."""

    sequence: int
    entity: int
    version: int
    before: int
    notes: int
    changes_note: bool


def _happened(past: Past) -> Iterator[_Event]:
    """Everything, in order. The busy entity has its turn every so often, the others take turns in between."""
    others = past.entities - 1
    stride = next(one for one in range(_STRIDE, _STRIDE + others + 1) if math.gcd(one, others) == 1)
    rare_every = max(2, past.events // _RARE_CHANGES)
    versions, last = array("L", [0]) * past.entities, array("L", [0]) * past.entities
    notes: dict[int, int] = {}
    for sequence in range(1, past.events + 1):
        entity = 0 if sequence % past.busy_every == 0 else 1 + sequence * stride % others
        versions[entity] += 1
        changes_note = sequence % rare_every == rare_every - 1 and versions[entity] > 1
        if changes_note:
            notes[entity] = notes.get(entity, 0) + 1
        yield _Event(sequence, entity, versions[entity], last[entity], notes.get(entity, 0), changes_note)
        last[entity] = sequence


class _Rows:
    """What goes into each table, as lines of COPY's text format."""

    def __init__(self, past: Past) -> None:
        self._past = past
        chance = random.Random(1)
        self._texts = [self._text_of(made_up(chance, FIRST_ID + number)) for number in range(_TEXTS)]

    @staticmethod
    def _text_of(product: Product) -> str:
        """The members that stay as they are, without braces."""
        text = msgspec.json.encode(
            {name: value for name, value in product.items() if name not in {"id", "price"}}
        ).decode()
        assert "\\" not in text, "COPY would take it for an escape"
        return text[1:-1]

    def data(self, one: _Event) -> str:
        """The entity as an event told it."""
        text, price, at = self._texts[one.entity % _TEXTS], _price(one.version), self._told(one.sequence)
        return f'{{"id":{FIRST_ID + one.entity},{text},"price":{price},"note":{one.notes},"updated_at":"{at}"}}'

    def events(self) -> Iterator[bytes]:
        for one in _happened(self._past):
            at = self._past.time(one.sequence)
            names, changes = self._changes(one)
            yield _line(
                *(one.sequence, _id(1, at, one.sequence), "product", FIRST_ID + one.entity),
                *("create" if one.version == 1 else "update", "f", "f", "webhook", at, at + _LAG),
                *(_id(2, at, one.sequence), names, changes, self.data(one)),
                *(one.version, one.sequence, one.sequence, at),
            )

    def _changes(self, one: _Event) -> tuple[str, str]:
        if one.version == 1:
            return "{}", "[]"
        pairs = [
            ("price", _price(one.version - 1), _price(one.version)),
            ("updated_at", f'"{self._told(one.before)}"', f'"{self._told(one.sequence)}"'),
        ]
        if one.changes_note:
            pairs.insert(0, (RARE_NAME, str(one.notes - 1), str(one.notes)))
        changes = (f'{{"op":"replace","path":"/{name}","from":{before},"to":{after}}}' for name, before, after in pairs)
        return f"{{{','.join(name for name, _, _ in pairs)}}}", f"[{','.join(changes)}]"

    def deliveries(self) -> Iterator[bytes]:
        for one in _happened(self._past):
            at = self._past.time(one.sequence)
            around = b'{"event":"product.%b","data":}' % (b"created" if one.version == 1 else b"updated")
            size = len(around) + len(self.data(one).encode())
            yield _line(
                *(_id(2, at, one.sequence), "product", "accepted", at + _LAG, "127.0.0.1", "header:x-signing-secret"),
                *(_HEADERS, _bytea(around), len(around) - 1, size, _READING, _NULL, one.sequence, _NULL),
            )

    def idempotency_keys(self) -> Iterator[bytes]:
        for sequence in range(1, self._past.events + 1):
            yield _line(_bytea(blake2b(sequence.to_bytes(8), digest_size=16).digest()), sequence)

    def entities(self) -> Iterator[bytes]:
        first, last, versions = (array("L", [0]) * self._past.entities for _ in range(3))
        for one in _happened(self._past):
            first[one.entity] = first[one.entity] or one.sequence
            last[one.entity], versions[one.entity] = one.sequence, one.version
        for entity, version in enumerate(versions):
            if version:
                created, at = self._past.time(first[entity]), self._past.time(last[entity])
                yield _line(
                    *("product", FIRST_ID + entity, version, last[entity], last[entity], created + _LAG, at + _LAG),
                    *(at + _LAG, at, at, _NULL),
                )

    def _told(self, sequence: int) -> str:
        return f"{self._past.time(sequence):%Y-%m-%dT%H:%M:%SZ}"


def _price(version: int) -> str:
    return str(10 + version / 100)


def _id(kind: int, at: datetime, number: int) -> UUID:
    """A UUIDv7 of that time, different for each kind and number."""
    milliseconds = int(at.timestamp() * 1000)
    return UUID(int=milliseconds << 80 | 7 << 76 | kind << 64 | 2 << 62 | number)


def _bytea(content: bytes) -> str:
    return rf"\\x{content.hex()}"


def _line(*values: object) -> bytes:
    return "\t".join(map(str, values)).encode() + b"\n"


def latest(past: Past, count: int) -> list[Product]:
    """So many of the entities, from all over, as they were in the end."""
    step = max(1, past.entities // count)
    found = {one.entity: one for one in _happened(past) if one.entity % step == 0}
    rows = _Rows(past)
    return [msgspec.json.decode(rows.data(one)) for one in found.values()]


async def fill(dsn: str, past: Past) -> None:
    """Fill the tables of an empty database whose schema is at head. Indexes are made afterwards, which is quicker."""
    rows = _Rows(past)
    tables: list[tuple[str, tuple[str, ...], Iterable[bytes]]] = [
        ("events", _EVENT_COLUMNS, rows.events()),
        ("deliveries", _DELIVERY_COLUMNS, rows.deliveries()),
        ("entities", _ENTITY_COLUMNS, rows.entities()),
        ("idempotency_keys", ("key", "sequence"), rows.idempotency_keys()),
    ]
    connection = await asyncpg.connect(dsn, server_settings={"maintenance_work_mem": "512MB", "timezone": "UTC"})
    try:
        for table, columns, lines in tables:
            made_later = await _drop_indexes(connection, table)
            async with connection.transaction():
                await connection.execute(f"TRUNCATE {table}")  # so that COPY may freeze
                await connection.copy_to_table(table, source=_chunks(lines), columns=columns, freeze=True, timeout=None)
            for statement in made_later:
                await connection.execute(statement)
            await connection.execute(f"VACUUM ANALYZE {table}")
        await connection.fetchval("SELECT setval('event_sequence', $1)", past.events)
        await connection.executemany(
            "INSERT INTO consumers (name, position, updated_at) VALUES ($1, $2, now())",
            [("far-behind", 0), ("half-way", past.events // 2), ("at-the-end", past.events)],
        )
    finally:
        await connection.close()


async def _chunks(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    iterator = iter(lines)
    while chunk := b"".join(islice(iterator, _CHUNK)):
        yield chunk


async def _drop_indexes(connection: asyncpg.Connection, table: str) -> list[str]:
    """Drop what keeps a table in order; returns the statements that make it again."""
    constraints = await connection.fetch(
        """SELECT conname AS name, pg_get_constraintdef(oid) AS definition FROM pg_constraint
           WHERE conrelid = $1::text::regclass AND contype IN ('p', 'u')""",
        table,
    )
    indexes = await connection.fetch(
        """SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition FROM pg_index i
           WHERE i.indrelid = $1::text::regclass
             AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)""",
        table,
    )
    for row in constraints:
        await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {row['name']}")
    for row in indexes:
        await connection.execute(f"DROP INDEX {row['name']}")
    return [
        *(f"ALTER TABLE {table} ADD CONSTRAINT {row['name']} {row['definition']}" for row in constraints),
        *(row["definition"] for row in indexes),
    ]
