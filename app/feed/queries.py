"""SQL for events: pages of the feed and single events, with positions that miss nothing.

The page and the head it is compared with come from one snapshot: functions take a connection from `app.db.engine.reading`, or
read all in one statement. Numbers become visible in their order (`app.ledger.append`), so the head of a snapshot is a position
that no later event can come to stand before. Where filters look at many rows for a few, the wide ones are fetched last, by
number; no more of them are ever handed on than fit into a page.

What retention has removed (`app.ledger.retention`) is told by one number, and that is read in the snapshot of the page as
well: whoever stands before it is refused, and never given a page with a hole. Some rows up to it are kept for the entities;
no reader of events sees them.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar
from uuid import UUID

import asyncpg
import msgspec
from sqlalchemy import ARRAY, BigInteger, ColumnElement, Select, Text, all_, cast, func, select, text, true
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.engine import Lookups, driver_of
from app.db.tables import events, retention
from app.domain.values import Action, EntityType
from app.errors import GoneError
from app.feed.filters import Filters
from app.feed.schemas import EventPageRecord, EventRecord, WrittenEventPageRecord
from app.paging import MOST_BYTES, fitting
from app.tracing import traced

T = TypeVar("T")

_SIZE = (func.coalesce(func.octet_length(events.c.data), 0) + func.octet_length(events.c.changes)).label("size")
# How many rows a page has to look at depends on its position and filters so much that a plan for all of them is wrong
# for most.
_PLAN_FOR_VALUES = text("SET LOCAL plan_cache_mode = force_custom_plan")

_LEAST_WALKED = 10_000
_WALKED_PER_EVENT = 100
"""How many events are looked at in order before the indexes are asked: some milliseconds' worth."""

HEAD = select(func.coalesce(func.max(events.c.sequence), 0)).scalar_subquery()
"""The position behind the newest event; 0 while there is none."""

OLDEST_AFTER = select(retention.c.oldest_after).scalar_subquery()
"""The lowest position that is whole: the events up to it have been removed; 0 while none has."""

# `max` is the same in every case but one: planned for a table of one row, it may come to pass all of them.
_BOUNDS = """
    SELECT coalesce((SELECT sequence FROM events ORDER BY sequence DESC LIMIT 1), 0) AS newest,
           coalesce((SELECT oldest_after FROM retention), 0) AS oldest
"""


async def head(connection: AsyncConnection) -> int:
    """The position behind the newest event; 0 while there is none."""
    return await connection.scalar(select(HEAD)) or 0


async def oldest_after(connection: AsyncConnection) -> int:
    """The lowest position that is whole: from there on nothing has been removed."""
    return await connection.scalar(select(OLDEST_AFTER)) or 0


def removed(what: str, oldest: int) -> GoneError:
    """The refusal of `what` (the beginning of a sentence), for which events up to the position `oldest` would be needed."""
    return GoneError(
        f"{what}: the events up to {oldest} have been removed, as they are older than is kept; `oldest_after` is the lowest "
        "position from which nothing is missing",
        extra={"oldest_after": oldest},
    )


_as_span = traced(
    "feed page",
    attributes=lambda *_, after, limit, **__: {"jasper_receiver.after": after, "jasper_receiver.limit": limit},
)


@_as_span
async def page(
    connection: AsyncConnection,
    filters: Filters,
    *,
    after: int | None,
    limit: int,
    without: Sequence[int] = (),
    most_bytes: int = MOST_BYTES,
) -> EventPageRecord:
    """The oldest events behind position `after` that pass the filters: at most `limit`, and about `most_bytes`.

    None begins with the oldest kept. Those numbered `without` are left out. Its `after` is the position to go on from: the
    last event's where more follow, else the head of the snapshot, past all that the filters skipped.
    Raises GoneError where events behind `after` have been removed.
    """
    driver = await driver_of(connection)
    if filters.are_dense:
        rows = await driver.fetch(_PAGE_OF_ALL, after, filters.include_stale, without, limit, most_bytes)
        return EventPageRecord(*_in_one_statement(rows, after, _record))
    [bounds] = await driver.fetch(_BOUNDS)
    newest, begin = bounds["newest"], _whole_behind(after, bounds["oldest"])
    found = await _find(connection, filters, after=begin, newest=newest, count=limit + 1, without=without)
    count = fitting([size for _, size in found], limit, most_bytes)
    sequences = [sequence for sequence, _ in found[:count]]
    has_more = count < len(found)
    position = sequences[-1] if has_more else max(begin, newest)
    return EventPageRecord(await _load(connection, sequences), after=position, has_more=has_more)


