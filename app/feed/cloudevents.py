"""The same events in another envelope: CloudEvents 1.0, for whoever asks for it by `Accept`.

The envelope repeats what routers and brokers look at; its `data` is the event exactly as it is elsewhere. Standards: the
CloudEvents specification 1.0.2 with its JSON format and its extensions `sequence` and distributed tracing; RFC 9110, section
12, for `Accept`.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ARRAY, Uuid, any_, cast, select

from app.db.engine import reading
from app.db.tables import deliveries
from app.domain.values import EntityType
from app.errors import NotAcceptableError
from app.feed.schemas import Event, EventPageRecord, EventRecord, WrittenEventPageRecord
from app.paging import link_header, next_link

JSON = "application/json"
BATCH = "application/cloudevents-batch+json"
SINGLE = "application/cloudevents+json"

_VARY = {"Vary": "Accept"}
_DIGITS = 19
"""Those of the largest position, so that `sequence` sorts as text as it does as a number."""

_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class CloudEventRecord(msgspec.Struct, frozen=True):
    """One event in its envelope as it is written."""

    specversion: str
    id: UUID
    source: str
    type: str
    subject: str
    time: datetime
    sequence: str
    datacontenttype: str
    data: EventRecord
    traceparent: str | msgspec.UnsetType


class CloudEvent(BaseModel):
    """One event as a CloudEvent 1.0."""

    model_config = ConfigDict(frozen=True)

    specversion: Annotated[Literal["1.0"], Field(examples=["1.0"])]
    id: Annotated[UUID, Field(description="The event's `id`", examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11"])]
    source: Annotated[
        str, Field(description="The collection of the entity: ids are its own only there", examples=["/v1/products"])
    ]
    type: Annotated[str, Field(examples=["product.updated"])]
    subject: Annotated[str, Field(description="The entity's id", examples=["1001"])]
    time: Annotated[
        datetime,
        Field(description="`occurred_at` where that is known, else `received_at`", examples=["2026-11-23T10:00:00Z"]),
    ]
    sequence: Annotated[
        str,
        Field(
            pattern=f"^[0-9]{{{_DIGITS}}}$",
            description="The event's `sequence`, in digits that sort as text",
            examples=["0000000000000001042"],
        ),
    ]
    datacontenttype: Annotated[Literal["application/json"], Field(examples=["application/json"])]
    data: Annotated[Event, Field(description="The event as it is without this envelope")]
    traceparent: Annotated[
        str,
        Field(
            default_factory=str,  # a default that the document does not show
            description="The trace that its callback belongs to; missing where there is none, or the delivery is gone",
            examples=["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
        ),
    ]


def enveloped(event: EventRecord, traceparent: str | None = None) -> CloudEventRecord:
    """The event in its envelope, with the trace that it belongs to."""
    return CloudEventRecord(
        specversion="1.0",
        id=event.id,
        source=f"/v1/{EntityType(event.entity_type).collection}",
        type=event.type,
        subject=event.entity_id,
        time=event.occurred_at or event.received_at,
        sequence=f"{event.sequence:0{_DIGITS}}",
        datacontenttype=JSON,
        data=event,
        traceparent=msgspec.UNSET if traceparent is None else traceparent,
    )


async def _enveloped(request: Request, found: Sequence[EventRecord]) -> list[CloudEventRecord]:
    """The events in their envelopes. Their traces stand with their deliveries, which are only looked at here."""
    ids = [event.delivery_id for event in found if event.delivery_id]
    chosen = deliveries.c.id == any_(cast(ids, ARRAY(Uuid)))
    query = select(deliveries.c.id, deliveries.c.traceparent).where(chosen, deliveries.c.traceparent.is_not(None))
    traces: dict[UUID | None, str] = {}
    if ids:
        async with reading(request.state.engine) as connection:
            traces = {row.id: row.traceparent for row in await connection.execute(query)}
    return [enveloped(event, traces.get(event.delivery_id)) for event in found]


async def page_response(request: Request, page: EventPageRecord | WrittenEventPageRecord, media_type: str) -> Response:
    """The answer with a page of events; a batch, being a mere array, has its position in `Feed-Position`."""
    headers = _VARY | (next_link(request, page.after) if page.has_more else {})
    if media_type != BATCH or isinstance(page, WrittenEventPageRecord):
        return Response(msgspec.json.encode(page), media_type=media_type, headers=headers)
    batch = msgspec.json.encode(await _enveloped(request, page.events))
    return Response(batch, media_type=media_type, headers=headers | {"Feed-Position": str(page.after)})


async def event_response(request: Request, event: EventRecord, media_type: str) -> Response:
    """The answer with one event."""
    body = msgspec.json.encode(event if media_type != SINGLE else (await _enveloped(request, [event]))[0])
    return Response(body, media_type=media_type, headers=_VARY)


def not_acceptable(*offered: str) -> NotAcceptableError:
    """What is said to who accepts none of these."""
    return NotAcceptableError(f"nothing that is accepted can be sent; accept one of {', '.join(offered)}")


def _offering(*offered: str) -> Callable[[Request], Awaitable[str]]:
    async def choose(request: Request) -> str:
        chosen = best_of(offered, ",".join(request.headers.getlist("accept")))
        if chosen is None:
            raise not_acceptable(*offered)
        return chosen

    return choose


PageType = Annotated[str, Depends(_offering(JSON, BATCH))]
"""The media type to send a page of events in. In a route's signature it stands behind the query."""

EventType = Annotated[str, Depends(_offering(JSON, SINGLE))]
"""The media type to send one event in."""


def best_of(offered: tuple[str, ...], accept: str) -> str | None:
    """The offered media type that `Accept` likes best, the first of equals; None where it wants none of them.

    The most specific range that fits a type tells its quality. Parameters other than `q` are not looked at, and what
    cannot be read accepts nothing; no header at all accepts everything.
    """
    ranges: dict[str, float] = {}
    for one in filter(None, (part.strip() for part in accept.split(","))):
        name, *parameters = (part.strip().lower() for part in one.split(";"))
        given = next((value for value in parameters if value.startswith("q=")), "q=1").removeprefix("q=")
        quality = float(given) if _QUALITY.fullmatch(given) else 0.0
        ranges[name] = max(quality, ranges.get(name, 0.0))
    if not ranges:
        return offered[0]

    def liking(media_type: str) -> float:
        fitting = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
        return next((ranges[name] for name in fitting if name in ranges), 0.0)

    best = max(offered, key=liking)
    return best if liking(best) else None


def described_page(next_page: str) -> dict[str, Any]:
    """How a route that answers with `page_response` describes it in the OpenAPI document; `next_page` is an address."""
    return {
        "content": {BATCH: {"schema": {"type": "array", "items": _SCHEMA}}},
        "headers": {
            "Feed-Position": {
                "description": f"Only with `{BATCH}`: the position to go on from, the `after` of the next call",
                "schema": {"type": "integer"},
                "example": 1042,
            },
            **link_header(next_page),
        },
    }


def described_event() -> dict[str, Any]:
    """How a route that answers with `event_response` describes the CloudEvent."""
    return {"content": {SINGLE: {"schema": _SCHEMA}}}


def _schema() -> dict[str, Any]:
    schema = CloudEvent.model_json_schema(ref_template="#/components/schemas/{model}")
    del schema["$defs"]  # FastAPI has them from the models of the same routes
    return schema


_SCHEMA = _schema()
