"""`python -m bench.reconcile`: a catalogue is loaded, an outage happens, and what was missed comes back, measured.

A lean Jasper in this process serves a list and single items of products like those of `bench.products`; the receiver is the
real command `jasper-receiver reconcile`, each time as a process of its own, on a real and durable Postgres. Afterwards the
feed is held against what really happened, event by event.
"""

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import click
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.db.embedded import embedded_postgres
from app.db.engine import create_engine
from app.db.migrate import migrate
from app.sealing import generate_key
from app.serving import listen
from bench.processes import ROOT, peak_memory_of
from bench.products import change_time, made_up

_WATCH = 0.05
_KILL_WITHIN = 600.0


@dataclass
class ListJasper:
    """Products as JSON texts by their ids, in pages; every change is a second after the one before."""

    page_size: int
    products: dict[int, bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    changes: int = 0

    def put(self, identity: int, chance: random.Random) -> None:
        """Create or change a product."""
        self.changes += 1
        product = {**made_up(chance, identity), "updated_at": change_time(self.changes)}
        self.products[identity] = msgspec.json.encode(product)

    def arrange(self) -> None:
        """Order the products by their ids, once after changes."""
        self.products = dict(sorted(self.products.items()))
        self._ordered = list(self.products.values())

    async def page(self, request: Request) -> Response:
        """A page of the list, with `links` and `meta`."""
        self.requests["pages"] += 1
        number = int(request.query_params.get("page", "1"))
        last = max(1, -(-len(self._ordered) // self.page_size))
        shown = b",".join(self._ordered[(number - 1) * self.page_size : number * self.page_size])
        around = {
            "links": {"next": f"/api/v1/products?page={number + 1}" if number < last else None},
            "meta": {"current_page": number, "last_page": last, "total": len(self._ordered)},
        }
        content = b'{"data":[' + shown + b"]," + json.dumps(around)[1:].encode()
        return Response(content, media_type="application/json")

    async def one(self, request: Request) -> Response:
        """A single product; 404 where it is gone."""
        self.requests["single items"] += 1
        found = self.products.get(request.path_params["id"])
        if found is None:
            return Response(b"{}", 404, media_type="application/json")
        return Response(b'{"data":' + found + b"}", media_type="application/json")

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """The base of its API, for as long as the block lasts."""
        app = Starlette(
            routes=[Route("/api/v1/products", self.page), Route("/api/v1/products/{id:int}", self.one)],
        )
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none"))
        server.capture_signals = _no_signals  # type: ignore[method-assign]  # those are for the command
        with listen("127.0.0.1", 0) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
            finally:
                server.should_exit = True
                await serving


@dataclass(frozen=True, slots=True)
class Measured:
    """One command: what it printed, how long it took, and the most memory that it held (bytes)."""

    record: dict[str, Any]
    seconds: float
    peak: int


@dataclass(frozen=True, slots=True)
class Bench:
    """Where everything is."""

    dsn: str
    api: str
    directory: Path
    key: str

    async def reconcile(self, *, kill_at: int | None = None) -> Measured:
        """Run the command to its end; with `kill_at`, SIGKILL it once it has compared so many, and run it again."""
        begun = time.perf_counter()
        peaks = []
        if kill_at is not None:
            process = await self._start()
            watching = asyncio.create_task(_watch(process.pid))
            async with asyncio.timeout(_KILL_WITHIN):
                while await self._compared() < kill_at:  # noqa: ASYNC110 - another process is watched
                    await asyncio.sleep(_WATCH)
            process.send_signal(signal.SIGKILL)
            await process.communicate()
            peaks.append(await watching)
        process = await self._start()
        watching = asyncio.create_task(_watch(process.pid))
        out, _ = await process.communicate()
        if process.returncode != 0:
            raise click.ClickException(f"the command failed: {out.decode()}")
        return Measured(json.loads(out), time.perf_counter() - begun, max(*peaks, await watching, 0))

    async def _compared(self) -> int:
        """How far the run is that is under way; 0 where there is none."""
        sql = await asyncpg.connect(self.dsn)
        found = await sql.fetchval("SELECT max(compared) FROM reconciliations WHERE status = 'running'")
        await sql.close()
        return found or 0

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli.commands", "reconcile", "product", "--json"),
            cwd=self.directory,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "DATABASE_URL": self.dsn,
                "ENCRYPTION_KEYS": self.key,
                "JASPER_API_URL": self.api,
                "JASPER_API_TOKEN": "a-token",
                "PUBLIC_URL": "http://127.0.0.1:1",
                "RECONCILE_RATE": "1000",
            },
            stdout=asyncio.subprocess.PIPE,
        )


async def _watch(pid: int) -> int:
    """The most memory that a process holds until its end (VmHWM, in bytes)."""
    peak = 0
    while seen := peak_memory_of(pid):
        peak = seen
        await asyncio.sleep(_WATCH)
    return peak


@asynccontextmanager
async def _bench(directory: Path, jasper: ListJasper) -> AsyncIterator[Bench]:
    with embedded_postgres(directory) as dsn:
        engine = create_engine(dsn)
        await migrate(engine)
        await engine.dispose()
        async with jasper.served() as api:
            yield Bench(dsn, api, directory, generate_key())


def _no_signals() -> Any:
    """Leaves signals to the command."""
    return nullcontext()


async def measure(products: int, missed: int, page_size: int, directory: Path) -> None:
    """Load, outage, and what comes back; raises ClickException where that is not exactly what was missed."""
    chance = random.Random(1)
    jasper = ListJasper(page_size)
    for identity in range(1, products + 1):
        jasper.put(identity, chance)
    jasper.arrange()
    async with _bench(directory, jasper) as bench:
        _tell(f"initial load of {products:,}", await bench.reconcile(), jasper)
        sql = await asyncpg.connect(bench.dsn)
        head = await sql.fetchval("SELECT max(sequence) FROM events")
        _tell("nothing missed", await bench.reconcile(), jasper)

        expected: dict[str, str] = {}
        for identity in chance.sample(range(1, products + 1), missed):
            if chance.random() < 0.2:
                del jasper.products[identity]
                expected[str(identity)] = "delete"
            else:
                jasper.put(identity, chance)
                expected[str(identity)] = "update"
        for identity in range(products + 1, products + missed // 5 + 1):
            jasper.put(identity, chance)
            expected[str(identity)] = "create"
        jasper.arrange()
        counted = Counter(expected.values())
        _tell(f"missed: {dict(counted)}, killed half-way", await bench.reconcile(kill_at=products // 2), jasper)

        events = await sql.fetch("SELECT entity_id, action, stale, source FROM events WHERE sequence > $1", head)
        found = {event["entity_id"]: event["action"] for event in events}
        if found != expected or len(events) != len(expected):
            raise click.ClickException("what came back is not what was missed")
        if any(event["stale"] or event["source"] != "reconciliation" for event in events):
            raise click.ClickException("some of what came back is stale, or names another source")
        rows = await sql.fetch(
            "SELECT n.entity_id, md5(e.data) FROM entities n JOIN events e ON e.sequence = n.data_sequence"
            " WHERE n.deleted_at IS NULL"
        )
        theirs = {str(identity): text.decode() for identity, text in jasper.products.items()}
        if len(rows) != len(theirs) or any(row["md5"] != _md5(theirs[row["entity_id"]]) for row in rows):
            raise click.ClickException("the states are not Jasper's")
        click.echo(f"{len(events):,} events, exactly what was missed; {len(rows):,} states, all Jasper's")
        await sql.close()


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _tell(what: str, measured: Measured, jasper: ListJasper) -> None:
    record = measured.record
    click.echo(
        f"{what}: {record['compared']:,} compared, {record['created']:,} created, {record['updated']:,} updated, "
        f"{record['deleted']:,} deleted in {measured.seconds:.1f} s, at most {measured.peak / 2**20:.0f} MiB; "
        + ", ".join(f"{count:,} {name}" for name, count in jasper.requests.items())
    )
    jasper.requests.clear()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--products", default=100_000, show_default=True, type=click.IntRange(100))
@click.option("--missed", default=2_000, show_default=True, type=click.IntRange(10), help="Updates and deletes.")
@click.option("--page-size", default=100, show_default=True, type=click.IntRange(1))
def main(products: int, missed: int, page_size: int) -> None:
    """Measure reconciliation, and check that what was missed comes back, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="reconcile-") as directory:
        asyncio.run(measure(products, missed, page_size, Path(directory)))


if __name__ == "__main__":
    main()
