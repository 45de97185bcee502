"""What readers of deliveries get: records that are written as they are, and models that describe them.

As in `app.feed.schemas`; `headers` and `reading` are written as the JSON text that was stored.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from app.domain.values import DeliveryStatus, EntityType


class DeliverySummaryRecord(msgspec.Struct, frozen=True):
    """One delivery in a list, without what may be long."""

    id: UUID
    entity_type: str
    status: str
    received_at: datetime
    client: str
    proof: str
    size: int
    reason: str | None
    event_id: UUID | None
    duplicate_of: UUID | None


class DeliveryRecord(DeliverySummaryRecord, frozen=True):
    """One delivery as it is written."""

    traceparent: str | None
    reading: msgspec.Raw
    headers: msgspec.Raw
    body: str
    body_encoding: str


class DeliveryPageRecord(msgspec.Struct, frozen=True):
    """One page of deliveries as it is written."""

    deliveries: list[DeliverySummaryRecord]
    after: UUID | None
    has_more: bool


class DeliverySummary(BaseModel):
    """One authentic callback."""

    model_config = ConfigDict(frozen=True)

    id: Annotated[UUID, Field(examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"])]
    entity_type: Annotated[EntityType, Field(examples=["product"])]
    status: Annotated[DeliveryStatus, Field(description="What came of it", examples=["accepted"])]
    received_at: Annotated[datetime, Field(examples=["2026-11-23T10:00:01.250000Z"])]
    client: Annotated[str, Field(description="The address it came from", examples=["203.0.113.7"])]
    proof: Annotated[str, Field(description="Where the secret was proven", examples=["header:signature"])]
    size: Annotated[int, Field(description="Bytes of its body", examples=[3120])]
    reason: Annotated[
        str | None, Field(description="Why it was quarantined, or in what way it is a duplicate", examples=[None])
    ]
    event_id: Annotated[
        UUID | None,
        Field(
            description="Its event, while that is kept; of a duplicate: the original's",
            examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11"],
        ),
    ]
    duplicate_of: Annotated[UUID | None, Field(description="The delivery that it repeats", examples=[None])]


class Delivery(DeliverySummary):
    """One authentic callback as it came, secrets blanked."""

    traceparent: Annotated[
        str | None,
        Field(
            description="The trace that it belongs to (W3C Trace Context), where its sender named one or traces are made",
            examples=["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
        ),
    ]
    reading: Annotated[
        dict[str, str],
        Field(
            description="The place that gave the proof and each part of the event",
            examples=[{"proof": "header:signature", "action": "/event", "entity_id": "/data/id", "data": "/data"}],
        ),
    ]
    headers: Annotated[
        list[tuple[str, str]],
        Field(description="In the order they came", examples=[[["host", "receiver.example.com"]]]),
    ]
    body: Annotated[
        str,
        Field(
            description="As it came",
            examples=['{"event": "product.updated", "data": {"id": 1001, "price": 49.0}}'],
        ),
    ]
    body_encoding: Annotated[
        Literal["utf-8", "base64"], Field(description="`base64` where the body is no UTF-8", examples=["utf-8"])
    ]


class DeliveryPage(BaseModel):
    """One page of deliveries, oldest first."""

    model_config = ConfigDict(frozen=True)

    deliveries: list[DeliverySummary]
    after: Annotated[
        UUID | None,
        Field(
            description="The id to go on from: the last one here, or what was asked for where there is none",
            examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"],
        ),
    ]
    has_more: Annotated[bool, Field(description="Whether more deliveries follow", examples=[False])]