@_as_span
async def page_of_all(lookups: Lookups, filters: Filters, *, after: int | None, limit: int) -> WrittenEventPageRecord:
    """The same where the filters are dense and the events are only handed on, which is how most read the feed.

    Postgres writes each event as the JSON that it is sent as, so that nothing of it is taken apart here; and one statement is
    one snapshot by itself.
    """
    rows = await lookups.fetch(_WRITTEN_PAGE_OF_ALL, after, filters.include_stale, (), limit, MOST_BYTES)
    return WrittenEventPageRecord(*_in_one_statement(rows, after, lambda row: msgspec.Raw(row[1])))


def _in_one_statement(
    rows: Sequence[asyncpg.Record], after: int | None, read: Callable[[asyncpg.Record], T]
) -> tuple[list[T], int, bool]:
    """What a page consists of. Raises GoneError where events behind `after` have been removed."""
    last = rows[-1]  # which tells the bounds, also where there is no event
    begin, has_more = _whole_behind(after, last["oldest"]), bool(last["has_more"])
    found = [read(row) for row in rows] if last[0] is not None else []
    return found, last[0] if has_more else max(begin, last["newest"]), has_more


def _whole_behind(after: int | None, oldest: int) -> int:
    """The position to read from. Raises GoneError where events behind it have been removed."""
    if after is not None and after < oldest:
        raise removed(f"position {after} is too old to go on from", oldest)
    return oldest if after is None else after


async def one(connection: AsyncConnection, event_id: UUID) -> EventRecord | None:
    """The event with this id; None where there is none or it has been removed."""
    driver = await driver_of(connection)
    sequence = await driver.fetchval(_FIND_ONE, event_id)
    return None if sequence is None else (await _load(connection, [sequence]))[0]


async def _find(
    connection: AsyncConnection,
    filters: Filters,
    *,
    after: int,
    newest: int,
    count: int,
    without: Sequence[int],
) -> Sequence[tuple[int, int]]:
    """Number and size (bytes) of the first `count` wanted events behind `after`, in order.

    Which way is short depends on how many events pass and where they lie, which Postgres cannot know: it takes them to be
    spread evenly. So the road itself is walked for a while, which is all for who is near the head; whatever is rarer than
    that is then looked up in the indexes of what was asked for.
    """
    await connection.execute(_PLAN_FOR_VALUES)
    conditions = filters.conditions()
    if without:
        conditions.append(events.c.sequence != all_(cast(without, ARRAY(BigInteger))))
    if filters.entity_id:
        return (await connection.execute(_of_entities(filters, conditions, after, count))).all()
    behind = select(events.c.sequence, _SIZE).where(events.c.sequence > after, *conditions)
    in_order = behind.order_by(events.c.sequence).limit(count)
    if not filters.narrow:
        return (await connection.execute(in_order)).all()

    first = await connection.scalar(select(func.min(events.c.sequence)).where(events.c.sequence > after))
    if first is None:
        return []
    end = first + max(_LEAST_WALKED, count * _WALKED_PER_EVENT)
    found = (await connection.execute(in_order.where(events.c.sequence <= end))).all()
    if len(found) == count or end >= newest:
        return found
    # The sum with 0 keeps Postgres from walking on in order, in the hope to be done soon.
    looked_up = behind.where(events.c.sequence > end).order_by(events.c.sequence + 0).limit(count - len(found))
    return [*found, *(await connection.execute(looked_up)).all()]


def _of_entities(
    filters: Filters, conditions: Sequence[ColumnElement[bool]], after: int, count: int
) -> Select[int, int]:
    """The first events of certain entities: each one's stand in an index in their order, so take a few of each and merge."""
    entity_types = filters.entity_type or EntityType
    pairs = dict.fromkeys((entity_type, entity_id) for entity_type in entity_types for entity_id in filters.entity_id)
    wanted = (
        func.unnest(cast([one for one, _ in pairs], ARRAY(Text)), cast([one for _, one in pairs], ARRAY(Text)))
        .table_valued("entity_type", "entity_id", name="wanted")
        .render_derived()
    )
    of_entity = (
        select(events.c.sequence, _SIZE)
        .where(
            events.c.entity_type == wanted.c.entity_type,
            events.c.entity_id == wanted.c.entity_id,
            events.c.sequence > after,
            *conditions,
        )
        .order_by(events.c.sequence)
        .limit(count)
        .lateral("of_entity")
    )
    return (
        select(of_entity.c.sequence, of_entity.c.size)
        .select_from(wanted.join(of_entity, true()))
        .order_by(of_entity.c.sequence)
        .limit(count)
    )


