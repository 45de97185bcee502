"""A Postgres of the run's own, which can be killed, stopped, frozen and brought back at will.

It is the embedded one, whose watcher starts it again by itself. Where it is to stay down for a while the run takes
`start.lock`, and with it the turn to start or stop the server (`app.db.embedded` tells about its locks).
"""

import asyncio
import fcntl
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import asyncpg

from app.db.embedded import embedded_postgres

PATIENCE = 90.0
"""Seconds within which the server has to be back after whatever was done to it, recovery included."""

_POLL = 0.02
_BLOCK = bytes(1024 * 1024)

UNREACHABLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a connection raises that somebody cut, stopped or killed."""


class Postgres:
    """The server of `data_dir`, which runs already."""

    def __init__(self, data_dir: Path, dsn: str) -> None:
        self.dsn = dsn
        self.data_dir = data_dir
        self.busy = asyncio.Lock()
        """Held by whoever makes the whole server suffer, so that two do not at once."""

    async def kill(self, *, down: float) -> None:
        """SIGKILL its first process, whose others then end at once; bring it back after `down` seconds."""
        await self._take_down(signal.SIGKILL, down)

    async def stop(self, *, down: float) -> None:
        """Stop it in order, cutting off whoever is connected; bring it back after `down` seconds."""
        await self._take_down(signal.SIGINT, down)

    async def freeze(self, *, seconds: float) -> None:
        """SIGSTOP all of its processes for a while: connections stay, and nobody answers on them."""
        first = self._process_id()
        processes = [first]
        try:
            os.kill(first, signal.SIGSTOP)  # so that it makes no more of them
            listed = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True, check=True)  # noqa: ASYNC221, S603, S607 - takes a moment; the system's own program
            processes += map(int, listed.stdout.split())
            for process in processes[1:]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
            await asyncio.sleep(seconds)
        finally:
            for process in reversed(processes):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)
        await self.answering()

    async def fill_disk(self, *, seconds: float) -> None:
        """Leave no byte free on its file system for a while; only for one of its own (`small_disk`).

        Postgres may end itself over that, and cannot come back before there is space again.
        """
        ballast = self.data_dir / "ballast"
        try:
            await asyncio.to_thread(_fill, ballast)
            await asyncio.sleep(seconds)
        finally:
            ballast.unlink(missing_ok=True)
        await self.answering()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection with which to do harm. Raises what is in UNREACHABLE."""
        settings = {"application_name": "torture", "lock_timeout": "5s"}
        connection = await asyncpg.connect(self.dsn, timeout=5, command_timeout=30, server_settings=settings)
        try:
            yield connection
        finally:
            connection.terminate()

    async def answering(self) -> None:
        """Wait until it answers. Raises TimeoutError after PATIENCE."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(*UNREACHABLE):
                    async with self.connection() as connection:
                        await connection.execute("SELECT 1")
                        return
                await asyncio.sleep(_POLL)

    async def _take_down(self, number: signal.Signals, down: float) -> None:
        lock = os.open(self.data_dir / "postgres" / "start.lock", os.O_RDONLY | os.O_CLOEXEC)
        try:
            await _lock(lock)
            os.kill(self._process_id(), number)
            await asyncio.sleep(down)
        finally:
            os.close(lock)
        await self.answering()

    def _process_id(self) -> int:
        """Its first process. True while it runs, which `busy` and `answering` see to."""
        return int((self.data_dir / "postgres" / "cluster" / "postmaster.pid").read_text().split("\n", 1)[0])


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own for `directory`, in memory and of that size; `mount` lets only root make one.

    Raises subprocess.CalledProcessError where it cannot be made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kind = ("-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "torture")
    subprocess.run(["mount", *kind, str(directory)], check=True)  # noqa: S603, S607 - the system's own program
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)  # noqa: S603, S607 - likewise


def _fill(ballast: Path) -> None:
    """Write until nothing more fits."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(_BLOCK) == len(_BLOCK):
            pass


async def _lock(file: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            await asyncio.sleep(_POLL)


@asynccontextmanager
async def running_postgres(
    data_dir: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Postgres]:
    """A server for as long as the block lasts. `settings` are Postgres' own; without them it is as durable as can be."""
    async with AsyncExitStack() as outside:
        held = ExitStack()
        outside.push_async_callback(asyncio.to_thread, held.close)  # starting and stopping it take a while
        dsn = await asyncio.to_thread(held.enter_context, embedded_postgres(data_dir, settings=settings))
        yield Postgres(data_dir, dsn)
