"""SQL for the latest state of entities. Their data is the text kept in one of their events, reached by its number."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, ScalarSelect, Select, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.tables import entities, events
from app.domain.values import Action, EntityType
from app.entities.schemas import EntityPageRecord, EntityRecord
from app.feed import queries as feed
from app.paging import fitting

_newest = events.alias("newest")
_holder = events.alias("holder")
_COLUMNS = [
    entities.c[name]
    for name in (
        *("entity_type", "entity_id", "version", "sequence", "data_sequence"),
        *("created_at", "updated_at", "source_updated_at", "deleted_at"),
    )
]
_SIZE = func.coalesce(func.octet_length(events.c.data), 0).label("size")


@dataclass(frozen=True, slots=True)
class State:
    """The state of one entity without its data."""

    row: Row[*tuple[Any, ...]]

    @property
    def tag(self) -> str:
        """Differs from that of every other state of the entity: the number of the event that moved it last."""
        return f'"{max(self.row.sequence, self.row.data_sequence or 0)}"'

    @property
    def is_deleted(self) -> bool:
        """Whether its newest event is a delete."""
        return self.row.deleted_at is not None


async def page(
    connection: AsyncConnection,
    entity_type: EntityType,
    *,
    after: str | None,
    limit: int,
    include_deleted: bool,
    updated_since: datetime | None,
) -> EntityPageRecord:
    """Entities by id (byte by byte), from the first behind `after`."""
    query = (
        select(*_COLUMNS, _SIZE)
        .outerjoin(events, events.c.sequence == entities.c.data_sequence)
        .where(entities.c.entity_type == entity_type)
        .order_by(entities.c.entity_id)
        .limit(limit + 1)
    )
    if after is not None:
        query = query.where(entities.c.entity_id > after)
    if not include_deleted:
        query = query.where(entities.c.deleted_at.is_(None))
    if updated_since is not None:
        query = query.where(entities.c.updated_at >= updated_since)
    rows = (await connection.execute(query)).all()
    count = fitting([row.size for row in rows], limit)
    has_more = count < len(rows)
    texts = await _texts(connection, [row.data_sequence for row in rows[:count]])
    return EntityPageRecord(
        items=[_record(row, texts.get(row.data_sequence)) for row in rows[:count]],
        after=rows[count - 1].entity_id if has_more else None,
        has_more=has_more,
    )


async def state(connection: AsyncConnection, entity_type: EntityType, entity_id: str) -> State | None:
    """The state of one entity; None where it was never seen."""
    row = (await connection.execute(_one(entity_type, entity_id))).one_or_none()
    return None if row is None else State(row)


async def state_as_of(
    connection: AsyncConnection, entity_type: EntityType, entity_id: str, point: int | datetime
) -> State | None:
    """The state that one entity had at a position of the feed, or after what was received up to a time.

    None where it had not been seen by then. Every event carries what the fold made of its entity, so the last one is
    enough. Times grow with the numbers, so a time stands for the position of the last event received by then.
    Raises GoneError where the last one may have been removed. Retention keeps the newest of the events that it removes of
    an entity, and what that one stands on: from there on every state is certain, and where there is none, there never was.
    """
    position = point if isinstance(point, int) else _position_at(point)
    last = _last(entity_type, entity_id, events.c.sequence <= position)
    completed_late = events.c.entity_data_sequence > events.c.entity_sequence
    columns = (
        *(events.c[name] for name in ("entity_type", "entity_id")),
        *(events.c[f"entity_{name}"].label(name) for name in ("version", "sequence", "data_sequence")),
        entities.c.created_at,
        case((completed_late, _holder.c.received_at), else_=_newest.c.received_at).label("updated_at"),
        events.c.entity_source_updated_at.label("source_updated_at"),
        case((_newest.c.action == Action.DELETE, _newest.c.received_at)).label("deleted_at"),
        events.c.sequence.label("last"),
        feed.OLDEST_AFTER.label("oldest_after"),
    )
    query = (
        select(*columns)
        .join(
            entities,
            (entities.c.entity_type == events.c.entity_type) & (entities.c.entity_id == events.c.entity_id),
        )
        .join(_newest, _newest.c.sequence == events.c.entity_sequence)
        .outerjoin(_holder, _holder.c.sequence == events.c.entity_data_sequence)
        .where(events.c.sequence == last)
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None or row.last <= row.oldest_after:
        left = _last(entity_type, entity_id, events.c.sequence <= feed.OLDEST_AFTER)
        left_of_it, oldest = (await connection.execute(select(left, feed.OLDEST_AFTER))).one()
        if left_of_it != (None if row is None else row.last):
            raise feed.removed("this state is kept no longer", oldest)
    return None if row is None else State(row)


def _position_at(moment: datetime) -> ScalarSelect[int]:
    return (
        select(events.c.sequence)
        .where(events.c.received_at <= moment)
        .order_by(events.c.received_at.desc(), events.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )


def _last(entity_type: EntityType, entity_id: str, condition: ColumnElement[bool]) -> ScalarSelect[int]:
    """The number of the last event of an entity for which that holds."""
    return (
        select(events.c.sequence)
        .where(events.c.entity_type == entity_type, events.c.entity_id == entity_id, condition)
        .order_by(events.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )


async def with_data(connection: AsyncConnection, state: State) -> EntityRecord:
    """The state together with its data."""
    texts = await _texts(connection, [state.row.data_sequence])
    return _record(state.row, texts.get(state.row.data_sequence))


def _one(entity_type: EntityType, entity_id: str) -> Select[Any]:
    return select(*_COLUMNS).where(entities.c.entity_type == entity_type, entities.c.entity_id == entity_id)


async def _texts(connection: AsyncConnection, sequences: list[int | None]) -> dict[int | None, str]:
    """The data kept in these events."""
    wanted = [sequence for sequence in sequences if sequence is not None]
    if not wanted:
        return {}
    rows = await connection.execute(select(events.c.sequence, events.c.data).where(events.c.sequence.in_(wanted)))
    return {row.sequence: row.data for row in rows}


def _record(row: Row[*tuple[Any, ...]], data: str | None) -> EntityRecord:
    return EntityRecord(
        entity_type=row.entity_type,
        entity_id=row.entity_id,
        data=msgspec.Raw(b"null" if data is None else data.encode()),
        version=row.version,
        sequence=row.sequence,
        created_at=row.created_at,
        updated_at=row.updated_at,
        source_updated_at=row.source_updated_at,
        deleted_at=row.deleted_at,
    )
