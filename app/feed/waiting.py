"""Holds a reader until there is something for it (`wait=`), without a database connection while it waits."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import Request

from app.db.engine import reading
from app.db.wakeup import Wakeup
from app.errors import LeasedError
from app.feed import queries
from app.feed.filters import Filters
from app.feed.schemas import EventPageRecord, WrittenEventPageRecord

_POLL = 2.0
"""Seconds after which a waiter looks again, even unasked: a notification is a hint that may have been lost, and nobody notifies
of a lease that was given back."""

_APART = 0.25
"""Seconds between two looks of a waiter that was woken for nothing: every commit wakes all, and few events may be theirs."""

_MOST_WAITING = 1000


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

    Ends early when the caller hangs up, so that nothing is taken for who is gone, or when the process drains. What `look`
    raises ends it too, but for LeasedError, which is raised in the end where it still holds. Raises UnavailableError where
    too many wait.
    """
    wakeup: Wakeup = request.state.wakeup
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait
    in_vain = 0
    while True:
        generation, begun = wakeup.generation, clock()
        refusal: LeasedError | None = None
        try:
            if await look():
                return
        except LeasedError as exc:
            refusal = exc
        left = deadline - clock()
        if left <= 0 or wakeup.draining or await request.is_disconnected():
            break
        with wakeup.waiting.one(_MOST_WAITING, f"{_MOST_WAITING} readers wait already; ask again, or without wait="):
            if refusal is not None:  # whatever is committed, the page is another's
                await wakeup.rest(min(left, _POLL, refusal.retry_after))
            else:
                await wakeup.wait(generation, timeout=min(left, _POLL))
                if in_vain:
                    await wakeup.rest(min(begun + _APART, deadline) - clock())
                in_vain += 1
        if await request.is_disconnected():
            break
    if refusal is not None:
        raise refusal
