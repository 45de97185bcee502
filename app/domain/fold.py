"""How a reading becomes an event and moves an entity's state. Pure; callbacks, reprocessing and reconciliation all fold here.

The rules, as the contract gives them: an event strictly older than the newest one seen is stale and never moves the state
back; without an action word it is inferred from whether the entity is known; a delete of a deleted entity is a
duplicate; an event without data leaves the data as it was.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from app.domain import diff
from app.domain.values import Action, Entity, EntityType, Event, JsonText, Reading, Source

_NO_CHANGES = JsonText(b"[]")


@dataclass(frozen=True, slots=True)
class Folded:
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
    source: Source = Source.WEBHOOK,
) -> Folded:
    """Fold one reading into the state of its entity (None where it was never seen); `sequence` is for its event."""
    action = reading.action or (Action.CREATE if entity is None else Action.UPDATE)
    stale = _is_older(reading.occurred_at, entity)
    if entity is not None and entity.deleted_at is not None and action is Action.DELETE:
        return Folded(event=None, entity=replace(entity, newest_at=_newest(entity.newest_at, reading.occurred_at)))

    changes: list[diff.Change] = []
    if (
        not stale
        and action is Action.UPDATE
        and entity is not None
        and entity.data is not None
        and reading.data is not None
    ):
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
    if stale and entity is not None:
        return Folded(event=event, entity=entity)
    return Folded(event=event, entity=_moved(entity, event))


def _is_older(occurred_at: datetime | None, entity: Entity | None) -> bool:
    """Whether an event happened strictly before the newest one seen. What carries no time cannot be told to be late."""
    return (
        occurred_at is not None
        and entity is not None
        and entity.newest_at is not None
        and occurred_at < entity.newest_at
    )


def _moved(entity: Entity | None, event: Event) -> Entity:
    """The state after a non-stale event."""
    return Entity(
        version=1 if entity is None else entity.version + 1,
        sequence=event.sequence,
        data=event.data if event.data is not None or entity is None else entity.data,
        data_sequence=event.sequence if event.data is not None else None if entity is None else entity.data_sequence,
        created_at=event.received_at if entity is None else entity.created_at,
        updated_at=event.received_at,
        source_updated_at=_newest(entity.source_updated_at if entity else None, event.occurred_at),
        newest_at=_newest(entity.newest_at if entity else None, event.occurred_at),
        deleted_at=event.received_at if event.action is Action.DELETE else None,
    )


def _newest(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return one or other
    return max(one, other)
