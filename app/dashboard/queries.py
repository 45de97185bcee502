"""SQL that only the pages need: the newest first, what is parked, and what was answered over time.

Every query is bounded: a look back goes over so many numbers of the feed and reads so many bytes of data, and tells how far
it came, so that the next one can go on from there. All take a connection from `app.db.engine.reading`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, func, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.tables import callback_minutes, events, parked_events
from app.domain.values import DeliveryStatus, EntityType
from app.feed.filters import Filters
from app.feed.queries import OLDEST_AFTER
from app.intake.tally import BOUNDS, Outcome

EXAMINED = 10_000
"""Numbers of the feed that one look back goes over."""

SEARCHED_BYTES = 16 * 1024 * 1024
"""Bytes of data that one search reads: a fraction of a second's work for Postgres."""

MOST_COUNTED = 1000
"""A count stops here; what is more is told as more than that."""

_LONGEST_CHANGES = 64 * 1024
"""Bytes of an event's changes that a list fetches; longer ones are shown by their names only."""

_IS_KEPT = events.c.sequence > OLDEST_AFTER
"""Some events that have been removed are still there, hidden, for their entities."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event as a list shows it. `changes` is JSON text, None where it is too long for a list."""

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
    changed: Sequence[str]
    changes: str | None


@dataclass(frozen=True, slots=True)
class LookBack:
    """Events, newest first. `reached` is the lowest number that was looked at, `more` whether there are older ones."""

    events: list[EventRow]
    reached: int
    more: bool


_ROW: list[ColumnElement[Any]] = [
    *(
        events.c[name]
        for name in (
            *("sequence", "id", "entity_type", "entity_id", "action", "action_inferred", "stale", "source"),
            *("occurred_at", "received_at", "delivery_id", "changed"),
        )
    ),
    case((func.octet_length(events.c.changes) <= _LONGEST_CHANGES, events.c.changes)).label("changes"),
]


async def look_back(
    connection: AsyncConnection, filters: Filters, wanted: str, *, after: int, before: int, limit: int
) -> LookBack:
    """The newest events behind `after` and before or at `before` that pass the filters and whose data has `wanted` in it.

    Looks at `EXAMINED` numbers at most; where `wanted` is not empty, also at `SEARCHED_BYTES` of data, and a first one.
    """
    lowest = max(after, before - EXAMINED)
    conditions = [_IS_KEPT, events.c.sequence > lowest, events.c.sequence <= before, *filters.conditions()]
    if filters.entity_id:
        conditions.append(events.c.entity_id.in_(filters.entity_id))
    reached = lowest + 1
    if wanted:
        searched = await _lowest_searched(connection, conditions)
        reached = max(reached, searched)
        conditions += [events.c.sequence >= reached, events.c.data.icontains(wanted, autoescape=True)]
    query = select(*_ROW).where(*conditions).order_by(events.c.sequence.desc()).limit(limit)
    found = [EventRow(*row) for row in await connection.execute(query)]
    if len(found) == limit:
        reached = found[-1].sequence
    older = select(events.c.sequence).where(_IS_KEPT, events.c.sequence < reached, events.c.sequence > after).limit(1)
    return LookBack(found, reached, await connection.scalar(older) is not None)


async def _lowest_searched(connection: AsyncConnection, conditions: Sequence[ColumnElement[bool]]) -> int:
    """Down to which number the data of what passes has `SEARCHED_BYTES`. Lengths are known without reading the data."""
    size = func.coalesce(func.octet_length(events.c.data), 0)
    so_far = func.sum(size).over(order_by=events.c.sequence.desc())
    sized = select(events.c.sequence, (so_far - size).label("before_it")).where(*conditions).subquery()
    beyond = select(func.max(sized.c.sequence) + 1).where(sized.c.before_it > SEARCHED_BYTES)
    return await connection.scalar(beyond) or 0


