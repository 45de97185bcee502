"""Removes what is older than is kept, in small steps: events as a prefix of the feed, deliveries one by one.

How far events have been removed is one number (`retention.oldest_after`), and each step moves it in the transaction in
which it removes: a crash leaves nothing half done, and a reader sees either both or neither. The steps are short and hold
no lock that the ledger or a reader waits for.

Not every row up to that number goes. Of each entity the newest of its events there stays, hidden from readers, and so do
the events that this one says the state stands on: its newest that counts and the one that holds the data. What comes after
can refer to nothing else, so no state is lost, now or as of any point from there on. A delivery that outlives its event is
made whole before. Never removed are entities, idempotency keys, and callbacks that are quarantined or not proven
(`docs/decisions/0006-retention.md`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.engine import UNREACHABLE, reading, writing
from app.db.locks import Lock, try_lock
from app.errors import UnavailableError
from app.paging import fitting

_log = logging.getLogger(__name__)

_INTERVAL = 60.0
"""Seconds between rounds: what has grown too old in so short a time is little."""

_STEP_EVENTS = 500
_STEP_BYTES = 8 * 1024 * 1024
_STEP_DELIVERIES = 500
"""What one transaction removes: some tens of milliseconds' worth. Bytes are those of the entities' texts."""

_REST = 1.0
"""How long is rested after a step, as a multiple of what it took: the disk belongs to the callbacks."""

# The time-out is shorter than the one after which Postgres looks for deadlocks (1 s by default), so that it is always this
# side that gives way. A commit that is lost in a crash takes its removal along, and both are done again: that need not wait
# for the disk. And whatever Postgres believes of the tables, they are never walked through: not by a plan for values that
# it does not know, which would take a range of numbers for half of the table, nor by choice.
_CAREFUL = """
    SELECT set_config('lock_timeout', '500ms', true), set_config('synchronous_commit', 'off', true),
        set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'off', true)
"""

_OLDEST_AFTER = "SELECT oldest_after FROM retention WHERE id = 1 FOR UPDATE"
_NEXT = """
    SELECT sequence, received_at, coalesce(octet_length(data), 0) AS size FROM events
    WHERE sequence > :oldest_after ORDER BY sequence LIMIT :count
"""
_REMOVE_EVENTS = """
    WITH newest AS (
        SELECT DISTINCT ON (entity_type, entity_id)
            entity_type, entity_id, sequence, entity_sequence, coalesce(entity_data_sequence, sequence) AS data_sequence
        FROM events WHERE sequence > :oldest_after AND sequence <= :last
        ORDER BY entity_type, entity_id, sequence DESC
    ), removed AS (
        DELETE FROM events e USING newest n
        WHERE e.entity_type = n.entity_type AND e.entity_id = n.entity_id AND e.sequence < n.sequence
            AND e.sequence NOT IN (n.entity_sequence, n.data_sequence)
        RETURNING e.sequence, e.delivery_id, e.data
    )
    UPDATE deliveries d SET
        body = substring(d.body FOR d.data_offset) || convert_to(r.data, 'UTF8')
            || substring(d.body FROM d.data_offset + 1),
        data_offset = NULL
    FROM removed r
    WHERE d.id = r.delivery_id AND d.event_sequence = r.sequence AND d.data_offset IS NOT NULL
"""
_MOVE = "UPDATE retention SET oldest_after = :last WHERE id = 1"
# Ids are made in the order of arrival, so the oldest stand first. A callback that was kept apart may have a delivery for a
# moment before it is taken from there; should that moment end in a crash, the delivery is how its second release is known.
_REMOVE_DELIVERIES = """
    WITH old AS (
        SELECT d.id FROM deliveries d
        WHERE d.id > :after AND d.id < :until AND d.received_at < :before AND d.status <> 'quarantined'
            AND NOT EXISTS (SELECT FROM unproven u WHERE u.id = d.id)
        ORDER BY d.id LIMIT :count FOR UPDATE OF d SKIP LOCKED
    )
    DELETE FROM deliveries d USING old WHERE d.id = old.id RETURNING d.id
