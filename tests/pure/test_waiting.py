"""Who waits for events: when it looks, when it leaves it, and what becomes of who is gone."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from app.db.wakeup import Wakeup
from app.errors import LeasedError, UnavailableError
from app.feed import waiting
from app.feed.waiting import look_until_there


class Caller:
    """Stands for the request of one who waits; `hung_up` says whether it is still there."""

    def __init__(self, wakeup: Wakeup) -> None:
        self.state = SimpleNamespace(wakeup=wakeup)
        self.hung_up = False

    async def is_disconnected(self) -> bool:
        return self.hung_up


@pytest.fixture
def wakeup(monkeypatch: pytest.MonkeyPatch) -> Wakeup:
    monkeypatch.setattr(waiting, "_POLL", 60)
    return Wakeup("postgresql://nobody@127.0.0.1:1/nothing")


@pytest.fixture
def caller(wakeup: Wakeup) -> Any:
    return Caller(wakeup)


class Looks:
    """Looks that say one after the other what they are given: something is there or not, or what they raise."""

    def __init__(self, *found: bool | Exception) -> None:
        self.times: list[float] = []
        self._found = list(found)

    async def __call__(self) -> bool:
        self.times.append(asyncio.get_running_loop().time())
        found = self._found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.times) < count:
                await asyncio.sleep(0.002)


Begin = Callable[..., Awaitable["asyncio.Task[None]"]]


@pytest.fixture
def begin(caller: Any) -> Begin:
    async def begin(looks: Looks, seconds: float = 30) -> "asyncio.Task[None]":
        task = asyncio.create_task(look_until_there(caller, looks, wait=seconds))
        await looks.until(1)
        await asyncio.sleep(0)
        return task

    return begin


async def test_the_first_news_is_looked_at_once_and_the_next_with_a_distance(
    wakeup: Wakeup, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every commit wakes everybody, and few events may be theirs."""
    monkeypatch.setattr(waiting, "_APART", 0.3)
    looks = Looks(False, False, False, True)
    task = await begin(looks)
    while not task.done():
        wakeup._announce()
        await asyncio.sleep(0.005)
    await task
    first, second, third, fourth = looks.times
    assert second - first < 0.3
    assert third - second >= 0.29
    assert fourth - third >= 0.29


async def test_news_say_nothing_of_a_page_that_another_holds(
    wakeup: Wakeup, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_POLL", 0.3)
    looks = Looks(LeasedError("held", retry_after=60), LeasedError("held", retry_after=0.05), True)
    task = await begin(looks)
    while not task.done():
        wakeup._announce()
        await asyncio.sleep(0.005)
    await task
    first, second, third = looks.times
    assert second - first >= 0.29
    assert 0.04 <= third - second < 0.29


async def test_a_page_that_is_held_to_the_end_is_refused(begin: Begin) -> None:
    looks = Looks(*[LeasedError("held", retry_after=0.02)] * 100)
    with pytest.raises(LeasedError):
        await (await begin(looks, 0.1))
    assert len(looks.times) > 2


async def test_nothing_is_looked_for_on_behalf_of_who_is_gone(wakeup: Wakeup, caller: Any, begin: Begin) -> None:
    """A lease would be taken for it, and keep everybody else out."""
    looks = Looks(False, True)
    task = await begin(looks)
    caller.hung_up = True
    wakeup._announce()
    await task
    assert len(looks.times) == 1


async def test_who_waits_for_a_page_that_is_held_is_let_go_when_the_process_stops(wakeup: Wakeup, begin: Begin) -> None:
    looks = Looks(*[LeasedError("held", retry_after=60)] * 2)
    task = await begin(looks)
    wakeup.drain()
    with pytest.raises(LeasedError):
        await task


async def test_so_many_may_wait_and_whoever_comes_then_is_told(
    wakeup: Wakeup, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_MOST_WAITING", 1)
    first = await begin(Looks(False, True))
    while wakeup.waiting.taken == 0:
        await asyncio.sleep(0)
    with pytest.raises(UnavailableError):
        await (await begin(Looks(False)))
    await (await begin(Looks(False), 0))  # who does not wait takes no place
    wakeup._announce()
    await first
    assert wakeup.waiting.taken == 0
