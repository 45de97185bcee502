"""The delivery of callbacks: one bounded pool of senders, time-outs, retries by policy, and a tally.

Documented by Jasper: the three policies, the minimum interval, the limit, and that an error answer is retried. Assumed:
that anything but a 2xx is an error (redirects too), that no answer in time is one, and that `exponential` doubles each
wait. First attempts start in the order in which callbacks were submitted; since several are under way at once, they may
still arrive in another one, as real webhooks do. Knows nothing of catalogues or payloads.
"""

import asyncio
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from app.simulator.payload import Message

RetryPolicy = Literal["no_retry", "linear", "exponential"]

# Enough of an answer to see what a receiver said.
_ANSWER_BYTES = 2048
_LONGEST_WAIT = 30 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Destination:
    """Where one attempt goes, and what it brings."""

    url: str
    message: Message


@dataclass(slots=True, kw_only=True)
class Callback:
    """One notification of one webhook, from its first attempt until it is answered with a 2xx or given up.

    `destination` is asked before each attempt and may say None: there is no longer anybody to call. Where overlap is
    off, callbacks with the same `order_key` are sent one after the other. `about` is for people: nothing here looks
    into it.
    """

    order_key: str
    destination: Callable[[], Destination | None]
    retry_policy: RetryPolicy
    minimum_retry_interval: float
    retry_limit: int
    about: Mapping[str, Any]
    attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one attempt went: a status and the start of the answer, or the error that came instead."""

    callback: Callback
    number: int
    sent_at: datetime
    status: int | None
    error: str | None
    answer: str
    seconds: float


@dataclass(slots=True)
class Statistics:
    """The tally: callbacks submitted, attempts made, and what became of them.

    Each callback ends as `delivered` (answered 2xx), `lost` (given up after the last retry) or `dropped` (its webhook
    was gone or disabled before it could be sent again).
    """

    callbacks: int = 0
    attempts: int = 0
    delivered: int = 0
    retried: int = 0
    lost: int = 0
    dropped: int = 0
    answers: dict[str, int] = field(default_factory=dict)


@cache
def _tls_context() -> ssl.SSLContext:
    """Reading the certificates of the authorities takes longer than all else at the start, so it is done once."""
    return httpx.create_ssl_context()


def retry_wait(policy: RetryPolicy, minimum_interval: float, retry: int) -> float:
    """Seconds to wait before the given retry, counted from 1, at a time scale of 1."""
    factor = 2.0 ** min(retry - 1, 64) if policy == "exponential" else 1.0
    return min(minimum_interval * factor, _LONGEST_WAIT)


class Sender:
    """A pool of senders; use it as an async context manager. Leaving it gives up whatever is unsettled.

    `watch` is told of every attempt, and must not fail.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        callback_timeout: float,
        time_scale: float,
        overlap: bool,
        backlog_limit: int,
        watch: Callable[[Attempt], None],
    ) -> None:
        self._concurrency = concurrency
        self._timeout = callback_timeout
        self._time_scale = time_scale
        self._overlap = overlap
        self._watch = watch
        self._room = asyncio.Semaphore(backlog_limit)
        # Bounded by the room: only callbacks that have been let in are ever put here.
        self._ready: asyncio.Queue[Callback] = asyncio.Queue()
        self._waiting: set[asyncio.TimerHandle] = set()
        self._behind: defaultdict[str, deque[tuple[Callback, float]]] = defaultdict(deque)
        self._workers: list[asyncio.Task[None]] = []
        self._client: httpx.AsyncClient | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._pending = 0
        self.statistics = Statistics()

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            verify=_tls_context(),
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # noqa: S113 # the whole attempt has one time-out, see _call
            limits=httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency),
        )
        self._workers = [
            asyncio.create_task(self._work(self._client), name=f"callback sender {number}")
            for number in range(self._concurrency)
        ]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._waiting:
            handle.cancel()
        for worker in self._workers:
            worker.cancel()
        endings = await asyncio.gather(*self._workers, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
        for ending in endings:
            if isinstance(ending, Exception):
                raise ending

    @property
    def pending(self) -> int:
        """Callbacks not yet settled, those that wait for a retry included."""
        return self._pending

    async def submit(self, callback: Callback, *, delay: float = 0.0) -> None:
        """Take on a callback; waits while the backlog is full. `delay` holds back its first attempt, in seconds."""
        await self._room.acquire()
        self._pending += 1
        self._idle.clear()
        self.statistics.callbacks += 1
        if not self._overlap:
            queue = self._behind[callback.order_key]
            queue.append((callback, delay))
            if len(queue) > 1:
                return
        self._put(callback, delay)

    async def drained(self) -> None:
        """Wait until every callback is settled. Raises what stopped a worker, should that ever happen."""
        idle = asyncio.create_task(self._idle.wait())
        try:
            done, _ = await asyncio.wait([idle, *self._workers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            idle.cancel()

    def _put(self, callback: Callback, delay: float) -> None:
        """Hand a callback to the senders, now or after so many seconds."""
        if delay <= 0:
            self._ready.put_nowait(callback)
            return

        def wake() -> None:
            self._waiting.discard(handle)
            self._ready.put_nowait(callback)

        handle = asyncio.get_running_loop().call_later(delay, wake)
        self._waiting.add(handle)

    async def _work(self, client: httpx.AsyncClient) -> None:
        while True:
            callback = await self._ready.get()
            destination = callback.destination()
            if destination is None:
                self.statistics.dropped += 1
                self._settle(callback)
                continue
            callback.attempts += 1
            attempt = await self._call(client, callback, destination)
            self._count(attempt)
            self._watch(attempt)
            if attempt.status is not None and httpx.codes.is_success(attempt.status):
                self.statistics.delivered += 1
                self._settle(callback)
            elif callback.retry_policy == "no_retry" or callback.attempts > callback.retry_limit:
                self.statistics.lost += 1
                self._settle(callback)
            else:
                self.statistics.retried += 1
                wait = retry_wait(callback.retry_policy, callback.minimum_retry_interval, callback.attempts)
                self._put(callback, wait * self._time_scale)

    async def _call(self, client: httpx.AsyncClient, callback: Callback, destination: Destination) -> Attempt:
        """Make one attempt. Never raises for anything that a receiver or the network may do."""
        started, sent_at = time.monotonic(), datetime.now(UTC)
        status, error, answer = None, None, b""
        try:
            async with (
                asyncio.timeout(self._timeout),
                client.stream(
                    "POST",
                    destination.url,
                    headers=destination.message.headers,
                    content=destination.message.body,
                ) as response,
            ):
                async for chunk in response.aiter_raw():
                    answer += chunk
                    if len(answer) >= _ANSWER_BYTES:
                        break
                status = response.status_code
        except TimeoutError:
            error = f"no answer within {self._timeout:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            error = f"{type(exc).__name__}: {exc}"
        return Attempt(
            callback=callback,
            number=callback.attempts,
            sent_at=sent_at,
            status=status,
            error=error,
            answer=answer[:_ANSWER_BYTES].decode(errors="replace"),
            seconds=time.monotonic() - started,
        )

    def _count(self, attempt: Attempt) -> None:
        self.statistics.attempts += 1
        answer = "no answer" if attempt.status is None else str(attempt.status)
        self.statistics.answers[answer] = self.statistics.answers.get(answer, 0) + 1

    def _settle(self, callback: Callback) -> None:
        """Make room, and let the next callback about the same thing go."""
        if not self._overlap:
            queue = self._behind[callback.order_key]
            queue.popleft()
            if queue:
                self._put(*queue[0])
            else:
                del self._behind[callback.order_key]
        self._room.release()
        self._pending -= 1
        if not self._pending:
            self._idle.set()