"""

_FIRST_ID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Periods:
    """How long events and deliveries are kept; None: for ever."""

    events: timedelta | None
    deliveries: timedelta | None


@dataclass(frozen=True, slots=True)
class Removed:
    """How many were removed."""

    events: int
    deliveries: int


async def keep_removing(engine: AsyncEngine, kept: Periods, *, warn: Callable[[], Awaitable[None]]) -> None:
    """Remove what has grown too old, again and again, one replica at a time; run it as a task and cancel it.

    `warn` is awaited before each round. What goes wrong is logged, and tried again in the next round.
    """
    while True:
        try:
            async with try_lock(engine, Lock.RETENTION) as held:
                if held:
                    await warn()
                    await remove(engine, kept, now=await _earlier_now(engine))
        except UnavailableError as exc:
            _log.warning("retention did not get on, will go on later", extra={"reason": str(exc)})
        except (SQLAlchemyError, *UNREACHABLE) as exc:
            reason = f"Postgres went away ({type(exc).__name__})"
            _log.warning("retention did not get on, will go on later", extra={"reason": reason})
        except Exception:  # noqa: BLE001 - whatever it is, the rest of the service is not to suffer
            _log.exception("retention failed for a reason nobody thought of, will go on later")
        await asyncio.sleep(_INTERVAL)


async def _earlier_now(engine: AsyncEngine) -> datetime:
    """The time, here or at Postgres, whichever is earlier: a clock that is wrong only ever keeps for longer."""
    async with reading(engine) as connection:
        theirs: datetime = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return min(utc_now(), theirs)


async def remove(engine: AsyncEngine, kept: Periods, *, now: datetime) -> Removed:
    """Remove all that was received longer than `kept` before `now`, in steps, with rests between them.

    May be run by several at once, and broken off at any time. Raises DatabaseUnavailableError; what was done until then
    stays done.
    """
    begun = time.monotonic()
    # Deliveries first: those that go need not be made whole for the events that go after them.
    deliveries = await _counted(_deliveries(engine, now - kept.deliveries)) if kept.deliveries else 0
    events = await _counted(_events(engine, now - kept.events)) if kept.events else 0
    if events or deliveries:
        counts = {"events": events, "deliveries": deliveries, "seconds": round(time.monotonic() - begun, 3)}
        _log.info("removed what is older than is kept", extra=counts)
    return Removed(events, deliveries)


async def _counted(steps: AsyncIterator[int]) -> int:
    """How many all steps removed; after each, a rest."""
    total = 0
    begun = time.monotonic()
    async for count in steps:
        total += count
        await asyncio.sleep(_REST * (time.monotonic() - begun))
        begun = time.monotonic()
    return total


async def _events(engine: AsyncEngine, before: datetime) -> AsyncIterator[int]:
    while count := await remove_oldest_events(engine, before):
        yield count


async def remove_oldest_events(engine: AsyncEngine, before: datetime) -> int:
    """One step: remove the oldest events up to the first that was received at `before` or later; returns how many.

    0: nothing is left to remove. Raises DatabaseUnavailableError, also where a lock was not to be had quickly.
    """
    async with writing(engine) as connection:
        await connection.execute(text(_CAREFUL))
        oldest_after = await connection.scalar(text(_OLDEST_AFTER))
        found = (await connection.execute(text(_NEXT), {"oldest_after": oldest_after, "count": _STEP_EVENTS})).all()
        # A prefix: what stands behind an event that is kept is kept as well, whatever its clock said.
        old = list(takewhile(lambda row: row.received_at < before, found))
        count = fitting([row.size for row in old], _STEP_EVENTS, _STEP_BYTES)
        if count:
            last = old[count - 1].sequence
            await connection.execute(text(_REMOVE_EVENTS), {"oldest_after": oldest_after, "last": last})
            await connection.execute(text(_MOVE), {"last": last})
        return count


async def _deliveries(engine: AsyncEngine, before: datetime) -> AsyncIterator[int]:
    after = _FIRST_ID
    while removed := await _remove_deliveries(engine, before, after):
        yield len(removed)
        after = max(removed)


async def _remove_deliveries(engine: AsyncEngine, before: datetime, after: UUID) -> list[UUID]:
    """One step: remove the first deliveries behind the id `after` that were received before `before`; returns their ids."""
    until = UUID(int=int(before.timestamp() * 1000) << 80)  # a UUIDv7 begins with its time in milliseconds
    values = {"after": after, "until": until, "before": before, "count": _STEP_DELIVERIES}
    async with writing(engine) as connection:
        await connection.execute(text(_CAREFUL))
        return list(await connection.scalars(text(_REMOVE_DELIVERIES), values))
