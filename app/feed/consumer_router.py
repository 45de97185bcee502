"""`/v1/consumers`: named positions in the feed, their pages, acks, leases and parked events."""

import re
from datetime import timedelta
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import Field

from app.access.dependencies import ReadKey, WriteKey, lacking
from app.access.keys import Scope
from app.errors import (
    BodyTooLargeError,
    ConflictError,
    DatabaseUnavailableError,
    GoneError,
    InvalidParametersError,
    KeyMissingError,
    LeasedError,
    NotFoundError,
    RequestTimeoutError,
    ScopeMissingError,
)
from app.feed import consumers
from app.feed.consumer_schemas import (
    Ack,
    Consumer,
    ConsumerList,
    ConsumerPage,
    ConsumerStart,
    Park,
    ParkedEvent,
    ParkedList,
)
from app.feed.consumers import Look
from app.feed.filters import Filters
from app.feed.waiting import look_until_there
from app.paging import Lease, NoParameters, Page, Wait, described_body, read_body, read_query
from app.problems import documented
from app.settings import Settings

router = APIRouter(prefix="/v1/consumers", tags=["consumers"])

_ERRORS = (KeyMissingError, ScopeMissingError, InvalidParametersError, DatabaseUnavailableError)
_WRITE_ERRORS = (KeyMissingError, lacking(Scope.WRITE), InvalidParametersError, DatabaseUnavailableError)
_UNKNOWN = NotFoundError("there is no consumer search; create it with PUT")
_NOT_PARKED = NotFoundError("no consumer search has parked event number 1042")
_BODY_ERRORS = (BodyTooLargeError, RequestTimeoutError)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


async def _consumer_name(
    name: Annotated[
        str,
        Path(
            description="The consumer's name: letters, digits, `.`, `_`, `-`, at most 100, not a sign at the beginning",
            examples=["search"],
            json_schema_extra={"pattern": f"^{_NAME.pattern}$"},
        ),
    ],
) -> str:
    """A name that a consumer may have. Raises InvalidParametersError."""
    if not _NAME.fullmatch(name):
        detail = "must have 1 to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit"
        raise InvalidParametersError([{"parameter": "name", "detail": detail}])
    return name


ConsumerName = Annotated[str, Depends(_consumer_name)]
"""Stands behind the key in a signature."""


def _kept_for(request: Request) -> timedelta | None:
    """For how long this process keeps events."""
    settings: Settings = request.state.settings
    return settings.event_retention


class ConsumerPageParameters(Filters, Page):
    """What `GET /v1/consumers/{name}/events` takes."""

    wait: Wait = Field(0, description="Seconds to hold the request until there is an event to have", examples=[30])
    lease: Lease | None = Field(
        None,
        description="Seconds for which the page shall be this caller's alone. Needs the scope `write` too",
        examples=[60],
    )


@router.get(
    "",
    operation_id="listConsumers",
    summary="All consumers and how far they are behind",
    responses=documented(*_ERRORS),
)
async def list_consumers(request: Request, _key: ReadKey, _none: NoParameters) -> ConsumerList:
    """Every consumer, by name. There are at most 1000."""
    return ConsumerList(consumers=await consumers.listed(request.state.engine, kept_for=_kept_for(request)))


@router.put(
    "/{name}",
    operation_id="putConsumer",
    summary="Create a consumer, or move it",
    responses={
        201: {"model": Consumer, "description": "Created"},
        **documented(*_WRITE_ERRORS, *_BODY_ERRORS, ConflictError, GoneError),
    },
    openapi_extra=described_body(ConsumerStart, required=False),
)
async def put_consumer(
    request: Request,
    response: Response,
    _key: WriteKey,
    name: ConsumerName,
    _none: NoParameters,
    given: Annotated[ConsumerStart, Depends(read_body(ConsumerStart))],
) -> Consumer:
    """Create the consumer at `start`, or move an existing one there: back to read again, or forward to skip.

    Without a `start` (or a body) a new consumer begins with the oldest event, and an existing one stays where it is, so that
    a service may send this whenever it starts. A move ends a lease that somebody holds. A position from which events have
    been removed is 410 with `oldest_after`, the lowest there may be.
    """
    consumer, is_new = await consumers.put(request.state.engine, name, given.start, kept_for=_kept_for(request))
    response.status_code = 201 if is_new else 200
    return consumer


@router.get(
    "/{name}",
    operation_id="getConsumer",
    summary="One consumer",
    responses=documented(*_ERRORS, _UNKNOWN),
)
async def get_consumer(request: Request, _key: ReadKey, name: ConsumerName, _none: NoParameters) -> Consumer:
    """Where the consumer stands, and how far that is behind the feed."""
    return await consumers.one(request.state.engine, name, kept_for=_kept_for(request))


