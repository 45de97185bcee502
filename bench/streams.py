"""Measures idle and waking streams: memory, connections, queries, and the time from a commit to its readers.

    python bench/streams.py --streams 500 --commits 40

Starts `jasper-receiver serve` as a process of its own on the embedded Postgres in a temporary directory, opens the
streams over loopback, and writes by the ledger from this process, as another replica would.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx

from app.db.embedded import embedded_postgres
from app.domain.values import Action, EntityType, Entry, JsonText, Reading
from app.ledger.writer import Writer
from app.serving import listen

KEY = "a-key-for-the-bench-only"
PAGE = os.sysconf("SC_PAGE_SIZE")


class Arrivals:
    """When one event came to each of its readers."""

    def __init__(self, readers: int) -> None:
        self.times: list[float] = []
        self.complete = asyncio.Event()
        self._readers = readers

    def note(self) -> None:
        """It came to one more of them."""
        self.times.append(time.perf_counter())
        if len(self.times) == self._readers:
            self.complete.set()


class Client:
    """One reader of the stream, as little as it takes."""

    arrivals: Arrivals

    async def open(self, url: str, query: str) -> None:
        """Connect and wait for the first piece."""
        address = urlsplit(url)
        reader, self._writer = await asyncio.open_connection(address.hostname, address.port)
        request = f"GET /v1/events/stream?{query} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n\r\n"
        self._writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0], head
        await reader.readuntil(b"retry:")
        self.task = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if line.startswith(b"data:"):
                self.arrivals.note()

    async def close(self) -> None:
        """Hang up."""
        self.task.cancel()
        self._writer.close()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@contextlib.asynccontextmanager
async def receiver(data_dir: Path) -> AsyncIterator[tuple[str, int]]:
    """A receiver in a process of its own: its address and process id."""
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "DATA_DIR": str(data_dir),
        "PORT": str(port),
        "ADMIN_API_KEY": KEY,
        "ROLES": "api",
        "LOG_LEVEL": "warning",
    }
    command = (sys.executable, "-m", "app.cli.commands", "serve")
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient() as http:
        while True:
            with contextlib.suppress(httpx.TransportError):
                await http.get(f"{url}/healthz")
                break
            await asyncio.sleep(0.1)
    try:
        yield url, process.pid
    finally:
        process.terminate()
        begun = time.perf_counter()
        await process.wait()
        print(f"shutdown with the streams open: {time.perf_counter() - begun:.2f} s")


def resident(pid: int) -> int:
    """Resident memory of a process, bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def processor(pid: int) -> float:
    """Processor time that a process has used, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main(count: int, commits: int, *, apart: bool) -> None:
    """Run all measurements and print them."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        embedded_postgres(Path(directory)) as dsn,
    ):
        async with receiver(Path(directory)) as (url, pid), Writer(dsn) as writer:
            sql = await asyncpg.connect(dsn)
            warm = Client()
            await warm.open(url, "action=delete")
            await asyncio.sleep(1)
            before = resident(pid)
            clients = [Client() for _ in range(count)]
            for number, client in enumerate(clients):
                await client.open(url, f"entity_id=x&entity_id={number}" if apart else "after=0")
            await asyncio.sleep(15)  # Postgres counts what idle connections did some seconds late
            print(f"{count} streams: {(resident(pid) - before) / count / 1024:.1f} KiB each")

            used, transactions, begun = processor(pid), await sql.fetchval(_TRANSACTIONS), time.perf_counter()
            await asyncio.sleep(20)
            used, transactions = processor(pid) - used, await sql.fetchval(_TRANSACTIONS) - transactions
            seconds = time.perf_counter() - begun
            print(f"idle: {transactions / seconds:.1f} transactions/s, {used / seconds:.1%} of a core")
            busy = []
            for _ in range(200):
                busy.append(await sql.fetchval(_BUSY))
                await asyncio.sleep(0.05)
            print(f"idle: connections in a transaction: median {statistics.median(busy):.0f}, most {max(busy)}")

            waits: list[float] = []
            for number in range(commits):
                await asyncio.sleep(0.25)
                arrivals = Arrivals(count)
                for client in clients:
                    client.arrivals = arrivals
                reading = Reading("x", Action.UPDATE, data=JsonText(b'{"id": "x", "name": "Kettle", "n": %d}' % number))
                await writer.commit(Entry(EntityType.PRODUCT, reading, datetime.now(UTC)))
                committed = time.perf_counter()
                async with asyncio.timeout(30):
                    await arrivals.complete.wait()
                waits += [arrived - committed for arrived in arrivals.times]
            waits.sort()
            marks = {"median": 0.5, "p95": 0.95, "p99": 0.99}
            said = ", ".join(f"{name} {waits[int(len(waits) * part)] * 1000:.1f} ms" for name, part in marks.items())
            print(
                f"from the commit to each of {count} readers, {commits} commits: {said}, most {waits[-1] * 1000:.1f} ms"
            )
        for client in [warm, *clients]:
            await client.close()
        await sql.close()


_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
_BUSY = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jasper-receiver'"
    " AND state <> 'idle'"
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--commits", type=int, default=40)
    parser.add_argument(
        "--apart", action="store_true", help="each stream with filters of its own, so that none is shared"
    )
    given = parser.parse_args()
    asyncio.run(main(given.streams, given.commits, apart=given.apart))
