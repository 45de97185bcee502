"""Group commit: one writer per process, many callers, one transaction for all that wait.

A caller is answered only after its own commit. A batch grows only while the one before it is being committed, so a lone
callback is written at once. The queue is bounded: what cannot wait is refused, because Jasper will send it again. A row
that Postgres refuses is written alone, as a quarantined delivery if need be, and cannot fail its neighbours.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from types import TracebackType
from typing import Self, TypeVar

import asyncpg
from msgspec import Struct
from msgspec.structs import replace

from app.db.engine import CONNECT_TIMEOUT, PLANNED_ONCE, UNREACHABLE, connect
from app.domain.values import Entry, Receipt, Unreadable
from app.errors import DatabaseUnavailableError, DrainingError, QueueFullError, UnavailableError
from app.ledger.append import LOCK, append
from app.metrics import BATCH_ENTRIES, COMMIT_FAILURES, COMMIT_SECONDS
from app.tracing import traced

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_ABOUT_THE_ROW = {"22", "23", "54"}
"""SQLSTATE classes that mean that the row is at fault, not the moment: data, integrity, program limit
(PostgreSQL manual, appendix A)."""

_ABOUT_THE_TABLES = {"23502", "23505"}
"""Two of these that no callback can cause, a missing value and a number or key that is taken: the tables are of a newer
version, or were changed by hand. So it has to come again, and is not kept as one that cannot be read."""


_READ_ONLY = "25006"
"""What a server answers that takes no writes any more: the connection leads to the wrong one, whatever it was."""

HEARTBEAT = 30.0
_HEARTBEAT_PATIENCE = 1.0
"""Seconds after which an idle connection is looked at, and within which it has to answer."""

_TURNS = 16
"""Turns of the event loop in which the callers of a batch are answered."""


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """How many may wait and how much goes into one transaction. Bytes are those of the bodies, times are in seconds.

    How many bytes may wait is bounded where bodies are read (`app.intake.body`).

    `patience` is how long a caller waits for its commit before it is told to come again: Jasper's own time-out is not
    documented and may be as short as 3 s, and an answer after that is never heard.
    """

    queue_rows: int = 4_000
    batch_rows: int = 500
    batch_bytes: int = 8 * 1024 * 1024
    patience: float = 2.5
    drain: float = 10.0


class _Waiting(Struct, eq=False):
    """One caller; `deadline` is on the loop's clock."""

    entry: Entry
    size: int
    answer: asyncio.Future[Receipt]
    deadline: float