async def next_events(
    connection: AsyncConnection, filters: Filters, wanted: str, *, after: int, upto: int
) -> list[EventRow]:
    """The events behind `after`, up to `upto`, that pass, oldest first: for who follows the feed."""
    conditions = [_IS_KEPT, events.c.sequence > after, events.c.sequence <= upto, *filters.conditions()]
    if filters.entity_id:
        conditions.append(events.c.entity_id.in_(filters.entity_id))
    if wanted:
        conditions.append(events.c.data.icontains(wanted, autoescape=True))
    query = select(*_ROW).where(*conditions).order_by(events.c.sequence)
    return [EventRow(*row) for row in await connection.execute(query)]


async def history(
    connection: AsyncConnection, entity_type: EntityType, entity_id: str, *, after: int, before: int, limit: int
) -> list[EventRow]:
    """What happened to one entity behind `after` and before or at `before`, newest first, stale events included."""
    query = (
        select(*_ROW)
        .where(_is_of(entity_type, entity_id), events.c.sequence > after, events.c.sequence <= before)
        .order_by(events.c.sequence.desc())
        .limit(limit)
    )
    return [EventRow(*row) for row in await connection.execute(query)]


async def positions(
    connection: AsyncConnection, entity_type: EntityType, entity_id: str, *, after: int, limit: int
) -> list[tuple[int, datetime]]:
    """Number and time of the entity's newest events behind `after`, oldest of them first."""
    query = (
        select(events.c.sequence, events.c.received_at)
        .where(_is_of(entity_type, entity_id), events.c.sequence > after)
        .order_by(events.c.sequence.desc())
        .limit(limit)
    )
    return [(row.sequence, row.received_at) for row in reversed((await connection.execute(query)).all())]


def _is_of(entity_type: EntityType, entity_id: str) -> ColumnElement[bool]:
    return and_(events.c.entity_type == entity_type, events.c.entity_id == entity_id)


async def parked(connection: AsyncConnection) -> int:
    """How many events consumers have set aside; the count stops just beyond `MOST_COUNTED`."""
    some = select(parked_events.c.sequence).limit(MOST_COUNTED + 1).subquery()
    return await connection.scalar(select(func.count()).select_from(some)) or 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """How callbacks were answered in one stretch of time, and how fast those that were committed (None: there were none)."""

    start: datetime
    outcomes: dict[Outcome, int]
    median_ms: float | None
    slow_ms: float | None  # 99 of 100 were faster


async def stretches(connection: AsyncConnection, *, since: datetime, step: timedelta, count: int) -> list[Stretch]:
    """`count` stretches of `step` each, the first beginning at `since`."""
    start = func.date_bin(step, callback_minutes.c.minute, since)
    within = and_(callback_minutes.c.minute >= since, callback_minutes.c.minute < since + step * count)
    answered = select(
        start.label("start"), callback_minutes.c.outcome, func.sum(callback_minutes.c.count).label("count")
    )
    outcomes: dict[datetime, dict[Outcome, int]] = {}
    for row in await connection.execute(answered.where(within).group_by("start", callback_minutes.c.outcome)):
        outcomes.setdefault(row.start, {})[Outcome(row.outcome)] = int(row[2])

    committed = callback_minutes.c.outcome.in_([str(status) for status in DeliveryStatus])
    each = (
        func.unnest(callback_minutes.c.latencies)
        .table_valued("number", with_ordinality="place", name="each")
        .render_derived()
    )
    speeds = (
        select(start.label("start"), each.c.place, func.sum(each.c.number).label("total"))
        .select_from(callback_minutes.join(each, true()))
        .where(within, committed)
        .group_by("start", each.c.place)
    )
    latencies: dict[datetime, list[int]] = {}
    for start_at, place, total in await connection.execute(speeds):
        latencies.setdefault(start_at, [0] * (len(BOUNDS) + 1))[place - 1] = int(total)
    return [
        Stretch(at, outcomes.get(at, {}), quantile(latencies.get(at, []), 0.5), quantile(latencies.get(at, []), 0.99))
        for at in (since + step * number for number in range(count))
    ]


def quantile(counted: Sequence[int], share: float) -> float | None:
    """The milliseconds within which this share was answered, as exact as the bounds of the tally; None of nothing."""
    wanted = sum(counted) * share
    if wanted == 0:
        return None
    so_far = 0
    for number, upper in zip(counted, BOUNDS, strict=False):
        so_far += number
        if so_far >= wanted:
            return float(upper)
    return float(BOUNDS[-1])
