"""Wakes readers that wait for new events: one LISTEN connection a process, however many wait.

A hint, never the truth: a notification may be lost while the connection is, so whoever waits looks again after a while.
Nothing is kept per notification and nothing per waiter beyond its own task, so neither can grow.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

import asyncpg

from app.db.engine import UNREACHABLE, connect
from app.errors import DatabaseUnavailableError, UnavailableError

_log = logging.getLogger(__name__)

FEED_CHANNEL = "feed"
"""NOTIFY channel on which each commit of the ledger announces its newest position."""

_FIRST_DELAY = 0.25
_LONGEST_DELAY = 10.0
_HEARTBEAT = 30.0
"""Seconds between looks at an idle connection: one that died without a word would never notify again."""


class Places:
    """Counts those who are at something, so that no more are than may be."""

    def __init__(self) -> None:
        self.taken = 0

    @contextmanager
    def one(self, most: int, refusal: str) -> Iterator[None]:
        """One place out of `most`, until the block ends. Raises UnavailableError with `refusal` where all are taken."""
        if self.taken >= most:
            raise UnavailableError(refusal)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Wakeup:
    """Tells waiters that the feed may have grown.

    Read `generation` before looking into the database, and give it to `wait` if there was nothing: news that came in
    between then ends the wait at once, so none is missed. `waiting` counts those who hold a request meanwhile.
    """

    def __init__(self, dsn: str, *, heartbeat: float = _HEARTBEAT) -> None:
        self.generation = 0
        self.waiting = Places()
        self.draining = False
        self._drained = asyncio.Event()
        self._dsn = dsn
        self._heartbeat = heartbeat
        self._news = asyncio.Event()
        self._listening = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Start listening; whether Postgres can be reached shows later."""
        self._task = asyncio.create_task(self._listen(), name="wakeup")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let all waiters go and stop listening."""
        self.drain()
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def wait(self, seen: int, *, timeout: float) -> None:  # noqa: ASYNC109 - running out is an answer here
        """Wait until there was news after generation `seen`, the process drains, or `timeout` seconds have passed."""
        if self.generation != seen or self.draining:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._news.wait()

    async def rest(self, seconds: float) -> None:
        """Wait so many seconds, whatever is committed, or until the process drains; not at all where they are none."""
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._drained.wait()

    def drain(self) -> None:
        """End every wait, now and from now on, so that the process can finish its answers and stop."""
        self.draining = True
        self._drained.set()
        self._announce()

    async def listening(self) -> None:
        """Wait until notifications are being received."""
        await self._listening.wait()

    def _announce(self, *_: object) -> None:
        self.generation += 1
        self._news.set()
        self._news = asyncio.Event()

    async def _listen(self) -> None:
        """Keep one connection listening; a lost one is replaced, after growing pauses while there is none to be had."""
        delay = _FIRST_DELAY
        while True:
            try:
                connection = await connect(self._dsn, application_name="jasper-receiver wakeup")
                try:
                    lost = asyncio.Event()
                    connection.add_termination_listener(lambda _, lost=lost: lost.set())
                    await connection.add_listener(FEED_CHANNEL, self._announce)
                    self._announce()  # for what was committed while nobody listened
                    self._listening.set()
                    delay = _FIRST_DELAY
                    await self._watch(connection, lost)
                finally:
                    self._listening.clear()
                    connection.terminate()
            except (DatabaseUnavailableError, asyncpg.PostgresError, *UNREACHABLE) as exc:
                _log.warning("not listening for new events", extra={"reason": str(exc), "again_in": delay})
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    async def _watch(self, connection: asyncpg.Connection, lost: asyncio.Event) -> None:
        """Return, or raise what asyncpg raises, once the connection is gone."""
        while not lost.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat):
                    await lost.wait()
            if not lost.is_set():
                await connection.execute("SELECT 1")
