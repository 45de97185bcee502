"""How a reading becomes an event and moves an entity's state. Pure; callbacks, reprocessing and reconciliation all fold here.

The rules, as the contract gives them: an event strictly older than the newest one seen is stale and never moves the state
back; without an action word it is inferred from whether the entity is known; a delete of a deleted entity is a
duplicate; an event without data leaves the data as it was.

Two more follow from them, so that the state does not depend on the order of arrival. A stale event whose data is newer than
the data that is known (what came after it said nothing of the entity) completes the state, and stays stale. And a callback
that is read later than it came is no newer than when it was told.
"""

from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from app.domain import diff
from app.domain.values import Action, Entity, EntityType, Event, JsonText, Reading, Source

_NO_CHANGES = JsonText(b"[]")


class Folded(Struct, frozen=True, gc=False):
    """What came of one reading: the event, None for a repeated delete, and the entity's state after it."""

    event: Event | None
    entity: Entity


def fold(
    entity: Entity | None,
    reading: Reading,
    *,
    entity_type: EntityType,
    sequence: int,
    received_at: datetime,
    heard_at: datetime | None = None,
    source: Source = Source.WEBHOOK,
) -> Folded:
    """Fold one reading into the state of its entity (None where it was never seen); `sequence` is for its event.

    `heard_at` is given where it was told before `received_at`: a callback that was kept unread until now.
    """
    heard_at = received_at if heard_at is None else heard_at
    action = reading.action or (Action.CREATE if entity is None else Action.UPDATE)
    stale = entity is not None and _is_older(reading.occurred_at, entity, heard_at=heard_at, received_at=received_at)
    if entity is not None and entity.deleted_at is not None and action is Action.DELETE:
        return Folded(event=None, entity=replace(entity, newest_at=_newest(entity.newest_at, reading.occurred_at)))

    brings_data = reading.data is not None and (not stale or _is_newer_data(reading.occurred_at, entity))
    changes: list[diff.Change] = []
    if brings_data and action is Action.UPDATE and entity and entity.data is not None and reading.data is not None:
        changes = diff.diff(entity.data, reading.data)
    event = Event(
        sequence=sequence,
        entity_type=entity_type,
        entity_id=reading.entity_id,
        action=action,
        action_inferred=reading.action is None,
        stale=stale,
        occurred_at=reading.occurred_at,
        received_at=received_at,
        source=source,
        data=reading.data,
        changed=diff.top_level_names(changes),
        changes=diff.as_json(changes) if changes else _NO_CHANGES,
    )
    after = entity if entity is not None and stale else _moved(entity, event, heard_at)
    if brings_data:
        after = replace(
            after, data=event.data, data_sequence=sequence, data_at=event.occurred_at, updated_at=event.received_at
        )
    return Folded(event=event, entity=after)


def _is_older(occurred_at: datetime | None, entity: Entity, *, heard_at: datetime, received_at: datetime) -> bool:
    """Whether an event happened strictly before the newest one seen.

    What carries no time cannot be told to be late, unless it was told before the newest event and only read after it.
    Callbacks that come at the same time are read in any order, so when they were told says nothing of those.
    """
    if occurred_at is not None and entity.newest_at is not None:
        return occurred_at < entity.newest_at
    return heard_at < received_at and heard_at < entity.heard_at


def _is_newer_data(occurred_at: datetime | None, entity: Entity | None) -> bool:
    """Whether data that came late is newer than the data that is known; where that has no time, nobody can say so."""
    if entity is None or entity.data is None:
        return True
    return occurred_at is not None and entity.data_at is not None and occurred_at >= entity.data_at


def _moved(entity: Entity | None, event: Event, heard_at: datetime) -> Entity:
    """The state after an event that is not stale, but for its data."""
    return Entity(
        version=1 if entity is None else entity.version + 1,
        sequence=event.sequence,
        data=None if entity is None else entity.data,
        data_sequence=None if entity is None else entity.data_sequence,
        data_at=None if entity is None else entity.data_at,
        created_at=event.received_at if entity is None else entity.created_at,
        updated_at=event.received_at,
        heard_at=heard_at if entity is None else max(entity.heard_at, heard_at),
        source_updated_at=_newest(entity.source_updated_at if entity else None, event.occurred_at),
        newest_at=_newest(entity.newest_at if entity else None, event.occurred_at),
        deleted_at=event.received_at if event.action is Action.DELETE else None,
    )


def _newest(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return one or other
    return max(one, other)
