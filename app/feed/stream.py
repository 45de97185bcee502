"""Server-Sent Events: catch up from the database, then wait for a wake-up or the clock.

A stream holds no connection to the database while it waits, and reads a small page only when the one before has been
taken by its reader, so that a slow reader costs little memory. Streams that stand at the head share one read: a commit
that wakes 500 of them is one query, not 500. Format: the HTML standard, section 9.2, Server-sent events.

Starlette sends; the little that a library would add on top is done here, because those there are do more than is wanted:
they run several tasks for each stream and encode each event for each reader anew, and one finds out about the end of the
process by replacing the server's handler of signals, while ours is told (`Wakeup.drain`).
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.db.engine import POOL_SIZE, reading
from app.db.wakeup import Places, Wakeup
from app.errors import DatabaseUnavailableError, GoneError
from app.feed import queries
from app.feed.filters import Filters
from app.feed.schemas import EventPageRecord, EventRecord

MEDIA_TYPE = "text/event-stream"

_MOST_STREAMS = 1000
"""Streams a process keeps open: each costs a socket and some memory, also where its reader is slow."""

_PAGE_EVENTS = 200
_PAGE_BYTES = 256 * 1024
"""What a stream takes from the database at a time, and so what a reader that has stopped reading keeps in memory."""

_READS = POOL_SIZE // 2
"""Connections that all streams of a process use at once, so that plain readers find some free."""

_POLL = 2.0
"""Seconds between looks, even unasked: a notification is a hint that may have been lost."""

_KEEP_ALIVE = 15.0
"""Seconds of silence that a comment breaks, so that nothing on the way takes the connection for dead."""

_KEY_CHECK = 30.0
"""Seconds after which the reader's key is checked again."""

_LIFE = (600.0, 900.0)
"""Seconds after which a stream ends itself; its reader comes back, perhaps to a replica that has less to do."""

_PATIENCE = 60.0
"""Seconds beyond its life for which a stream waits for a reader that takes nothing."""

_RETRY = (1000, 3000)
"""Milliseconds after which a reader is asked to come back: spread, so that those of a stopped process do not come at once."""

_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")
"""A line end would end the field. In JSON it can only be white space between tokens, where a space means the same."""

_ALL = Filters(include_stale=True)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What a stream at `begin` sends at a time: nothing, some events, or the position past what its filters skipped."""

    text: bytes
    begin: int
    after: int
    has_more: bool


@dataclass(frozen=True, slots=True)
class _Page:
    """A page and its events as streams tell them; for all streams that stand where it begins."""

    begin: int
    page: EventPageRecord
    texts: list[bytes]

    def piece(self, filters: Filters) -> _Piece:
        """What a stream sends of it."""
        told = self.begin
        chosen = []
        for event, text in zip(self.page.events, self.texts, strict=True):
            if filters.passes(event):
                told = event.sequence
                chosen.append(text)
        if self.page.after > told:
            chosen.append(b"id: %d\n\n" % self.page.after)
        return _Piece(b"".join(chosen), self.begin, self.page.after, self.page.has_more)


class Streams:
    """All streams of a process: how many there may be, and the reads that they share."""

    def __init__(self, engine: AsyncEngine, wakeup: Wakeup) -> None:
        self._engine = engine
        self._wakeup = wakeup
        self._places = Places()
        self._connections = asyncio.Semaphore(_READS)
        self._running: dict[tuple[int, int | None, Filters], asyncio.Task[_Page]] = {}

    def place(self) -> AbstractContextManager[None]:
        """One of the streams that may be open at once. Entering raises UnavailableError where there is none left."""
        refusal = f"{_MOST_STREAMS} streams are open already; read pages with wait= instead"
        return self._places.one(_MOST_STREAMS, refusal)

    async def follow(
        self, filters: Filters, *, after: int | None, still_allowed: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """The feed behind `after` as the text of a stream, for some minutes or until the process drains.

        None begins with the oldest kept. The first piece comes once the database was read; what is raised by then
        (DatabaseUnavailableError, GoneError) is the caller's to answer. From then on the stream waits while the database
        is away, and ends where retention overtook it: its reader comes back and meets the GoneError. `still_allowed` is
        asked now and then, and where it says no, the stream ends.
        """
        clock = asyncio.get_running_loop().time
        ends = clock() + random.uniform(*_LIFE)  # noqa: S311 - spreads load
        next_check = clock() + _KEY_CHECK
        generation = self._wakeup.generation
        piece = (await self._page(generation, filters, after)).piece(filters)
        yield b"retry: %d\nid: %d\n\n%b" % (random.randint(*_RETRY), piece.begin, piece.text)  # noqa: S311 - likewise
        spoke = clock()
        while clock() < ends and not self._wakeup.draining:
            if not piece.has_more:
                # All streams look at the same moments, so that one look serves them all.
                await self._wakeup.wait(generation, timeout=_POLL - clock() % _POLL)
            generation = self._wakeup.generation
            try:
                if clock() >= next_check:
                    if not await still_allowed():
                        return
                    next_check = clock() + _KEY_CHECK
                piece = await self._next(generation, filters, piece)
            except GoneError:
                return
            except DatabaseUnavailableError:  # tried again at the next look; the wake-up tells the log
                piece = _Piece(b"", piece.after, piece.after, has_more=False)
            if piece.text or clock() - spoke > _KEEP_ALIVE - _POLL:  # the next look would be too late
                yield piece.text or b":\n\n"
                spoke = clock()

    async def _next(self, generation: int, filters: Filters, before: _Piece) -> _Piece:
        """What follows `before`.

        While a stream catches up, its filters are the database's work. At the head few events are new, so all streams
        read them together and each picks its own: a commit costs one read, however many filters there are.
        """
        page = await self._page(generation, filters if before.has_more else _ALL, before.after)
        return page.piece(filters)

    async def _page(self, generation: int, filters: Filters, after: int | None) -> _Page:
        """A page of the feed; whoever asks for the same one while it is read gets the same.

        A read that began before some news is not shared with those who heard them: it may not have found them.
        """
        place = (generation, after, filters)
        task = self._running.get(place)
        if task is None:
            task = self._running[place] = asyncio.create_task(self._read(filters, after), name="stream read")
            task.add_done_callback(lambda _: self._running.pop(place))
        return await asyncio.shield(task)

    async def _read(self, filters: Filters, after: int | None) -> _Page:
        async with self._connections, reading(self._engine) as connection:
            begin = await queries.oldest_after(connection) if after is None else after
            page = await queries.page(connection, filters, after=begin, limit=_PAGE_EVENTS, most_bytes=_PAGE_BYTES)
        return _Page(begin, page, [_text(event) for event in page.events])


class EventStream(StreamingResponse):
    """The answer that sends a stream, piece by piece as its reader takes them; ends at once when the reader hangs up."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes]) -> None:
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # asks nginx to pass on each piece at once
        }
        super().__init__(_chain(first, rest), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a reader that has taken nothing for longer than any stream lives loses its place."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LIFE[1] + _PATIENCE):
                await super().__call__(scope, receive, send)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _text(event: EventRecord) -> bytes:
    data = msgspec.json.encode(event).translate(_ONE_LINE)
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.sequence, event.type.encode(), data)
