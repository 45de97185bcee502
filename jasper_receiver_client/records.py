"""What the feed is made of, read from JSON. Members that are not known here are left alone, so that the service may grow."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Change:
    """One difference to the entity's state before. `path` is a JSON Pointer (RFC 6901).

    `before` and `after` are what stood and what stands there: `before` is None in an `add`, `after` in a `remove`.
    """

    op: Literal["add", "remove", "replace"]
    path: str
    before: Any
    after: Any

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Change":
        """From the service's JSON."""
        return cls(record["op"], record["path"], record.get("from"), record.get("to"))


@dataclass(frozen=True, slots=True)
class Event:
    """One create, update or delete of an entity.

    `sequence` grows strictly and never changes: handle each one once. `data` is the entity as it came, or None. Times are
    in UTC. A `stale` event is older than what was known, and moved no state.
    """

    sequence: int
    id: UUID
    type: str
    entity_type: str
    action: Literal["create", "update", "delete"]
    entity_id: str
    occurred_at: datetime | None
    received_at: datetime
    source: Literal["webhook", "reconciliation"]
    delivery_id: UUID | None
    action_inferred: bool
    stale: bool
    data: Any
    changed: tuple[str, ...]
    changes: tuple[Change, ...]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Event":
        """From the service's JSON."""
        return cls(
            sequence=record["sequence"],
            id=UUID(record["id"]),
            type=record["type"],
            entity_type=record["entity_type"],
            action=record["action"],
            entity_id=record["entity_id"],
            occurred_at=_time(record["occurred_at"]),
            received_at=datetime.fromisoformat(record["received_at"]),
            source=record["source"],
            delivery_id=None if record["delivery_id"] is None else UUID(record["delivery_id"]),
            action_inferred=record["action_inferred"],
            stale=record["stale"],
            data=record["data"],
            changed=tuple(record["changed"]),
            changes=tuple(map(Change.of, record["changes"])),
        )


@dataclass(frozen=True, slots=True)
class Entity:
    """The latest state of one entity.

    `version` counts the events that moved it, `sequence` is the newest of them. `source_updated_at` is Jasper's own time,
    the others are those of the service. All are in UTC.
    """

    entity_type: str
    entity_id: str
    data: Any
    version: int
    sequence: int
    created_at: datetime
    updated_at: datetime
    source_updated_at: datetime | None
    deleted_at: datetime | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Entity":
        """From the service's JSON."""
        return cls(
            entity_type=record["entity_type"],
            entity_id=record["entity_id"],
            data=record["data"],
            version=record["version"],
            sequence=record["sequence"],
            created_at=datetime.fromisoformat(record["created_at"]),
            updated_at=datetime.fromisoformat(record["updated_at"]),
            source_updated_at=_time(record["source_updated_at"]),
            deleted_at=_time(record["deleted_at"]),
        )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
