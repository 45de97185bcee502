"""`/v1/events`: parameters in, pages of the feed out."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Header, Path, Request, Response
from pydantic import Field, WithJsonSchema

from app.access.dependencies import ReadKey, still_allowed
from app.access.keys import Scope
from app.db.engine import reading
from app.errors import (
    DatabaseUnavailableError,
    GoneError,
    InvalidParametersError,
    KeyMissingError,
    NotAcceptableError,
    NotFoundError,
    ScopeMissingError,
    UnavailableError,
)
from app.feed import queries
from app.feed.cloudevents import (
    JSON,
    SINGLE,
    EventType,
    PageType,
    described_event,
    described_page,
    event_response,
    not_acceptable,
    page_response,
)
from app.feed.filters import Filters
from app.feed.schemas import Event, EventPage
from app.feed.stream import MEDIA_TYPE as EVENT_STREAM
from app.feed.stream import EventStream, Streams
from app.feed.waiting import page_when_there
from app.openapi import example_of_model
from app.paging import LAST_POSITION, NoParameters, Page, Position, Wait, read_query
from app.problems import documented

router = APIRouter(prefix="/v1", tags=["feed"])

PATH = "/v1/events"

_READING_ERRORS = (KeyMissingError, ScopeMissingError, InvalidParametersError, DatabaseUnavailableError)

_STREAM_EXAMPLE = f"""\
retry: 2000
id: 1041

id: 1042
event: product.updated
data: {msgspec.json.encode(example_of_model(Event)).decode()}

id: 1050

:

"""


class EventListParameters(Filters, Page):
    """What `GET /v1/events` takes."""

    after: Position | None = Field(
        None,
        description="Only events behind this position: the `after` of the page before. Missing: from the oldest kept",
        examples=[1041],
    )
    wait: Wait = Field(0, description="Seconds to hold the request until there is an event", examples=[30])


@router.get(
    "/events",
    operation_id="listEvents",
    summary="The feed of events, oldest first",
    response_model=EventPage,
    responses={
        200: described_page(f"{PATH}?limit=100&after=1042"),
        **documented(*_READING_ERRORS, GoneError, NotAcceptableError),
    },
)
async def list_events(
    request: Request,
    _key: ReadKey,
    query: Annotated[EventListParameters, Depends(read_query(EventListParameters))],
    media_type: PageType,
) -> Response:
    """Events in the order of their sequence. Give the `after` of each answer to the next call, and nothing is missed.

    `after` is also past what the filters skipped, so that a rare filter never looks at the same events twice. With `wait`
    the answer comes as soon as there is an event, or empty when the time has run out.

    Where events behind `after` have been removed because they are older than is kept, the answer is 410 with
    `oldest_after`, the lowest position behind which the feed is whole.
    """
    page = await page_when_there(
        request, query, after=query.after, limit=query.limit, wait=query.wait, written=media_type == JSON
    )
    return await page_response(request, page, media_type)


class StreamParameters(Filters):
    """What `GET /v1/events/stream` takes."""

    after: Position | None = Field(
        None, description="Only events behind this position. Missing: from the oldest kept", examples=[1041]
    )


async def _place(request: Request) -> AsyncIterator[None]:
    """A place among the open streams, kept until the answer has ended."""
    streams: Streams = request.state.streams
    with streams.place():
        yield


@router.get(
    "/events/stream",
    operation_id="streamEvents",
    summary="The feed of events, as they come",
    response_class=Response,
    responses={
        200: {
            "description": "Server-Sent Events, for some minutes",
            "content": {EVENT_STREAM: {"example": _STREAM_EXAMPLE}},
        },
        **documented(
            *_READING_ERRORS,
            GoneError,
            UnavailableError("1000 streams are open already; read pages with wait= instead"),
        ),
    },
)
async def stream_events(
    request: Request,
    _key: ReadKey,
    query: Annotated[StreamParameters, Depends(read_query(StreamParameters))],
    _open: Annotated[None, Depends(_place)],
    last_event_id: Annotated[
        Position | None,
        WithJsonSchema(
            {"type": "integer", "minimum": 0, "maximum": LAST_POSITION, "examples": [1041]}
        ),  # a header is never null
        Header(
            alias="Last-Event-ID",
            description="Only events behind this position, whatever `after` says: the last `id` that was received, which "
            "readers send by themselves when they come back",
            examples=[1041],
        ),
    ] = None,
) -> Response:
    """What is kept behind your position, then each event as it comes: `id` is its sequence, `event` its type, `data` all of it.

    An `id` without data carries your position past what the filters skipped. A comment is sent when nothing else was for
    15 seconds. The stream ends by itself now and then, and when the service stops: come back with the last `id` in
    `Last-Event-ID`, and nothing is missed. Where events behind that have been removed, the answer is 410 with
    `oldest_after`, as for pages.
    """
    streams: Streams = request.state.streams
    after = query.after if last_event_id is None else last_event_id
    filters = query.model_copy(update={"after": None})  # so that the same filters are equal, wherever a reader began
    pieces = streams.follow(filters, after=after, still_allowed=partial(still_allowed, request, Scope.READ))
    return EventStream(await anext(pieces), pieces)


@router.get(
    "/events/{event_id}",
    operation_id="getEvent",
    summary="One event",
    response_model=Event,
    responses={
        200: described_event(),
        **documented(
            *_READING_ERRORS,
            NotFoundError("there is no event with this id, or it is kept no longer"),
            not_acceptable(JSON, SINGLE),
        ),
    },
)
async def get_event(
    request: Request,
    _key: ReadKey,
    event_id: Annotated[UUID, Path(description="The event's `id`", examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11"])],
    _none: NoParameters,
    media_type: EventType,
) -> Response:
    """The event with this id, as it stands in the feed."""
    async with reading(request.state.engine) as connection:
        event = await queries.one(connection, event_id)
    if event is None:
        raise NotFoundError("there is no event with this id, or it is kept no longer")
    return await event_response(request, event, media_type)
