"""The live feed: the newest events that pass the filters, and a stream of those that come.

A look back and a search are bounded and tell how far they went. The stream sends rows that are rendered here rather than
whole events: a payload may have megabytes, and a list shows only what changed.
"""

import asyncio
from collections.abc import AsyncIterator

import msgspec
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request
from starlette.responses import Response

from app.clock import utc_now
from app.dashboard import queries
from app.dashboard.pages import Visit, fragment
from app.dashboard.parameters import last_event_id, position
from app.db.engine import reading
from app.db.wakeup import Wakeup
from app.domain.values import Action, EntityType
from app.errors import DatabaseUnavailableError, InvalidParametersError
from app.feed import queries as events
from app.feed.filters import Filters
from app.feed.stream import EventStream, Streams
from app.paging import is_storable

_ROWS = 50
_LONGEST_SEARCH = 200

_STEP = 200
"""Numbers of the feed that a stream goes over at a time."""

_POLL = 2.0
_KEEP_ALIVE = 15.0
_SESSION_CHECK = 30.0
_LIFE = 600.0
"""Seconds, all; what they are for stands in `app.feed.stream`."""


async def show_feed(visit: Visit) -> Response:
    """The newest events, and older ones behind `before`."""
    filters, wanted = _asked(visit.request)
    before = position(visit.request, "before")
    async with reading(visit.engine) as connection:
        head, oldest = await events.head(connection), await events.oldest_after(connection)
        found = await queries.look_back(
            connection, filters, wanted, after=oldest, before=head if before is None else min(before, head), limit=_ROWS
        )
    return visit.show(
        "feed.html",
        found=found,
        head=head,
        oldest=oldest,
        is_newest=before is None,
        is_removed=before is not None and before <= oldest,
        filters=filters,
        wanted=wanted,
        entity_types=list(EntityType),
        actions=list(Action),
        examined=queries.EXAMINED,
        searched_bytes=queries.SEARCHED_BYTES,
    )


async def stream_feed(visit: Visit) -> Response:
    """Rows for the events behind `after` (or the browser's `Last-Event-ID`), as they come, for some minutes."""
    filters, wanted = _asked(visit.request)
    last = last_event_id(visit.request)
    after = position(visit.request, "after") or 0 if last is None else last
    pieces = _held(visit, filters, wanted, after)
    return EventStream(await anext(pieces), pieces)


async def _held(visit: Visit, filters: Filters, wanted: str, after: int) -> AsyncIterator[bytes]:
    """The pieces of a stream, which holds one of the process's places while it is open."""
    streams: Streams = visit.request.state.streams
    with streams.place():
        async for piece in _follow(visit, filters, wanted, after):
            yield piece


async def _follow(visit: Visit, filters: Filters, wanted: str, after: int) -> AsyncIterator[bytes]:
    wakeup: Wakeup = visit.request.state.wakeup
    clock = asyncio.get_running_loop().time
    ends, next_check, spoke = clock() + _LIFE, clock() + _SESSION_CHECK, clock()
    yield b"retry: 2000\nid: %d\nevent: position\ndata: %d\n\n" % (after, after)
    while clock() < ends and not wakeup.draining:
        generation = wakeup.generation
        try:
            if clock() >= next_check:
                if await visit.sessions.find(visit.request, utc_now()) is None:
                    return
                next_check = clock() + _SESSION_CHECK
            piece, reached, is_at_head = await _next(visit.engine, filters, wanted, after)
        except DatabaseUnavailableError:
            piece, reached, is_at_head = b"", after, True
        if reached > after:
            after = reached
            yield piece + b"id: %d\nevent: position\ndata: %d\n\n" % (after, after)
            spoke = clock()
        elif clock() - spoke > _KEEP_ALIVE - _POLL:
            yield b":\n\n"
            spoke = clock()
        if is_at_head:
            await wakeup.wait(generation, timeout=_POLL)


async def _next(engine: AsyncEngine, filters: Filters, wanted: str, after: int) -> tuple[bytes, int, bool]:
    """Rows for what follows `after`, up to where that is, and whether it is the head of the feed.

    Where retention has removed some of it meanwhile, one row that says so.
    """
    async with reading(engine) as connection:
        head, oldest = await events.head(connection), await events.oldest_after(connection)
        if after < oldest:
            return _row(fragment("_gap.html", after=after, oldest=oldest)), oldest, False
        reached = max(after, min(head, after + _STEP))
        found = await queries.next_events(connection, filters, wanted, after=after, upto=reached)
    rows = []
    for event in found:
        rows.append(_row(fragment("_event.html", event=event)))
        await asyncio.sleep(0)  # all of them together take a tenth of a second, for which callbacks would wait
    return b"".join(rows), reached, reached >= head


def _row(text: str) -> bytes:
    """As JSON, in which a line end cannot end the field."""
    return b"event: row\ndata: %b\n\n" % msgspec.json.encode(text)


def _asked(request: Request) -> tuple[Filters, str]:
    """The filters and the text of the form; empty fields ask for nothing. Raises InvalidParametersError."""
    query = request.query_params
    given: dict[str, object] = {
        name: [one] for name in ("entity_type", "action", "entity_id") if (one := query.get(name))
    }
    if names := query.get("changed"):
        given["changed"] = [name.strip() for name in names.split(",") if name.strip()]
    if query.get("include_stale") == "true":
        given["include_stale"] = True
    wanted = query.get("q", "").strip()
    if len(wanted) > _LONGEST_SEARCH or not is_storable(wanted):
        raise InvalidParametersError([{"parameter": "q", "detail": f"must have at most {_LONGEST_SEARCH} characters"}])
    try:
        return Filters.model_validate(given), wanted
    except ValidationError as exc:
        raise InvalidParametersError(
            [{"parameter": str(error["loc"][0]), "detail": error["msg"]} for error in exc.errors()]
        ) from exc
