"""Holds a reader until there is something for it (`wait=`), without a database connection while it waits."""

import asyncio

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import reading
from app.db.wakeup import Wakeup
from app.feed import queries
from app.feed.filters import Filters
from app.feed.schemas import EventPageRecord

_POLL = 2.0
"""Seconds after which a waiter looks again, even unasked: a notification is a hint that may have been lost."""


async def page_when_there(
    request: Request, filters: Filters, *, after: int, limit: int, wait: float
) -> EventPageRecord:
    """The page behind `after`; where it is empty, the first one that is not, or the empty one after `wait` seconds.

    Ends early, with what there is, when the caller hangs up or the process drains.
    """
    engine: AsyncEngine = request.state.engine
    wakeup: Wakeup = request.state.wakeup
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait
    while True:
        generation = wakeup.generation
        async with reading(engine) as connection:
            page = await queries.page(connection, filters, after=after, limit=limit)
        left = deadline - clock()
        if page.events or left <= 0 or wakeup.draining or await request.is_disconnected():
            return page
        after = page.after
        await wakeup.wait(generation, timeout=min(left, _POLL))
