"""The words of this service as types: entity types, actions, deliveries, readings, events, entities.

Frozen and without behaviour beyond small facts about themselves; msgspec's structs, because several of them are made for
each callback and a frozen dataclass takes ten times as long. JSON from outside stays the bytes it came as (`JsonText`),
because numbers, escapes and white space must be given back untouched.
"""

from datetime import datetime
from enum import StrEnum
from typing import NewType
from uuid import UUID

from msgspec import Struct, field

JsonText = NewType("JsonText", bytes)
"""One JSON value as UTF-8 text, exactly as it came."""

Headers = tuple[tuple[str, str], ...]
"""Request headers in the order they came: (lower-case name, value)."""


class EntityType(StrEnum):
    """The entity types for which Jasper has webhooks (documented by Jasper)."""

    PRODUCT = "product"
    CATEGORY = "category"
    BRAND = "brand"
    CONCRETE_ENTITY = "concrete_entity"

    @property
    def collection(self) -> str:
        """The name in URLs, e.g. `concrete-entities`."""
        return COLLECTIONS[self]


COLLECTIONS = {
    EntityType.PRODUCT: "products",
    EntityType.CATEGORY: "categories",
    EntityType.BRAND: "brands",
    EntityType.CONCRETE_ENTITY: "concrete-entities",
}
ENTITY_TYPE_OF = {collection: entity_type for entity_type, collection in COLLECTIONS.items()}


class Action(StrEnum):
    """What happened to an entity."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"

    @property
    def past(self) -> str:
        """The word used in event types, e.g. `created`."""
        return f"{self}d"


class Source(StrEnum):
    """How an event became known."""

    WEBHOOK = "webhook"
    RECONCILIATION = "reconciliation"


class DeliveryStatus(StrEnum):
    """What came of an authentic callback."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"


class Delivery(Struct, frozen=True, gc=False):
    """One authentic callback as it is kept: secrets already blanked in `headers` and `body`.

    `client` is the address of the peer, `proof` the place at which the secret was proven, e.g. `header:x-secret`, and
    `traceparent` names the trace that the callback belongs to, if any (W3C Trace Context).
    """

    entity_type: EntityType
    received_at: datetime
    client: str
    headers: Headers
    body: bytes
    proof: str
    traceparent: str | None = None


class Reading(Struct, frozen=True, gc=False):
    """What a payload says. `action` is None where no action word was found, so that it must be inferred.

    `data` is the entity's JSON text or None. `stamped` says that the payload carries an event timestamp, or its entity
    an `updated_at` or a version; `data_stamped` the latter only: what makes two equal ones the same and not a second
    change. `places` tells where each part was found, for the evidence.
    """

    entity_id: str
    action: Action | None = None
    data: JsonText | None = None
    occurred_at: datetime | None = None
    delivery_key: str | None = None
    stamped: bool = False
    data_stamped: bool = False
    places: dict[str, str] = field(default_factory=dict)


class Unreadable(Struct, frozen=True, gc=False):
    """Why no event could be read from a payload, in words for the operator."""

    reason: str
    places: dict[str, str] = field(default_factory=dict)


class Entry(Struct, frozen=True, gc=False):
    """One thing for the ledger to write: what was read, and the delivery it was read from, if any.

    `received_at` is when it enters the feed. `delivery_id` is set where the delivery has an id already, because it was
    kept before: then it is read again, or for the first time, later than it came.
    """

    entity_type: EntityType
    reading: Reading | Unreadable
    received_at: datetime
    delivery: Delivery | None = None
    source: Source = Source.WEBHOOK
    delivery_id: UUID | None = None

    @property
    def heard_at(self) -> datetime:
        """When this was told: before `received_at` where a callback is read later than it came."""
        return self.received_at if self.delivery is None else self.delivery.received_at


class Entity(Struct, frozen=True, gc=False):
    """The state of one entity as the fold needs it.

    `version` counts its non-stale events, `sequence` is the newest of them and `heard_at` when that was told. `data` is
    the JSON text of the newest event that carried data, `data_sequence` that event and `data_at` its `occurred_at`.
    `newest_at` is the newest `occurred_at` ever seen for the entity, also from a repeated delete that made no event of
    its own; `source_updated_at` is the newest of its events.
    """

    version: int
    sequence: int
    data: JsonText | None
    data_sequence: int | None
    data_at: datetime | None
    created_at: datetime
    updated_at: datetime
    heard_at: datetime
    source_updated_at: datetime | None
    newest_at: datetime | None
    deleted_at: datetime | None


class Event(Struct, frozen=True, gc=False):
    """One create, update or delete, as it enters the feed.

    `changes` is the JSON text of the list of changes, `changed` the top-level names in it.
    """

    sequence: int
    entity_type: EntityType
    entity_id: str
    action: Action
    action_inferred: bool
    stale: bool
    occurred_at: datetime | None
    received_at: datetime
    source: Source
    data: JsonText | None
    changed: tuple[str, ...]
    changes: JsonText


class Receipt(Struct, frozen=True, gc=False):
    """What a caller is told once its callback is committed. `event_id` is the original's for a duplicate."""

    status: DeliveryStatus
    delivery_id: UUID
    event_id: UUID | None