async def _load(connection: AsyncConnection, sequences: list[int]) -> list[EventRecord]:
    """The events with these numbers, in order."""
    if not sequences:
        return []
    driver = await driver_of(connection)
    return [_record(row) for row in await driver.fetch(_LOAD, sequences)]


_FIND_ONE = """
    SELECT sequence FROM events WHERE id = $1 AND sequence > coalesce((SELECT oldest_after FROM retention), 0)
"""
_COLUMNS = """
    e.sequence, e.id, e.entity_type, e.action, e.entity_id, e.occurred_at, e.received_at, e.source, e.delivery_id,
    e.action_inferred, e.stale, e.data, e.changed, e.changes
"""
_LOAD = f"SELECT {_COLUMNS} FROM events e WHERE e.sequence = ANY($1::bigint[]) ORDER BY e.sequence"  # noqa: S608 - made of constants
# To the letter what msgspec makes of an `EventRecord`. `concat` is quick for what is short, `||` for what is long.
_WRITTEN_TIME = """replace(to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z')"""
_WRITTEN = f"""
    e.sequence,
    textsend(
        concat(
            '{{"sequence":', e.sequence, ',"id":"', e.id,
            '","type":"', e.entity_type, '.', e.action, 'd","entity_type":"', e.entity_type, '","action":"', e.action,
            '","entity_id":', to_json(e.entity_id),
            ',"occurred_at":', coalesce('"' || {_WRITTEN_TIME.format("e.occurred_at")} || '"', 'null'),
            ',"received_at":"', {_WRITTEN_TIME.format("e.received_at")},
            '","source":"', e.source, '","delivery_id":', coalesce('"' || e.delivery_id || '"', 'null'),
            CASE WHEN e.action_inferred THEN ',"action_inferred":true' ELSE ',"action_inferred":false' END,
            CASE WHEN e.stale THEN ',"stale":true,"data":' ELSE ',"stale":false,"data":' END
        )
        || coalesce(e.data, 'null')
        || concat(',"changed":', to_json(e.changed), ',"changes":', e.changes, '}}')
    )
"""


def _page_of_all(columns: str) -> str:
    # Nothing but the rows in their order, one behind another: what does not fit is found to be too much as it is passed.
    return f"""
    WITH bounds AS MATERIALIZED ({_BOUNDS})
    SELECT {columns}, bounds.newest, bounds.oldest, e.has_more
    FROM bounds LEFT JOIN LATERAL (
        SELECT found.*, row_number() OVER in_order AS count, sum(found.size) OVER in_order AS bytes,
               lead(found.sequence) OVER in_order IS NOT NULL AS has_more
        FROM (
            SELECT *, coalesce(octet_length(data), 0) + octet_length(changes) AS size
            FROM events
            WHERE sequence > coalesce($1::bigint, bounds.oldest) AND (NOT stale OR $2) AND sequence <> ALL($3::bigint[])
            ORDER BY sequence LIMIT $4::int + 1
        ) AS found
        WINDOW in_order AS (ORDER BY found.sequence ROWS UNBOUNDED PRECEDING)
    ) AS e ON e.count <= $4 AND (e.count = 1 OR e.bytes <= $5)
    ORDER BY e.sequence
"""  # noqa: S608 - made of constants


_PAGE_OF_ALL, _WRITTEN_PAGE_OF_ALL = _page_of_all(_COLUMNS), _page_of_all(_WRITTEN)


def _record(row: asyncpg.Record) -> EventRecord:
    """The event in a row that begins with `_COLUMNS`."""
    data = row[11]
    return EventRecord(
        sequence=row[0],
        id=row[1],
        type=f"{row[2]}.{_PAST[row[3]]}",
        entity_type=row[2],
        action=row[3],
        entity_id=row[4],
        occurred_at=row[5],
        received_at=row[6],
        source=row[7],
        delivery_id=row[8],
        action_inferred=row[9],
        stale=row[10],
        data=msgspec.Raw(b"null" if data is None else data.encode()),
        changed=row[12],
        changes=msgspec.Raw(row[13].encode()),
    )


_PAST = {str(action): action.past for action in Action}
