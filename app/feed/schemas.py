"""What readers of the feed get, twice: records that are written as they are, and models that describe them.

The records are encoded by msgspec with `data` and `changes` as the JSON text that was stored, so that numbers, escapes and
white space come back untouched; where events are only handed on, Postgres writes the same. The models appear in the OpenAPI
document only. Tests hold all of them to the same fields.
"""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from app.domain.values import Action, EntityType, Source


class EventRecord(msgspec.Struct, frozen=True):
    """One event as it is written."""

    sequence: int
    id: UUID
    type: str
    entity_type: str
    action: str
    entity_id: str
    occurred_at: datetime | None
    received_at: datetime
    source: str
    delivery_id: UUID | None
    action_inferred: bool
    stale: bool
    data: msgspec.Raw
    changed: list[str]
    changes: msgspec.Raw


class EventPageRecord(msgspec.Struct, frozen=True):
    """One page of events as it is written."""

    events: list[EventRecord]
    after: int
    has_more: bool


class WrittenEventPageRecord(msgspec.Struct, frozen=True):
    """The same with each event as the JSON that Postgres has written."""

    events: list[msgspec.Raw]
    after: int
    has_more: bool


class Change(BaseModel):
    """One difference to the entity's state before; `from` is missing in an `add`, `to` in a `remove`."""

    model_config = ConfigDict(frozen=True)

    op: Annotated[Literal["add", "remove", "replace"], Field(examples=["replace"])]
    path: Annotated[str, Field(description="JSON Pointer (RFC 6901)", examples=["/price"])]
    from_: Annotated[Any, Field(alias="from", default=None, examples=[52.0])]
    to: Annotated[Any, Field(default=None, examples=[49.0])]


class Event(BaseModel):
    """One create, update or delete of an entity."""

    model_config = ConfigDict(frozen=True)

    sequence: Annotated[int, Field(description="Grows strictly; holes may exist", examples=[1042])]
    id: Annotated[UUID, Field(examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11"])]
    type: Annotated[
        str,
        Field(
            pattern=r"^(product|category|brand|concrete_entity)\.(created|updated|deleted)$",
            examples=["product.updated"],
        ),
    ]
    entity_type: Annotated[EntityType, Field(examples=["product"])]
    action: Annotated[Action, Field(examples=["update"])]
    entity_id: Annotated[str, Field(examples=["1001"])]
    occurred_at: Annotated[
        datetime | None, Field(description="When it happened, as Jasper says", examples=["2026-11-23T10:00:00Z"])
    ]
    received_at: Annotated[
        datetime, Field(description="When this service received it", examples=["2026-11-23T10:00:01.250000Z"])
    ]
    source: Annotated[Source, Field(examples=["webhook"])]
    delivery_id: Annotated[
        UUID | None, Field(description="The callback it came by", examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"])
    ]
    action_inferred: Annotated[
        bool,
        Field(description="No action word was found; it follows from whether the entity was known", examples=[False]),
    ]
    stale: Annotated[
        bool, Field(description="Older than what was known; it did not move the entity's state", examples=[False])
    ]
    data: Annotated[
        Any,
        Field(
            description="The entity as it came, or null",
            examples=[{"id": 1001, "name": "Kettle", "price": 49.0}],
        ),
    ]
    changed: Annotated[list[str], Field(description="The top-level names in `changes`", examples=[["price"]])]
    changes: Annotated[
        list[Change],
        Field(
            description="Empty for a create, a delete, or where either side has no data",
            examples=[[{"op": "replace", "path": "/price", "from": 52.0, "to": 49.0}]],
        ),
    ]


class EventPage(BaseModel):
    """One page of events, oldest first."""

    model_config = ConfigDict(frozen=True)

    events: list[Event]
    after: Annotated[int, Field(description="The position to go on from", examples=[1042])]
    has_more: Annotated[bool, Field(description="Whether more such events exist now", examples=[False])]
