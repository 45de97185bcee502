"""What every test may ask for: a Postgres of its own, freshly migrated.

One server serves the whole run, whatever the number of workers; each test gets a clone of one migrated template.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.embedded import embedded_postgres
from app.db.engine import Lookups, create_engine
from app.db.migrate import migrate
from app.serving import Server, listen

_TEMPLATE = "migrated_template"


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """DSN of the run's server; all workers share it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    # Nothing here has to survive a crash of the machine, and without waiting for the disk a run takes half the time.
    with embedded_postgres(shared / "postgres", settings={"fsync": "off", "max_connections": "300"}) as dsn:
        asyncio.run(_make_template(dsn))
        yield dsn


async def _make_template(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SELECT pg_advisory_lock(1)")  # several workers come here at once
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", _TEMPLATE):
            await connection.execute(f"CREATE DATABASE {_TEMPLATE}_unfinished")
            engine = create_engine(_on_database(dsn, f"{_TEMPLATE}_unfinished"))
            await migrate(engine)
            await engine.dispose()
            await connection.execute(f"ALTER DATABASE {_TEMPLATE}_unfinished RENAME TO {_TEMPLATE}")
    finally:
        await connection.close()


def _on_database(dsn: str, name: str) -> str:
    before, _, query = dsn.partition("?")
    return f"{before.rpartition('/')[0]}/{name}?{query}"


@pytest.fixture
async def empty_database(postgres_server: str) -> AsyncIterator[str]:
    """DSN of a database without any schema."""
    async for dsn in _database(postgres_server, "template1"):
        yield dsn


@pytest.fixture
async def database(postgres_server: str) -> AsyncIterator[str]:
    """DSN of a database at the newest schema, for this test alone."""
    async for dsn in _database(postgres_server, _TEMPLATE):
        yield dsn


async def _database(server: str, template: str) -> AsyncIterator[str]:
    name = f"test_{uuid4().hex}"
    admin = await asyncpg.connect(server)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield _on_database(server, name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    """An engine on the test's own database."""
    engine = create_engine(database)
    yield engine
    await engine.dispose()


@pytest.fixture
async def lookups(database: str) -> AsyncIterator[Lookups]:
    """Connections for single statements on the test's own database."""
    async with Lookups(database) as lookups:
        yield lookups


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A directory for a test that runs a server of its own."""
    return tmp_path / "data"


class _QuietServer(Server):
    """A server that leaves signals to pytest, and the garbage collector: looking through all there is takes 0.2 s."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def restrain_collector(self) -> None:
        pass


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The address of an application, served over real HTTP for as long as the block lasts."""
    server = _QuietServer(app)
    with listen("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        if serving.done():
            await serving
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
