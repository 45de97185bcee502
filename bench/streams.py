"""`python -m bench.streams`: idle and waking streams, in memory, queries, and the time from a commit to its readers.

The receiver is `jasper-receiver serve`, as a process of its own on an embedded Postgres. The streams are opened over loopback,
and the ledger is written from this process, as another replica would.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import click

from app.db.embedded import embedded_postgres
from app.domain.values import Action, EntityType, Entry, JsonText, Reading
from app.ledger.writer import Writer
from bench.load import percentile
from bench.processes import cpu_of, running_web

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
        with suppress(asyncio.CancelledError):
            await self.task


def resident(pid: int) -> int:
    """Resident memory of a process, bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


async def measure(count: int, commits: int, *, apart: bool, directory: Path) -> None:
    """Run all measurements and print them."""
    environment = {"DATA_DIR": str(directory), "ADMIN_API_KEY": KEY, "ROLES": "api", "LOG_LEVEL": "warning"}
    command = (sys.executable, "-m", "app.cli.commands", "serve")
    with embedded_postgres(directory) as dsn:
        async with AsyncExitStack() as held:
            served = await held.enter_async_context(AsyncExitStack())
            receiver = await served.enter_async_context(
                running_web(command, environment, directory=directory, ready="/healthz")
            )
            writer = await held.enter_async_context(Writer(dsn))
            url, pid = f"http://127.0.0.1:{receiver.port}", receiver.process_id
            sql = await asyncpg.connect(dsn)
            held.push_async_callback(sql.close)
            await _opened(held, url, "action=delete")
            await asyncio.sleep(1)
            before = resident(pid)
            queries = [f"entity_id=x&entity_id={number}" if apart else "after=0" for number in range(count)]
            clients = [await _opened(held, url, query) for query in queries]
            await asyncio.sleep(15)  # Postgres counts what idle connections did some seconds late
            click.echo(f"{count} streams: {(resident(pid) - before) / count / 1024:.1f} KiB each")

            used, transactions, begun = cpu_of(pid), await sql.fetchval(_TRANSACTIONS), time.perf_counter()
            await asyncio.sleep(20)
            used, transactions = cpu_of(pid) - used, await sql.fetchval(_TRANSACTIONS) - transactions
            seconds = time.perf_counter() - begun
            click.echo(f"idle: {transactions / seconds:.1f} transactions/s, {used / seconds:.1%} of a core")
            busy = []
            for _ in range(200):
                busy.append(await sql.fetchval(_BUSY))
                await asyncio.sleep(0.05)
            click.echo(f"idle: connections in a transaction: median {statistics.median(busy):.0f}, most {max(busy)}")

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
            said = ", ".join(f"{name} {percentile(waits, share) * 1e3:.1f} ms" for name, share in _MARKS.items())
            click.echo(
                f"from the commit to each of {count} readers, {commits} commits: {said}, most {waits[-1] * 1e3:.1f} ms"
            )
            begun = time.perf_counter()
            await served.aclose()
            click.echo(f"shutdown with the streams open: {time.perf_counter() - begun:.2f} s")


async def _opened(held: AsyncExitStack, url: str, query: str) -> Client:
    client = Client()
    await client.open(url, query)
    held.push_async_callback(client.close)
    return client


_MARKS = {"median": 0.5, "p95": 0.95, "p99": 0.99}
_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
_BUSY = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jasper-receiver'"
    " AND state <> 'idle'"
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--streams", default=500, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--commits", default=40, show_default=True, type=click.IntRange(1))
@click.option("--apart", is_flag=True, help="Each stream with filters of its own, so that none is shared.")
def main(streams: int, commits: int, *, apart: bool) -> None:
    """Measure idle and waking streams."""
    with tempfile.TemporaryDirectory(prefix="jasper-streams-", ignore_cleanup_errors=True) as directory:
        asyncio.run(measure(streams, commits, apart=apart, directory=Path(directory)))


if __name__ == "__main__":
    main()
