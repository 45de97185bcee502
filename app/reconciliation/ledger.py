"""What Jasper shows, written through the ledger: only differences, and only where nothing newer has come meanwhile.

Decides by comparing states while it holds the feed's lock, so neither a callback nor another replica can come between the
decision and the commit. The keys by which the ledger knows repetitions are left behind, not asked: what a comparison finds
is never swallowed as a repetition, and a callback that tells the same later is one.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import asyncpg

from app.clock import utc_now
from app.db.engine import UNREACHABLE
from app.db.locks import Lock
from app.domain.duplicates import idempotency_keys
from app.domain.values import Action, EntityType, Entry, JsonText, Reading, Receipt, Source
from app.errors import DatabaseUnavailableError
from app.jasper.entities import ShownEntity
from app.ledger.append import LOCK, append
from app.ledger.writer import open_ledger_connection
from app.reconciliation.compare import KnownEntity, as_callbacks_would_tell, difference, not_before

_STATEMENT_PATIENCE = 30.0
"""Seconds for one statement, the wait for the feed's lock included."""

# Every number that was drawn by now belongs to an event that came before whatever is asked next.
_NEWEST_EVENT = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM event_sequence"
_KNOWN = """
    SELECT n.entity_id, greatest(n.sequence, n.data_sequence) AS sequence, d.data, n.newest_at,
           n.deleted_at IS NOT NULL AS is_deleted, coalesce(e.source, 'webhook') AS source
    FROM entities n
    LEFT JOIN events d ON d.sequence = n.data_sequence
    LEFT JOIN events e ON e.sequence = n.sequence
    WHERE n.entity_type = $1 AND n.entity_id = ANY($2::text[])
"""
_LEAVE_KEYS = """
    INSERT INTO idempotency_keys (key, sequence)
    SELECT left_key.key, e.sequence
    FROM unnest($1::bytea[], $2::uuid[]) AS left_key(key, event_id) JOIN events e ON e.id = left_key.event_id
    ON CONFLICT (key) DO NOTHING
"""


@asynccontextmanager
async def ledger_connection(dsn: str, lock: Lock) -> AsyncIterator[asyncpg.Connection | None]:
    """A connection to write with that holds `lock` until it ends; None where another one holds it.

    Raises DatabaseUnavailableError.
    """
    connection = await open_ledger_connection(dsn, patience=_STATEMENT_PATIENCE)
    try:
        # How many rows a statement meets depends on what it is given, and tables grow a lot within one run.
        await connection.execute("SET plan_cache_mode = force_custom_plan")
        held = await connection.fetchval("SELECT pg_try_advisory_lock($1)", lock.key)
        yield connection if held else None
    except (asyncpg.PostgresError, *UNREACHABLE) as exc:
        raise DatabaseUnavailableError(f"Postgres cannot be reached now ({type(exc).__name__})") from exc
    finally:
        with suppress(Exception):
            await connection.close(timeout=1)


async def newest_event(connection: asyncpg.Connection) -> int:
    """The newest event there is, to be read before Jasper is asked."""
    return int(await connection.fetchval(_NEWEST_EVENT))


async def known_entities(
    connection: asyncpg.Connection, entity_type: EntityType, ids: Sequence[str]
) -> dict[str, KnownEntity]:
    """The states of those that were ever seen, by id."""
    return {
        row["entity_id"]: KnownEntity(
            sequence=row["sequence"],
            data=None if row["data"] is None else JsonText(row["data"].encode()),
            newest_at=row["newest_at"],
            is_deleted=row["is_deleted"],
            source=Source(row["source"]),
        )
        for row in await connection.fetch(_KNOWN, entity_type, ids)
    }


async def write_shown(
    connection: asyncpg.Connection, entity_type: EntityType, shown: Sequence[ShownEntity], *, known_until: int
) -> list[Action]:
    """Write what differs, within the caller's open transaction; the actions of the events that came of it.

    `known_until` is the newest event before Jasper was asked: what changed here after it is left alone.
    """
    await connection.execute(LOCK)
    known = await known_entities(connection, entity_type, [one.entity_id for one in shown])
    found = [(one, difference(known.get(one.entity_id), one, known_until=known_until)) for one in shown]
    told = [(one, reading) for one, reading in found if reading is not None]
    receipts = await _append(connection, entity_type, [reading for _, reading in told])
    keys = [
        (key, receipt.event_id)
        for (one, _), receipt in zip(told, receipts, strict=True)
        for late in as_callbacks_would_tell(one)
        for key in idempotency_keys(entity_type, late, None)
    ]
    await connection.execute(_LEAVE_KEYS, [key for key, _ in keys], [event_id for _, event_id in keys])
    return [reading.action for _, reading in told if reading.action is not None]


async def write_gone(
    connection: asyncpg.Connection, entity_type: EntityType, gone: Iterable[tuple[str, datetime | None, int]]
) -> list[Action]:
    """Write that entities are gone, within the caller's open transaction; the actions of the events that came of it.

    Each is given as its id, the time at which Jasper said so, and the newest event before Jasper was asked.
    """
    wanted = {entity_id: (gone_at, known_until) for entity_id, gone_at, known_until in gone}
    await connection.execute(LOCK)
    known = await known_entities(connection, entity_type, list(wanted))
    readings = [
        Reading(entity_id=entity_id, action=Action.DELETE, occurred_at=not_before(gone_at, known[entity_id].newest_at))
        for entity_id, (gone_at, known_until) in wanted.items()
        if entity_id in known and not known[entity_id].is_deleted and known[entity_id].sequence <= known_until
    ]
    await _append(connection, entity_type, readings)
    return [Action.DELETE] * len(readings)


async def _append(
    connection: asyncpg.Connection, entity_type: EntityType, readings: Sequence[Reading]
) -> list[Receipt]:
    now = utc_now()
    entries = [Entry(entity_type, reading, now, source=Source.RECONCILIATION) for reading in readings]
    return await append(connection, entries) if entries else []
