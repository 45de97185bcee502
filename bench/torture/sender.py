"""A sender that retries as Jasper does: every callback again and again, after a fixed wait, until it is answered 2xx.

Jasper waits minutes; here the wait is a fraction of a second, so that a run sees as many retries as Jasper makes in weeks.
What each callback was answered is written down, and is all that the checker takes for a promise.
"""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.torture.changes import Callback, Change, Kind, callback
from bench.torture.wire import NotHeardError, Poster, Response

PATH = "/callbacks/products"
TIMEOUT = 3.0
"""Seconds that Jasper waits for an answer, as far as anybody guesses."""

_HANG_UP = 0.03
"""Seconds after which the sender sometimes hangs up, while its callback is being committed."""

_HANG_UPS = 0.01
_SECOND_COPIES = 0.06
_LONGEST_PAUSE = 3.0
_OK = 200
_UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx: what the sender was promised."""

    delivery_id: str
    status: str
    event_id: str | None


@dataclass(frozen=True, slots=True)
class SenderOptions:
    """Changes a second, attempts under way at once, changes unsettled at once, seconds between two attempts."""

    rate: float = 200.0
    in_flight: int = 64
    unsettled: int = 800
    retry_wait: float = 0.6


@dataclass(slots=True)
class Statistics:
    """What was seen on the way. `answers` counts attempts by how they ended, times are in seconds."""

    attempts: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    downtime: float = 0.0
    longest_gap: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Sender:
    """Tells changes to receivers, of which any may be dead. `headers` prove it."""

    def __init__(
        self, source: Iterator[Change], ports: Sequence[int], headers: dict[str, str], options: SenderOptions, seed: int
    ) -> None:
        self.changes: dict[int, Change] = {}
        self.answers: dict[int, list[Answer]] = {}
        self.statistics = Statistics()
        self.unsettled: set[int] = set()
        self._source = source
        self._ports = ports
        self._headers = headers
        self._options = options
        self._chance = random.Random(f"sender {seed}")
        self._turn = asyncio.Semaphore(options.in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._settled = asyncio.Condition()
        self._last_answer = time.monotonic()
        self._http = Poster()

    @property
    def settled(self) -> int:
        """How many 2xx answers there were."""
        return sum(count for ending, count in self.statistics.answers.items() if ending.startswith("200"))

    async def run(self) -> None:
        """Make changes and tell them, until `stop`; returns once nothing is left to tell."""
        async with self._http:
            try:
                await self._make_changes()
                while self._tasks:
                    await asyncio.wait(self._tasks)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """Make no more changes."""
        self._stopping.set()

    async def progress(self, count: int) -> None:
        """Wait for `count` more 2xx answers."""
        goal = self.settled + count
        async with self._settled:
            await self._settled.wait_for(lambda: self.settled >= goal)

    async def _make_changes(self) -> None:
        begin = time.monotonic()
        for made in itertools.count(1):
            due = begin + made / self._options.rate
            while time.monotonic() < due or len(self.unsettled) >= self._options.unsettled:
                if self._stopping.is_set():
                    return
                await asyncio.sleep(max(0.002, due - time.monotonic()))
            if self._stopping.is_set():
                return
            if time.monotonic() > due + 1:  # after a pause the rate goes on; it does not catch up
                begin += time.monotonic() - due
            change = next(self._source)
            self.changes[change.number] = change
            self.answers[change.number] = []
            self.unsettled.add(change.number)
            task = asyncio.create_task(self._tell(change), name=f"change {change.number}")
            self._tasks.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.statistics.wrong.append(f"the sender failed: {task.exception()!r}")

    async def _tell(self, change: Change) -> None:
        """Tell one change until it is heard, and a few of them once more."""
        attempt = await self._tell_until_heard(change, 1)
        self.unsettled.discard(change.number)
        if self._chance.random() < _SECOND_COPIES:
            await asyncio.sleep(self._chance.uniform(0, _LONGEST_PAUSE))
            await self._tell_until_heard(change, attempt + 1)

    async def _tell_until_heard(self, change: Change, first: int) -> int:
        """Returns the number of the attempt that was heard."""
        told = callback(change, first, self._chance)
        for attempt in itertools.count(first):
            if attempt > first and self._chance.choice((True, False)):
                told = callback(change, attempt, self._chance)
            async with self._turn:
                answer = await self._attempt(change, told)
            if answer is not None:
                self.answers[change.number].append(answer)
                await self._note_progress()
                return attempt
            await asyncio.sleep(self._options.retry_wait * self._chance.uniform(0.8, 1.2))
        raise AssertionError

    async def _attempt(self, change: Change, told: Callback) -> Answer | None:
        """One attempt; None where it was not heard."""
        port = self._chance.choice(self._ports)
        patience = _HANG_UP if self._chance.random() < _HANG_UPS else TIMEOUT
        begin = time.monotonic()
        self.statistics.attempts += 1
        try:
            async with asyncio.timeout(patience):
                response = await self._http.post(port, PATH, self._headers | told.headers, told.body)
        except TimeoutError:
            self.statistics.answers["hung up on" if patience == _HANG_UP else "timed out"] += 1
            return None
        except NotHeardError as error:
            self.statistics.answers[str(error)] += 1
            return None
        return self._judge(change, response, time.monotonic() - begin)

    def _judge(self, change: Change, response: Response, took: float) -> Answer | None:
        if response.status == _OK:
            told = json.loads(response.body)
            answer = Answer(told["delivery_id"], told["status"], told["event_id"])
            self.statistics.answers[f"200 {answer.status}"] += 1
            self.statistics.times.append(took)
            if answer.status not in ({"quarantined"} if change.kind is Kind.UNREADABLE else {"accepted", "duplicate"}):
                self.statistics.wrong.append(f"change {change.number} ({change.kind}) was answered {answer.status}")
            return answer
        self.statistics.answers[str(response.status)] += 1
        if response.status != _UNAVAILABLE or "retry-after" not in response.headers:
            self.statistics.wrong.append(f"change {change.number} was answered {response}")
        return None

    async def _note_progress(self) -> None:
        now = time.monotonic()
        gap, self._last_answer = now - self._last_answer, now
        self.statistics.longest_gap = max(self.statistics.longest_gap, gap)
        if gap > 1:
            self.statistics.downtime += gap
        async with self._settled:
            self._settled.notify_all()
