"""What a receiver's memory and its answers do under bodies made to fill the one and delay the other: a real process, measured.

Run with `-s` to see the figures; they stand in `docs/proofs.md`. The bounds are generous: they catch what is unbounded.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.engine import reading
from app.domain.values import EntityType
from app.registration.store import RegistrationStore
from app.sealing import Sealer, generate_key
from tests.end_to_end.harness import ReceiverProcess, running_receiver

pytestmark = pytest.mark.timeout(240)

SECRET = "a-signing-secret-of-32-characters"
LIMIT = 5_242_880
MIB = 1024 * 1024


@dataclass
class Watched:
    """A receiver under load: its memory, and how long `/healthz` takes meanwhile, in seconds."""

    receiver: ReceiverProcess
    answers: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0

    @property
    def _pid(self) -> int:
        assert self.receiver.process is not None
        return self.receiver.process.pid

    def memory(self, name: str) -> int:
        """`VmRSS` or `VmHWM` (the peak) of the process, in bytes: proc(5)."""
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        [found] = [line for line in lines if line.startswith(f"{name}:")]
        return int(found.split()[1]) * 1024

    async def post(self, body: bytes, *, secret: str = SECRET) -> None:
        """One callback; what came of it is counted, 0 where the connection was cut."""
        try:
            async with httpx.AsyncClient(timeout=60) as http:
                url = f"{self.receiver.url}/callbacks/products"
                self.answers[(await http.post(url, content=body, headers={"x-secret": secret})).status_code] += 1
        except httpx.TransportError:
            self.answers[0] += 1

    async def grown_by(self, work: Awaitable[object]) -> int:
        """By how many bytes the memory's peak stands above what it was before; asks `/healthz` all the while."""
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")  # begins the peak anew
        before = self.memory("VmRSS")
        asking = asyncio.create_task(self._ask())
        await work
        asking.cancel()
        return self.memory("VmHWM") - before

    async def _ask(self) -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            while True:
                begun = time.perf_counter()
                assert (await http.get(f"{self.receiver.url}/healthz")).status_code == 200
                self.slowest = max(self.slowest, time.perf_counter() - begun)
                await asyncio.sleep(0.02)


@asynccontextmanager
async def watched(data_dir: Path, database: str, engine: AsyncEngine) -> AsyncIterator[Watched]:
    key = generate_key()
    now = utc_now()
    await RegistrationStore(engine, Sealer([key])).commit(
        EntityType.PRODUCT,
        webhook_id="1",
        signing_secret=SECRET,
        registered=None,
        now=now,
        retire_until=now + timedelta(hours=1),
    )
    settings = {"DATABASE_URL": database, "ENCRYPTION_KEYS": key, "PUBLIC_URL": "", "LOG_LEVEL": "error"}
    async with running_receiver(data_dir, **settings) as receiver:
        found = Watched(receiver)
        await found.post(b'{"id":1,"name":"warm"}')
        assert found.answers.pop(200) == 1
        yield found
        found.answers.clear()
        while not found.answers[200]:
            await found.post(b'{"id":2,"name":"still there"}')


def _say(what: str, watched: Watched, grown: int) -> None:
    figures = f"peak +{grown / MIB:.0f} MiB, answers {dict(watched.answers)}, slowest other {watched.slowest:.2f} s"
    print(f"\n{what}: {figures}")  # noqa: T201 - for `-s`