class Writer:
    """The one door to the ledger for a process; an async context manager that drains when it is left."""

    def __init__(self, dsn: str, limits: WriterLimits | None = None) -> None:
        self._dsn = dsn
        self._limits = limits or WriterLimits()
        self._queue: deque[_Waiting] = deque()
        self._under_way: list[_Waiting] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._draining = False
        self._connection: asyncpg.Connection | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start writing."""
        self._task = asyncio.create_task(self._run(), name="ledger-writer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse what is new, commit what waits, let go of the connection."""
        self._draining = True
        self._wake.set()
        if self._task is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._task, self._limits.drain)
        self._refuse_all(DrainingError("the service is shutting down"))
        await self._drop_connection()

    @property
    def alive(self) -> bool:
        """Whether there is a writer at work."""
        return self._task is not None and not self._task.done()

    @property
    def queued(self) -> int:
        """How many callers wait for a batch to take them."""
        return len(self._queue)

    @property
    def has_place(self) -> bool:
        """Whether another caller may wait now."""
        return self.alive and not self._draining and len(self._queue) < self._limits.queue_rows

    async def commit(self, entry: Entry) -> Receipt:
        """Write one entry; returns once it is committed.

        Raises QueueFullError, DrainingError or DatabaseUnavailableError where it was not, or where that is not known.
        """
        return await self.submit(entry)

    def submit(self, entry: Entry) -> asyncio.Future[Receipt]:
        """The same for who does not wait here: what `commit` raises later is the future's.

        Raises QueueFullError or DrainingError where the entry cannot even wait.
        """
        size = len(entry.delivery.body) if entry.delivery else 0
        if self._draining or not self.alive:
            raise DrainingError("the service is shutting down")
        if len(self._queue) >= self._limits.queue_rows:
            raise QueueFullError(f"{len(self._queue)} callbacks wait for their commit already")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(entry, size, loop.create_future(), loop.time() + self._limits.patience)
        self._queue.append(waiting)
        self._wake.set()
        if self._alarm is None:
            self._alarm = loop.call_at(waiting.deadline, self._give_up_on_late_ones)
        return waiting.answer

    def _give_up_on_late_ones(self) -> None:
        """Tell callers whose patience has run out to come again.

        One alarm for all, set for the oldest: it rings once in a while, where a timer each would be set and cancelled
        for every callback.
        """
        self._alarm = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for waiting in chain(self._under_way, self._queue):  # in the order in which they came
            if waiting.answer.done():
                continue
            if waiting.deadline > now:
                self._alarm = loop.call_at(waiting.deadline, self._give_up_on_late_ones)
                break
            reason = f"Postgres did not commit within {self._limits.patience} s"
            _fail(waiting, DatabaseUnavailableError(reason, retry_after=10))
        # Who was told gives its room back, so its body must not stay here until the batch in front of it has ended.
        while self._queue and self._queue[0].answer.done():
            self._queue.popleft()

    async def _run(self) -> None:
        try:
            while True:
                if not self._queue:
                    if self._draining:
                        return
                    await self._wait_for_work()
                    continue
                self._under_way = self._take()
                await self._write(self._under_way)
                self._under_way = []
        finally:
            self._refuse_all(DrainingError("the writer has stopped"))

    async def _wait_for_work(self) -> None:
        """Wait until something is queued or the writer ends, and see to it meanwhile that the connection leads somewhere.

        What stands between may forget an idle connection without a word; then the next callback would wait for nobody.
        """
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT):
                await self._wake.wait()
                return
        if self._connection is not None:
            try:
                async with asyncio.timeout(_HEARTBEAT_PATIENCE):
                    await self._connection.execute("SELECT 1")
            except (asyncpg.PostgresError, *UNREACHABLE) as exc:
                _log.warning("the idle connection of the ledger was lost", extra={"reason": _describe(exc)})
                await self._drop_connection()

    def _take(self) -> list[_Waiting]:
        """The next batch; callers that gave up waiting have been told to come again and are left out."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue and len(batch) < self._limits.batch_rows:
            if batch and size + self._queue[0].size > self._limits.batch_bytes:
                break
            waiting = self._queue.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
                size += waiting.size
        return batch

    async def _write(self, batch: list[_Waiting]) -> None:
        """Commit a batch and answer its callers, whatever happens."""
        started = perf_counter()
        try:
            receipts = await self._commit([waiting.entry for waiting in batch])
        except UnavailableError as exc:
            COMMIT_FAILURES.inc()
            _log.warning("batch not committed", extra={"rows": len(batch), "reason": str(exc)})
            for waiting in batch:
                _fail(waiting, exc)
        except Exception as exc:  # noqa: BLE001 - one row's fault, of whatever kind, must not fail its neighbours
            await self._write_alone(batch, exc)
        else:
            COMMIT_SECONDS.observe(perf_counter() - started)
            BATCH_ENTRIES.observe(len(batch))
            _answer(deque(zip(batch, receipts, strict=True)), at_once=math.ceil(len(batch) / _TURNS))

    async def _write_alone(self, batch: list[_Waiting], cause: Exception) -> None:
        """Find the row at fault: write each alone, and the one that still fails as a quarantined delivery."""
        if len(batch) > 1:
            for waiting in batch:
                await self._write([waiting])
            return
        [waiting] = batch
        if isinstance(waiting.entry.reading, Unreadable) or _sqlstate(cause) in _ABOUT_THE_TABLES:
            _log.error("delivery could not be kept", extra={"reason": _describe(cause)})
            _fail(waiting, DatabaseUnavailableError("the delivery could not be kept", retry_after=60))
            return
        _log.error("event could not be written, delivery quarantined", extra={"reason": _describe(cause)})
        unreadable = Unreadable(f"the event could not be written: {_describe(cause)}", waiting.entry.reading.places)
        waiting.entry = replace(waiting.entry, reading=unreadable)
        await self._write([waiting])

    @traced(
        "commit",
        links=lambda _, entries: (entry.delivery.traceparent for entry in entries if entry.delivery),
        attributes=lambda _, entries: {"jasper_receiver.entries": len(entries)},
    )
    async def _commit(self, entries: list[Entry]) -> list[Receipt]:
        """One transaction, tried again once on a fresh connection where the old one broke before the commit.

        Raises DatabaseUnavailableError, also where the connection broke in the commit and nobody knows how it ended.
        """
        if not entries:
            return []
        size = sum(len(entry.delivery.body) for entry in entries if entry.delivery)
        within = self._limits.patience + CONNECT_TIMEOUT + size / _SLOWEST
        try:
            connection, receipts = await self._prepare(entries, within)
        except _BrokenError:
            await self._drop_connection()
            try:
                connection, receipts = await self._prepare(entries, within)
            except _BrokenError as exc:
                await self._drop_connection()
                raise DatabaseUnavailableError("Postgres went away before the commit") from exc
        try:
            await _translated(lambda: connection.execute("COMMIT"), within)
        except _BrokenError as exc:
            await self._drop_connection()
            raise DatabaseUnavailableError("Postgres went away in the commit") from exc
        except asyncpg.PostgresError as exc:  # of whatever class: every row had been taken by then
            raise DatabaseUnavailableError(f"Postgres did not commit ({_describe(exc)})") from exc
        return receipts

    async def _prepare(self, entries: list[Entry], within: float) -> tuple[asyncpg.Connection, list[Receipt]]:
        """Everything up to the commit, each step within so many seconds. Raises _BrokenError where the connection broke."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await _translated(self._open_connection, within)
        connection = self._connection
        try:
            await _translated(lambda: connection.execute(f"BEGIN; {LOCK}"), within)
            return connection, await _translated(lambda: append(connection, entries), within)
        except _BrokenError:  # maybe one that does not answer, and would not to a ROLLBACK
            raise
        except Exception as exc:
            if connection.is_closed():  # whatever it looks like, the row is not at fault
                raise _BrokenError from exc
            with suppress(Exception):
                await connection.execute("ROLLBACK", timeout=within)
            raise

    async def _open_connection(self) -> asyncpg.Connection:
        connection = await open_ledger_connection(self._dsn, patience=self._limits.patience)
        await connection.execute(PLANNED_ONCE)
        return connection

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                await connection.close(timeout=1)

    def _refuse_all(self, error: UnavailableError) -> None:
        while self._queue:
            _fail(self._queue.popleft(), error)


