"""Several processes on one port: as one receiver to whoever calls, and none of them missed when it dies."""

import asyncio
import operator
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app import workers
from app.serving import listen
from app.simulator import running_simulator
from bench.processes import family_of
from tests.end_to_end.harness import ReceiverProcess, running_receiver, write_catalog
from tests.end_to_end.test_main_job import check_against, simulated

pytestmark = pytest.mark.timeout(180)


def workers_of(receiver: ReceiverProcess) -> list[int]:
    """The processes that serve."""
    assert receiver.process is not None
    return [pid for pid in family_of(receiver.process.pid)[1:] if "spawn_main" in command_of(pid)]


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.05)


async def test_workers_that_are_killed_are_replaced_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    creates, changes = 100, 150
    options = simulated(write_catalog(tmp_path / "catalog.jsonl", creates), rate=50, changes=changes)
    async with running_simulator(options) as simulator:
        jasper = {
            "JASPER_API_URL": f"{simulator.base_url}/api/v1",
            "JASPER_API_TOKEN": options.token,
            "JASPER_WEBHOOK_RETRY_LIMIT": "50",
        }
        async with running_receiver(tmp_path / "data", "--workers", "2", **jasper) as receiver:
            await receiver.ready()
            for _ in range(2):
                await until(lambda: len(workers_of(receiver)) == 2)
                [first, second] = workers_of(receiver)
                os.kill(first, signal.SIGKILL)
                await until(lambda: second in workers_of(receiver) and len(set(workers_of(receiver)) - {first}) == 2)  # noqa: B023 - awaited at once
            async with asyncio.timeout(90):
                await simulator.drained()
            await check_against(receiver, simulator, creates, changes)
            last = workers_of(receiver)
            assert await receiver.stop() == 0
            assert not any(map(command_of, last))


async def test_workers_end_with_the_process_that_started_them_however_it_ends(tmp_path: Path) -> None:
    away = {"JASPER_API_URL": "http://127.0.0.1:9/api/v1", "JASPER_API_TOKEN": "a-token"}
    async with running_receiver(tmp_path / "data", "--workers", "2", **away) as receiver:
        before = workers_of(receiver)
        assert len(before) == 2
        await receiver.kill()
        await until(lambda: not any(map(command_of, before)))
        await receiver.start()  # on the port that they have let go of


def test_workers_of_which_none_comes_to_serve_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects to the socket meanwhile would else wait for ever, and nobody would be told."""
    monkeypatch.setattr(workers, "PAUSE", 0.0)
    with listen("127.0.0.1", 0) as listener:
        assert not workers.run(operator.not_, listener, 2)  # as work that says that it never served


async def test_the_numbers_are_of_the_workers_that_live(tmp_path: Path) -> None:
    away = {"JASPER_API_URL": "http://127.0.0.1:9/api/v1", "JASPER_API_TOKEN": "a-token"}
    async with running_receiver(tmp_path / "data", "--workers", "2", **away) as receiver:
        await until_told(receiver, lambda pids: len(pids) == 2)
        [first, second] = workers_of(receiver)
        os.kill(first, signal.SIGKILL)
        # Until the third has begun to count itself, the numbers may be right by chance.
        await until(lambda: receiver.log.read_text().count("Application startup complete") == 3)
        await until_told(receiver, lambda pids: len(pids - {first}) == 2 and second in pids)


async def until_told(receiver: ReceiverProcess, holds: Callable[[set[int]], bool]) -> None:
    """Wait until `/metrics` tells of just the workers that there are, by their number and one by one, and `holds` of them."""
    async with httpx.AsyncClient(base_url=receiver.url, timeout=30) as http, asyncio.timeout(90):
        while True:
            with suppress(httpx.TransportError):  # the one that was asked has just been killed
                text = (await http.get("/metrics")).text
                pids = {
                    int(pid) for pid in re.findall(r'^process_resident_memory_bytes{pid="(\d+)"}', text, re.MULTILINE)
                }
                number = re.findall(r"^jasper_receiver_processes (\S+)$", text, re.MULTILINE)
                if pids == set(workers_of(receiver)) and number == [f"{len(pids)}.0"] and holds(pids):
                    return
            await asyncio.sleep(0.1)