async def _drip(watched: Watched) -> None:
    """Most of a body at once, then a little of it from time to time, until the receiver has had enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", watched.receiver.port)
    head = f"POST /callbacks/products HTTP/1.1\r\nHost: here\r\nContent-Length: {LIMIT}\r\n\r\n"
    with suppress(ConnectionError):
        writer.write(head.encode() + b" " * (LIMIT - 100_000))
        answered = asyncio.create_task(reader.readline())
        while not answered.done():
            writer.write(b" ")
            await asyncio.sleep(0.1)
        line = await answered
        watched.answers[int(line.split()[1]) if line else 0] += 1
    writer.close()


async def test_two_hundred_senders_of_endless_large_bodies_fill_no_more_than_the_room(
    tmp_path: Path, database: str, engine: AsyncEngine
) -> None:
    """Whoever they are: the proof comes after the body. Without bounds they would hold a gigabyte."""
    async with watched(tmp_path, database, engine) as receiver:
        grown = await receiver.grown_by(asyncio.gather(*(_drip(receiver) for _ in range(200))))
        _say("200 slow bodies of 5 MiB", receiver, grown)
        assert receiver.answers.keys() <= {503, 408, 0}
        assert receiver.answers[503] > 100
        assert grown < 350 * MIB


def _large(number: int) -> bytes:
    begin = b'{"event":"product.updated","data":{"id":%d,"name":"' % number
    return begin + b"x" * (LIMIT - len(begin) - 3) + b'"}}'


async def test_bursts_of_the_largest_bodies_are_taken_or_put_off_within_the_memory_set_aside(
    tmp_path: Path, database: str, engine: AsyncEngine
) -> None:
    async with watched(tmp_path, database, engine) as receiver:

        async def burst() -> None:
            for start in range(0, 120, 40):
                await asyncio.gather(*(receiver.post(_large(number)) for number in range(start, start + 40)))

        grown = await receiver.grown_by(burst())
        _say("3 bursts of 40 authentic bodies of 5 MiB", receiver, grown)
        assert receiver.answers.keys() <= {200, 503}
        assert receiver.answers[200] >= 12
        assert grown < 500 * MIB


def _filled(begin: bytes, piece: Callable[[int], bytes], end: bytes) -> bytes:
    pieces, size, number = [], len(begin) + len(end), 0
    while size + len(one := piece(number)) + 1 < LIMIT:
        pieces.append(one)
        size += len(one) + 1
        number += 1
    return begin + b",".join(pieces) + end


STAMP = b'{"id":1,"updated_at":"2026-01-01T00:00:00Z",'
COSTLY: dict[str, tuple[bytes, bytes]] = {
    "open arrays": (b"[" * LIMIT, b"[" * LIMIT),
    "open objects": (b'{"a":' * (LIMIT // 5), b'{"data":' * (LIMIT // 8)),
    "tiny members": (
        _filled(STAMP, lambda number: b'"%x":1' % number, b"}"),
        _filled(STAMP, lambda number: b'"%x":2' % number, b"}"),
    ),
    "tiny elements": (
        _filled(STAMP + b'"x":[', lambda _: b"1", b"]}"),
        _filled(STAMP + b'"x":[', lambda _: b"2", b"]}"),
    ),
    "long names": (
        _filled(STAMP + b'"%b":[' % (b"n" * 1_000_000), lambda _: b"1", b"]}"),
        _filled(STAMP + b'"%b":[' % (b"n" * 1_000_000), lambda _: b"2", b"]}"),
    ),
}


async def test_costly_bodies_of_strangers_are_bounded_in_memory_and_hold_nobody_up(
    tmp_path: Path, database: str, engine: AsyncEngine
) -> None:
    async with watched(tmp_path, database, engine) as receiver:

        async def from_strangers(bodies: tuple[bytes, bytes]) -> None:
            for body in bodies * 2:
                await asyncio.gather(*(receiver.post(body, secret="a-guess") for _ in range(2)))

        for name, bodies in COSTLY.items():
            grown = await receiver.grown_by(from_strangers(bodies))
            _say(f"{name}, from strangers", receiver, grown)
            assert receiver.answers.pop(401) == 8
            assert not receiver.answers
            assert grown < 300 * MIB
        assert receiver.slowest < 4  # about 0.2 s where the machine has nothing else to do


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["open arrays", "tiny members"], id="never ending and most costly"),
        pytest.param(list(COSTLY), id="all", marks=pytest.mark.long),
    ],
)
async def test_costly_bodies_that_are_authentic_are_bounded_in_memory(
    tmp_path: Path, database: str, engine: AsyncEngine, names: list[str]
) -> None:
    async with watched(tmp_path, database, engine) as receiver:

        async def authentic(bodies: tuple[bytes, bytes]) -> None:
            """As Jasper would: a callback that is put off comes again, if not for ever. On a busy machine each may be late."""
            for body in bodies:
                taken = receiver.answers[200]
                for _ in range(8):
                    await receiver.post(body)
                    if receiver.answers[200] > taken:
                        break

        for name in names:
            receiver.slowest = 0
            grown = await receiver.grown_by(authentic(COSTLY[name]))
            _say(f"{name}, authentic", receiver, grown)
            assert receiver.answers.keys() <= {200, 503}
            assert grown < 1_000 * MIB
        # On a slow machine every answer may come too late, but what was put off is committed all the same.
        async with reading(engine) as connection:
            large = "SELECT count(*) FROM deliveries WHERE status = 'accepted' AND size > 1000000"
            assert await connection.scalar(text(large))
