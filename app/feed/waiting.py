"""Holds a reader until there is something for it (`wait=`), without a database connection while it waits."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import Request

from app.db.engine import reading
from app.db.wakeup import Wakeup
from app.feed import queries
from app.feed.filters import Filters
from app.feed.schemas import EventPageRecord, WrittenEventPageRecord

_POLL = 2.0
"""Seconds after which a waiter looks again, even unasked: a notification is a hint that may have been lost."""


async def page_when_there(
    request: Request, filters: Filters, *, after: int | None, limit: int, wait: float, written: bool
) -> EventPageRecord | WrittenEventPageRecord:
    """The page behind `after`; where it is empty, the first one that is not, or the empty one after `wait` seconds.

    None begins with the oldest kept. Ends early, with what there is, when the caller hangs up or the process drains.
    `written` says that the events are only handed on, so that they may come as JSON. Raises GoneError where events behind
    `after` have been removed.
    """
    page: EventPageRecord | WrittenEventPageRecord | None = None

    async def look() -> bool:
        nonlocal page
        begin = page.after if page else after
        if filters.are_dense and written:
            page = await queries.page_of_all(request.state.lookups, filters, after=begin, limit=limit)
        else:
            async with reading(request.state.engine) as connection:
                page = await queries.page(connection, filters, after=begin, limit=limit)
        return bool(page.events)

    await look_until_there(request, look, wait=wait)
    assert page is not None  # noqa: S101 - it was looked for once at least
    return page


async def look_until_there(request: Request, look: Callable[[], Awaitable[bool]], *, wait: float) -> None:
    """Look once, and then whenever the feed may have grown, until `look` is satisfied or `wait` seconds have passed.

    Ends early when the caller hangs up or the process drains. What `look` raises ends it too.
    """
    wakeup: Wakeup = request.state.wakeup
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait
    while True:
        generation = wakeup.generation
        if await look():
            return
        left = deadline - clock()
        if left <= 0 or wakeup.draining or await request.is_disconnected():
            return
        await wakeup.wait(generation, timeout=min(left, _POLL))
