"""Subjects that are web servers: each round on a fresh database, with fresh processes, and its rows counted at the end."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.load import Load, send
from bench.measure import Round, Stage, Way, as_round, observe, rows_problem
from bench.postgres import Postgres, row, size
from bench.processes import WebProcess, running_web

SECRET = "the-signing-secret-of-the-benchmark"  # noqa: S105 - opens nothing
HEADERS = {"Content-Type": "application/json", "X-Signing-Secret": SECRET, "X-From": "benchmark"}
"""What every callback carries."""

PEERS = Path(__file__).parents[1] / "peers"

DELIVERIES = (PEERS / "deliveries.sql").read_text()
DELIVERIES_ROWS = "SELECT count(*), count(DISTINCT md5(body::text)) FROM deliveries"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSubject:
    """A web server. `rows` asks for the number of rows and of different changes in them; None where nothing is kept."""

    name: str
    about: str
    command: tuple[str, ...]
    ready: str
    rows: str | None
    environment: Mapping[str, str] = field(default_factory=dict)
    template: str = "template1"
    schema: str = ""
    processes: int = 1

    async def missing(self) -> str | None:
        """It runs wherever the benchmark does."""
        return None

    @asynccontextmanager
    async def running(self, postgres: Postgres, database: str, directory: Path) -> AsyncIterator[list[WebProcess]]:
        """Its processes on a database of a server, until the block ends. Raises ProcessError."""
        environment = {
            "DATABASE_URL": postgres.on(database),
            "SIGNING_SECRET": SECRET,
            **postgres.variables,
            "PGDATABASE": database,
            **self.environment,
        }
        async with AsyncExitStack() as held:
            yield [
                await held.enter_async_context(
                    running_web(self.command, environment, directory=directory, ready=self.ready)
                )
                for _ in range(self.processes)
            ]

    async def measure(self, stage: Stage, way: Way) -> Round:
        """One round: warmed up, measured, and compared with the database."""
        postgres, database = stage.postgres, "round"
        async with (
            postgres.database(database, template=self.template, schema=self.schema) as dsn,
            self.running(postgres, database, stage.directory) as processes,
        ):
            await postgres.settle()
            empty = await size(dsn)
            load = Load(
                requests=str(stage.requests.path),
                ports=[one.port for one in processes],
                connections=way.connections,
                seconds=way.seconds,
                rate=way.rate,
                cycle=self.rows is None,  # what keeps nothing may be sent the same again
            )
            warm = await send(replace(load, seconds=way.warm_seconds))
            seen = await observe(postgres, processes, replace(load, first=warm.sent))
            answers, found = seen.answers, as_round(self.name, way.name, seen)
            if answers.exhausted:
                return replace(found, problem="the prepared requests ran out before the time did")
            if self.rows is None:
                return found
            rows, distinct = await row(dsn, self.rows)
            return replace(
                found,
                wal=seen.wal / max(1, stage.requests.body_bytes(warm.sent, answers.sent)),
                disk=(await size(dsn) - empty) / max(1, stage.requests.body_bytes(0, warm.sent + answers.sent)),
                problem=rows_problem(
                    acknowledged=warm.succeeded + answers.succeeded,
                    failed=warm.failed + answers.failed,
                    rows=rows,
                    distinct=distinct,
                ),
            )


def _uvicorn(application: str) -> tuple[str, ...]:
    options = ("--host", "127.0.0.1", "--port", "{port}", "--loop", "uvloop", "--http", "httptools", "--no-access-log")
    return (sys.executable, "-m", "uvicorn", *options, "--log-level", "warning", application)


CEILING = WebSubject(
    name="ceiling",
    about="FastAPI route that reads the body and keeps nothing",
    command=_uvicorn("bench.peers.ceiling:app"),
    ready="/openapi.json",
    rows=None,
)

NAIVE = WebSubject(
    name="naive",
    about="FastAPI, pydantic, SQLAlchemy's ORM: delivery and latest state, a commit a request",
    command=_uvicorn("bench.peers.naive:app"),
    ready="/openapi.json",
    rows=DELIVERIES_ROWS,
)

TUNED = WebSubject(
    name="tuned",
    about="FastAPI and asyncpg: one prepared insert and its commit a request, nothing else",
    command=_uvicorn("bench.peers.tuned:app"),
    ready="/openapi.json",
    schema=DELIVERIES,
    rows=DELIVERIES_ROWS,
)


class FastifySubject(WebSubject):
    """The one on Node.js, which needs packages of its own."""

    __slots__ = ()

    async def missing(self) -> str | None:
        """Install its packages beside it where they are not there yet."""
        if shutil.which("node") is None or (npm := shutil.which("npm")) is None:
            return "Node.js with npm is not installed"
        if (PEERS / "node_modules" / "pg").is_dir():
            return None
        arguments = ("install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error")
        installing = await asyncio.create_subprocess_exec(
            npm, *arguments, cwd=PEERS, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await installing.communicate()
        return None if installing.returncode == 0 else f"npm install failed: {said.decode(errors='replace').strip()}"


FASTIFY = FastifySubject(
    name="fastify",
    about="Fastify and pg on Node.js: one prepared insert and its commit a request, nothing else",
    command=("node", str(PEERS / "fastify.js")),
    ready="/healthz",
    schema=DELIVERIES,
    rows=DELIVERIES_ROWS,
)

NAIVE_PAGE = WebSubject(
    name="naive page",
    about="FastAPI: the ORM's objects in, pydantic's models out",
    command=_uvicorn("bench.peers.naive_page:app"),
    ready="/openapi.json",
    rows=None,
)
