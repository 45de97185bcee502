"""A follower that is killed again and again, and a service that is killed under it: every event is seen, and in order."""

import asyncio
import json
import os
import random
import signal
import sys
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from bench.torture.receiver import KEY, ROOT, ReceiverProcess
from bench.torture.sender import PATH
from bench.torture.service import running_service

pytestmark = pytest.mark.timeout(180)

EVENTS = 400
QUICK = {"fsync": "off", "synchronous_commit": "on"}


class Follower:
    """`follower.py` in a process of its own; `file` has what all its lives have handled, `lives` how much each of them."""

    def __init__(self, receiver: ReceiverProcess, directory: Path) -> None:
        self.file = directory / "handled"
        self.log = directory / "follower.log"
        self.lives: list[int] = []
        self._command = [str(Path(__file__).with_name("follower.py")), receiver.url, KEY, "search", str(self.file)]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def handled(self) -> list[tuple[int, str]]:
        """The number and id of each event, in the order in which they were handled; again where that was so."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [(int(sequence), event_id) for sequence, event_id in map(str.split, lines)]

    async def start(self) -> None:
        self.lives.append(len(self.handled))
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self._command),
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        assert await self._process.wait() == -signal.SIGKILL, self.log.read_text()

    async def reach(self, count: int) -> None:
        """Wait until it has handled so many more than when it was started."""
        assert self._process is not None
        async with asyncio.timeout(60):
            while len(self.handled) < self.lives[-1] + count:
                assert self._process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.01)


async def send(http: httpx.AsyncClient, receiver: ReceiverProcess, headers: dict[str, str], number: int) -> None:
    """One callback, tried again as Jasper does, until it is committed."""
    body = json.dumps(
        {"event": "product.updated", "id": number % 20, "delivery_id": str(number), "data": {"n": number}}
    )
    while True:
        try:
            answer = await http.post(receiver.url + PATH, headers=headers, content=body)
            if answer.status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)


async def test_every_event_is_seen_and_in_order_whatever_is_killed(tmp_path: Path) -> None:
    chance = random.Random(5)
    async with (
        running_service(tmp_path, receivers=1, settings=QUICK) as service,
        httpx.AsyncClient(timeout=30, trust_env=False) as http,
    ):
        [receiver] = service.receivers
        follower = Follower(receiver, tmp_path)

        async def write() -> None:
            for number in range(EVENTS):
                await send(http, receiver, service.headers, number)
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            writing = group.create_task(write())
            await follower.start()
            for _ in range(3):
                await follower.reach(chance.randrange(15, 45))
                await follower.kill()
                await follower.start()
            await follower.reach(10)
            await receiver.kill()
            await receiver.start()  # the same port, as behind the same address
            await follower.reach(20)
            await writing
        feed = [(event["sequence"], event["id"]) for event in (await receiver.get("/v1/events", limit=1000))["events"]]
        async with asyncio.timeout(60):
            while len(feed) > len(set(follower.handled)):
                await asyncio.sleep(0.05)
        await follower.kill()

    assert len(feed) == EVENTS
    handled, lives = follower.handled, [*follower.lives, len(follower.handled)]
    assert sorted(set(handled)) == feed, "every event, and nothing else"
    assert len(lives) == 5
    for begin, end in pairwise(lives):
        # Within a life nothing is left out; it begins where the one before had come, or somewhat earlier.
        life = handled[begin:end]
        where = feed.index(life[0])
        assert life == feed[where : where + len(life)]
        assert where <= len(set(handled[:begin]))
    assert len(handled) < EVENTS + 3 * 250, "what comes again is about a second's work"
    assert "trying again" in follower.log.read_text(), "the service was missed"