class _BrokenError(Exception):
    """The connection to Postgres broke."""


_IDLE = 20.0
"""Seconds without a statement after which Postgres ends a transaction: the feed's lock must not be held by a process, or a
machine, that stands still. The most costly body takes some seconds of work between two statements, more on a busy machine."""

_SLOWEST = 200_000
"""Bytes of a batch for which a second more is allowed: the most costly body (5 MB of nothing but names, each of them indexed)
takes Postgres two seconds, and the process a few, where the machine has nothing else to do. Given up too early it would come
again, and never be written."""


async def open_ledger_connection(dsn: str, *, patience: float) -> asyncpg.Connection:
    """A connection to write the ledger with: its commits are durable, and locks are waited for `patience` seconds at most.

    Raises DatabaseUnavailableError.
    """
    connection = await connect(dsn, application_name="jasper-receiver ledger", idle_in_transaction=_IDLE)
    await connection.execute(f"SET lock_timeout = {int(patience * 1000)}")
    # Whatever an administrator made the default: who waited for the feed's lock has to see what was committed meanwhile.
    await connection.execute("SET default_transaction_isolation = 'read committed'")
    if await connection.fetchval("SHOW synchronous_commit") == "off":
        await connection.execute("SET synchronous_commit = on")
    return connection


async def _translated(work: Callable[[], Awaitable[_T]], within: float) -> _T:
    """Run `work`; trouble of the moment becomes DatabaseUnavailableError or _BrokenError, a fault of the row stays.

    Whoever does not answer within so many seconds is taken for gone: _BrokenError.
    """
    try:
        async with asyncio.timeout(within):
            return await work()
    except UNREACHABLE as exc:
        if isinstance(exc, ValueError):  # a value that the driver refuses; by descent one of its connection errors
            raise
        raise _BrokenError from exc
    except asyncpg.PostgresError as exc:
        if _sqlstate(exc)[:2] in _ABOUT_THE_ROW:
            raise
        if _sqlstate(exc) == _READ_ONLY:
            raise _BrokenError from exc
        raise DatabaseUnavailableError(f"Postgres cannot write now ({_describe(exc)})") from exc


def _answer(committed: deque[tuple[_Waiting, Receipt]], at_once: int) -> None:
    """Answer `at_once` of the callers, and the others in the next turns of the loop.

    Answered all at once, they would all come back at once: then they are read while Postgres has nothing to do, and the
    process has nothing to do while Postgres writes them. Answered bit by bit, they are read while the next batch is written
    (`docs/performance.md`).
    """
    for _ in range(min(at_once, len(committed))):
        waiting, receipt = committed.popleft()
        if not waiting.answer.done():
            waiting.answer.set_result(receipt)
    if committed:
        asyncio.get_running_loop().call_soon(_answer, committed, at_once)


def _fail(waiting: _Waiting, error: UnavailableError) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _sqlstate(error: Exception) -> str:
    return getattr(error, "sqlstate", None) or ""


def _describe(error: Exception) -> str:
    """The kind of an error, without its message, which may quote the row."""
    return f"{type(error).__name__}, SQLSTATE {_sqlstate(error)}" if _sqlstate(error) else type(error).__name__