@router.delete(
    "/{name}",
    operation_id="deleteConsumer",
    summary="Forget a consumer",
    status_code=204,
    responses=documented(*_WRITE_ERRORS, _UNKNOWN),
)
async def delete_consumer(request: Request, _key: WriteKey, name: ConsumerName, _none: NoParameters) -> None:
    """Forget the position and the list of parked events. No event is touched."""
    await consumers.remove(request.state.engine, name)


@router.get(
    "/{name}/events",
    operation_id="listConsumerEvents",
    summary="The page behind a consumer's position",
    response_model=ConsumerPage,
    responses=documented(*_ERRORS, _UNKNOWN, LeasedError, GoneError),
)
async def list_consumer_events(
    request: Request,
    key: ReadKey,
    name: ConsumerName,
    query: Annotated[ConsumerPageParameters, Depends(read_query(ConsumerPageParameters))],
) -> Response:
    """The next events, without those that are parked. The position stays where it is until `after` is acknowledged.

    With `lease` the page is this caller's alone: everybody else gets 409, with the seconds left in `Retry-After`, until it
    is acknowledged with its `lease_id` or the time is over. An empty page is not leased. With `wait` the answer comes as
    soon as there is an event, or within two seconds of when nobody else holds the page any more.

    410 with `oldest_after` says that the consumer is overtaken: events behind its position have been removed, as they were
    older than is kept. It stays so until it is moved on purpose, with a `start`.
    """
    if query.lease is not None and Scope.WRITE not in key.scopes:
        raise ScopeMissingError("a page with a lease needs a key with the scopes read and write")
    found: Look | None = None

    async def look() -> bool:
        nonlocal found
        found = await consumers.page(
            request.state.engine, name, query, limit=query.limit, lease=query.lease, before=found
        )
        return bool(found.page.events)

    await look_until_there(request, look, wait=query.wait)
    assert found is not None  # noqa: S101 - it was looked for once at least
    return Response(msgspec.json.encode(found.page), media_type="application/json")


@router.post(
    "/{name}/ack",
    operation_id="ackConsumer",
    summary="Move a consumer forward",
    responses=documented(*_WRITE_ERRORS, *_BODY_ERRORS, _UNKNOWN, ConflictError),
    openapi_extra=described_body(Ack),
)
async def ack_consumer(
    request: Request,
    _key: WriteKey,
    name: ConsumerName,
    _none: NoParameters,
    given: Annotated[Ack, Depends(read_body(Ack))],
) -> Consumer:
    """Everything up to `after` is done with. To say so twice is fine; backwards or past the end of the feed is 409.

    Of a leased page: with its `lease_id`, which ends the lease, unless `lease` keeps it for so many seconds more.
    """
    return await consumers.acknowledge(request.state.engine, name, given, kept_for=_kept_for(request))


@router.post(
    "/{name}/park",
    operation_id="parkEvent",
    summary="Set an event aside",
    responses=documented(*_WRITE_ERRORS, *_BODY_ERRORS, _UNKNOWN, ConflictError("there is no event number 1042")),
    openapi_extra=described_body(Park),
)
async def park_event(
    request: Request,
    key: WriteKey,
    name: ConsumerName,
    _none: NoParameters,
    given: Annotated[Park, Depends(read_body(Park))],
) -> ParkedEvent:
    """An event that cannot be handled is put on a list and comes in no page any more, so that it holds up nothing.

    To park it again changes nothing. A consumer may have 1000 parked events. What the event is about is told to a key that
    may read.
    """
    parked = await consumers.park(request.state.engine, name, given)
    if Scope.READ in key.scopes:
        return parked
    return parked.model_copy(update={"event_id": None, "entity_type": None, "entity_id": None})


@router.get(
    "/{name}/parked",
    operation_id="listParkedEvents",
    summary="The events that a consumer has set aside",
    responses=documented(*_ERRORS, _UNKNOWN),
)
async def list_parked_events(request: Request, _key: ReadKey, name: ConsumerName, _none: NoParameters) -> ParkedList:
    """In the order of the feed. Acks leave the list as it is."""
    return ParkedList(parked=await consumers.parked(request.state.engine, name))


@router.delete(
    "/{name}/parked/{sequence}",
    operation_id="unparkEvent",
    summary="Take an event off the list of parked ones",
    status_code=204,
    responses=documented(*_WRITE_ERRORS, _NOT_PARKED),
)
async def unpark_event(
    request: Request,
    _key: WriteKey,
    name: ConsumerName,
    _none: NoParameters,
    sequence: Annotated[int, Path(ge=1, le=2**63 - 1, description="The event's number", examples=[1042])],
) -> None:
    """It comes in the next page again if the position has not passed it yet; else it is just no longer on the list."""
    await consumers.unpark(request.state.engine, name, sequence)
