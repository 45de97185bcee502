"""`/v1/events`: parameters in, pages of the feed out."""

from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import Field

from app.access.dependencies import ReadKey
from app.db.engine import reading
from app.errors import (
    DatabaseUnavailableError,
    InvalidParametersError,
    KeyMissingError,
    NotFoundError,
    ScopeMissingError,
)
from app.feed import queries
from app.feed.filters import Filters
from app.feed.schemas import Event, EventPage
from app.feed.waiting import page_when_there
from app.paging import NoParameters, Page, Position, Wait, link_header, next_link, read_query
from app.problems import documented

router = APIRouter(prefix="/v1", tags=["feed"])

_READING_ERRORS = (KeyMissingError, ScopeMissingError, InvalidParametersError, DatabaseUnavailableError)


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
        200: {"headers": link_header("/v1/events?limit=100&after=1042")},
        **documented(*_READING_ERRORS),
    },
)
async def list_events(
    request: Request, _key: ReadKey, query: Annotated[EventListParameters, Depends(read_query(EventListParameters))]
) -> Response:
    """Events in the order of their sequence. Give the `after` of each answer to the next call, and nothing is missed.

    `after` is also past what the filters skipped, so that a rare filter never looks at the same events twice. With `wait`
    the answer comes as soon as there is an event, or empty when the time has run out.
    """
    page = await page_when_there(request, query, after=query.after or 0, limit=query.limit, wait=query.wait)
    headers = next_link(request, page.after) if page.has_more else {}
    return Response(msgspec.json.encode(page), media_type="application/json", headers=headers)


@router.get(
    "/events/{event_id}",
    operation_id="getEvent",
    summary="One event",
    response_model=Event,
    responses=documented(*_READING_ERRORS, NotFoundError),
)
async def get_event(
    request: Request,
    _key: ReadKey,
    event_id: Annotated[UUID, Path(description="The event's `id`", examples=["01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11"])],
    _none: NoParameters,
) -> Response:
    """The event with this id, as it stands in the feed."""
    async with reading(request.state.engine) as connection:
        event = await queries.one(connection, event_id)
    if event is None:
        raise NotFoundError("there is no event with this id")
    return Response(msgspec.json.encode(event), media_type="application/json")
