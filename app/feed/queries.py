"""SQL for events: pages of the feed and single events, with positions that miss nothing.

All functions take a connection from `app.db.engine.reading`: the page and the head it is compared with must come from one
snapshot. Numbers become visible in their order (`app.ledger.append`), so the head of a snapshot is a position that no
later event can come to stand before. Wide rows are fetched last, by number, and only as many as fit into a page.
"""

from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import ARRAY, BigInteger, Row, Select, Text, any_, cast, func, select, text, true
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.tables import events
from app.domain.values import Action, EntityType
from app.feed.filters import Filters
from app.feed.schemas import EventPageRecord, EventRecord
from app.paging import fitting

_SIZE = (func.coalesce(func.octet_length(events.c.data), 0) + func.octet_length(events.c.changes)).label("size")
# How many rows a page has to look at depends on its position and filters so much that a plan for all of them is wrong
# for most.
_PLAN_FOR_VALUES = text("SET LOCAL plan_cache_mode = force_custom_plan")


async def head(connection: AsyncConnection) -> int:
    """The position behind the newest event; 0 while there is none."""
    return await connection.scalar(select(func.coalesce(func.max(events.c.sequence), 0))) or 0


async def page(connection: AsyncConnection, filters: Filters, *, after: int, limit: int) -> EventPageRecord:
    """The oldest events behind position `after` that pass the filters, at most `limit`.

    Its `after` is the position to go on from: the last event's where more follow, else the head of the snapshot, past
    all that the filters skipped.
    """
    await connection.execute(_PLAN_FOR_VALUES)
    found = (await connection.execute(_numbers(filters, after, limit + 1))).all()
    count = fitting([row.size for row in found], limit)
    sequences = [row.sequence for row in found[:count]]
    if count < len(found):
        return EventPageRecord(await _load(connection, sequences), after=sequences[-1], has_more=True)
    position = max(after, await head(connection))
    return EventPageRecord(await _load(connection, sequences), after=position, has_more=False)


async def one(connection: AsyncConnection, event_id: UUID) -> EventRecord | None:
    """The event with this id."""
    row = (await connection.execute(select(*_COLUMNS).where(events.c.id == event_id))).one_or_none()
    return None if row is None else _record(row)


def _numbers(filters: Filters, after: int, count: int) -> Select[tuple[int, int]]:
    """Number and size (bytes) of the first `count` wanted events behind `after`, in order."""
    behind = select(events.c.sequence, _SIZE).where(events.c.sequence > after, *filters.conditions())
    if not filters.entity_id:
        return behind.order_by(events.c.sequence).limit(count)
    # Each entity's events stand in the index in their order: take the first few of each and merge them.
    pairs = [
        (entity_type, entity_id) for entity_type in filters.entity_type or EntityType for entity_id in filters.entity_id
    ]
    wanted = (
        func.unnest(
            cast([entity_type for entity_type, _ in pairs], ARRAY(Text)),
            cast([entity_id for _, entity_id in pairs], ARRAY(Text)),
        )
        .table_valued("entity_type", "entity_id", name="wanted")
        .render_derived()
    )
    of_entity = (
        behind.where(events.c.entity_type == wanted.c.entity_type, events.c.entity_id == wanted.c.entity_id)
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
    chosen = events.c.sequence == any_(cast(sequences, ARRAY(BigInteger)))
    rows = await connection.execute(select(*_COLUMNS).where(chosen).order_by(events.c.sequence))
    return [_record(row) for row in rows]


_COLUMNS = [
    events.c[name]
    for name in (
        *("sequence", "id", "entity_type", "action", "entity_id", "occurred_at", "received_at", "source"),
        *("delivery_id", "action_inferred", "stale", "data", "changed", "changes"),
    )
]


def _record(row: Row[*tuple[Any, ...]]) -> EventRecord:
    return EventRecord(
        sequence=row.sequence,
        id=row.id,
        type=f"{row.entity_type}.{Action(row.action).past}",
        entity_type=row.entity_type,
        action=row.action,
        entity_id=row.entity_id,
        occurred_at=row.occurred_at,
        received_at=row.received_at,
        source=row.source,
        delivery_id=row.delivery_id,
        action_inferred=row.action_inferred,
        stale=row.stale,
        data=msgspec.Raw(b"null" if row.data is None else row.data.encode()),
        changed=row.changed,
        changes=msgspec.Raw(row.changes.encode()),
    )
