"""Pages of the feed: the service, the page that people write first, and pgbench with the same select, on the same events."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.fill import Past, fill
from bench.load import Load, LoadError, send
from bench.measure import Round, Way, as_round, in_turn, observe
from bench.postgres import Postgres
from bench.processes import ProcessError, WebProcess
from bench.requests import Requests, write_requests
from bench.subjects.pgbench import pgbench_round, run_pgbench
from bench.subjects.service import TEMPLATE, service
from bench.subjects.web import NAIVE_PAGE, WebSubject

CONNECTIONS = 16
"""Readers at once."""

LIMIT = 100

_DATABASE = "filled"
_PAGES = 5_000
_SELECT = """SELECT sequence, id, entity_type, action, entity_id, occurred_at, received_at, source, delivery_id,
    action_inferred, stale, data, changed, changes
    FROM events WHERE sequence > :after AND NOT stale ORDER BY sequence LIMIT 100;
"""


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the feed pages are read: `after` one number, or anything from the first to the last."""

    name: str
    first: int
    last: int

    def way(self, seconds: float, warm_seconds: float) -> Way:
        """How they are read."""
        name = f"pages of {LIMIT} events, {self.name}, {CONNECTIONS} connections"
        return Way(name=name, connections=CONNECTIONS, seconds=seconds, warm_seconds=warm_seconds)

    def requests(self, directory: Path, key: str) -> Requests:
        """The requests for such pages."""
        chance = random.Random(1)
        heads = [f"GET /v1/events?after={chance.randint(self.first, self.last)}&limit={LIMIT}" for _ in range(_PAGES)]
        headers = {"Authorization": f"Bearer {key}", "Accept": "application/json"}
        return write_requests(directory / f"pages-{self.name}", heads, [b""] * _PAGES, headers)

    @property
    def script(self) -> str:
        """The same for pgbench."""
        return f"\\set after random({self.first}, {self.last})\n{_SELECT}"


def positions(past: Past) -> list[Position]:
    """The first page, any page, the last whole page."""
    deepest = past.events - LIMIT
    return [Position("first", 0, 0), Position("any", 0, deepest), Position("deepest", deepest, deepest)]


@asynccontextmanager
async def filled(postgres: Postgres, past: Past) -> AsyncIterator[str]:
    """A database of the service with that past; yields its name."""
    async with postgres.database(_DATABASE, template=TEMPLATE) as dsn:
        await fill(dsn, past)
        await postgres.settle()
        yield _DATABASE


@dataclass(frozen=True, slots=True)
class Reading:
    """What a run of reads has in common. `key` may read."""

    postgres: Postgres
    database: str
    directory: Path
    key: str
    positions: Sequence[Position]
    seconds: float
    warm_seconds: float

    async def round_of(self, name: str) -> list[Round]:
        """One subject at all positions. Raises ProcessError and LoadError."""
        if name == "pgbench":
            return [await self._pgbench(position) for position in self.positions]
        subject = service() if name == "service" else NAIVE_PAGE
        async with subject.running(self.postgres, self.database, self.directory) as processes:
            ports = [one.port for one in processes]
            return [await self._web(subject, processes, ports, position) for position in self.positions]

    async def _web(
        self, subject: WebSubject, processes: list[WebProcess], ports: list[int], position: Position
    ) -> Round:
        way = position.way(self.seconds, self.warm_seconds)
        load = Load(
            requests=str(position.requests(self.directory, self.key).path),
            ports=ports,
            connections=way.connections,
            seconds=way.seconds,
            cycle=True,
        )
        await send(replace(load, seconds=way.warm_seconds))
        return as_round(subject.name, way.name, await observe(self.postgres, processes, load))

    async def _pgbench(self, position: Position) -> Round:
        way = position.way(self.seconds, self.warm_seconds)
        scripts = [position.script]
        await run_pgbench(self.postgres, self.database, scripts, way, seconds=way.warm_seconds, variables={})
        cpu = self.postgres.cpu
        done = await run_pgbench(self.postgres, self.database, scripts, way, seconds=way.seconds, variables={})
        return pgbench_round(way, done, postgres_cpu=self.postgres.cpu - cpu)


async def read(reading: Reading, names: Sequence[str], rounds: int, say: Callable[[str], None]) -> list[Round]:
    """Every subject in its turn, `rounds` times over."""
    done = []
    for number in range(rounds):
        for name in in_turn(names, number):
            try:
                results = await reading.round_of(name)
            except (ProcessError, LoadError) as exc:
                problem = f"it could not be measured: {exc}"
                ways = [one.way(reading.seconds, reading.warm_seconds) for one in reading.positions]
                results = [Round(subject=name, way=way.name, problem=problem) for way in ways]
            for one in results:
                say(f"{one.way}, round {number + 1} of {rounds}: {name} {one.rate:,.0f}/s {one.problem or ''}")
            done += results
    return done
