"""`python -m bench.growth`: what changes when the tables grow, by the side of a past a hundredth as long.

Every figure is taken twice, on a small past and on the large one, so that what grows with it stands out. Both are filled in
first, and then asked and sent to in turns: what the machine does otherwise strikes both.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from statistics import median

import click
import msgspec

from app.db.engine import create_engine
from app.errors import DatabaseUnavailableError
from app.ledger.retention import Periods, remove
from bench.fill import RARE_NAME, Past, fill, latest
from bench.load import Answers, Load, send
from bench.measure import in_turn, rows_problem
from bench.postgres import Postgres, row, running_postgres, size, value
from bench.products import FASTEST, FIRST_ID, LIVELY, bodies
from bench.report import table, this_machine
from bench.requests import Requests, write_requests
from bench.subjects.service import TEMPLATE, service, service_template
from bench.subjects.web import HEADERS

_CONNECTIONS = 64
_SMALLEST = 10_000
_REMOVED = 1_000_000
"""How many of the oldest events are removed under load; of a shorter past the older half."""

_STEADY = 500.0
_SPAN = 5.0
_LONGEST_REMOVAL = 300.0
"""Callbacks a second while these are removed, in spans of so many seconds, for at most so long."""

_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure at both sizes."""

    name: str
    unit: str
    small: float
    large: float

    @property
    def ratio(self) -> float:
        """How the large one compares."""
        return self.large / self.small if self.small else float("inf")


@dataclass(frozen=True, slots=True)
class Question:
    """One call of the API, asked over and over by one reader."""

    name: str
    path: str


def questions(past: Past) -> list[Question]:
    """What readers ask, wherever the answer lies."""
    last = past.events - 100
    middle = f"{past.time(past.events // 2) + timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}"
    history = f"/v1/products/{past.busy_id}/events?limit=100"
    events, products = "/v1/events?limit=100&", "/v1/products"
    return [
        Question("page of 100, first", f"{events}after=0"),
        Question("page of 100, middle", f"{events}after={past.events // 2}"),
        Question("page of 100, last", f"{events}after={last}"),
        Question("page of one quiet entity, from the start", f"{events}after=0&entity_id={past.quiet_id}"),
        Question(f"page of events that changed {RARE_NAME}, from the start", f"{events}after=0&changed={RARE_NAME}"),
        Question("page of deletes, of which there are none", f"{events}after=0&action=delete"),
        Question("page since the middle", f"{events}after=0&since={middle}"),
        Question("state of a quiet entity", f"{products}/{past.quiet_id}"),
        Question(
            "state of the busy entity as of the middle, by position",
            f"{products}/{past.busy_id}?as_of={past.events // 2}",
        ),
        Question("state of the busy entity as of the middle, by time", f"{products}/{past.busy_id}?as_of={middle}"),
        Question("history of the busy entity, its first 100", history),
        Question("history of the busy entity, its last 100", f"{history}&after={past.events - 100 * past.busy_every}"),
        Question("how far three consumers are behind", "/v1/consumers"),
        Question("100 products by id, middle", f"{products}?limit=100&after={FIRST_ID + past.entities // 2}"),
    ]


@dataclass(slots=True)
class Side:
    """One past, in a database of its own, and the service on it. `found` are its figures, by name and unit."""

    past: Past
    dsn: str
    port: int
    callbacks: Requests
    found: dict[tuple[str, str], float]
    sent: list[Answers] = field(default_factory=list)

    async def send(self, seconds: float, rate: float | None = None) -> Answers:
        """Send callbacks, as fast as can be or so many a second, going on behind those that were sent before.

        Raises ClickException where there are no more.
        """
        first = sum(one.sent for one in self.sent)
        path = str(self.callbacks.path)
        load = Load(requests=path, ports=[self.port], connections=_CONNECTIONS, seconds=seconds, first=first, rate=rate)
        self.sent.append(await send(load))
        if self.sent[-1].exhausted:
            raise click.ClickException("the prepared callbacks ran out before the time did")
        return self.sent[-1]

    async def check(self) -> None:
        """Raises ClickException where a callback was lost or doubled."""
        new = f"status = 'accepted' AND event_sequence > {self.past.events}"
        counts = f"SELECT count(*), count(DISTINCT event_sequence) FROM deliveries WHERE {new}"  # noqa: S608 - ours
        rows, distinct = await row(self.dsn, counts)
        problem = rows_problem(
            acknowledged=sum(one.succeeded for one in self.sent),
            failed=sum(one.failed for one in self.sent),
            rows=rows,
            distinct=distinct,
        )
        if problem:
            raise click.ClickException(problem)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run needs at both sizes."""

    postgres: Postgres
    directory: Path
    key: str
    seconds: float
    rounds: int
    say: Callable[[str], None]

    @asynccontextmanager
    async def side(self, past: Past) -> AsyncIterator[Side]:
        """A past that is filled in, and the service that has started on it."""
        name = f"growth_{past.events}"
        callbacks = self._callbacks(past, self.directory / f"callbacks-{past.events}")
        async with self.postgres.database(name, template=TEMPLATE) as dsn:
            empty = await size(dsn)
            begun = time.perf_counter()
            self.say(f"filling in {past.events:,} events of {past.entities:,} entities")
            await fill(dsn, past)
            self.say(f"filled in {time.perf_counter() - begun:.0f} s")
            payload = await value(dsn, "SELECT sum(size)::float8 FROM deliveries")
            disk = (await size(dsn) - empty) / payload
            await self.postgres.settle()
            begun = time.perf_counter()
            async with service().running(self.postgres, name, self.directory) as [process]:
                started = time.perf_counter() - begun
                found = {("disk, a multiple of the payload", "x"): disk, ("start until it is ready", "s"): started}
                yield Side(past, dsn, process.port, callbacks, found)

    def _callbacks(self, past: Past, path: Path) -> Requests:
        known = latest(past, LIVELY)
        count = int(FASTEST * (self.seconds * (self.rounds + 1) + 1) + _STEADY * _LONGEST_REMOVAL)
        made = bodies(known=known, first_id=FIRST_ID + past.entities)
        return write_requests(path, ["POST /callbacks/products"] * count, made, HEADERS)

    async def measure(self, sides: Sequence[Side]) -> None:
        """All figures of all sides, in turns."""
        for asked in zip(*(questions(side.past) for side in sides), strict=True):
            for side, question in zip(sides, asked, strict=True):
                await self._ask(question, side)
        await self.postgres.settle()
        for side in sides:
            await side.send(1)
        rounds: list[list[Answers]] = [[] for _ in sides]
        for number in range(self.rounds):
            for side, done in in_turn(list(zip(sides, rounds, strict=True)), number):
                done.append(await side.send(self.seconds))
                rate = f"{done[-1].rate:,.0f}/s on {side.past.events:,} events"
                self.say(f"intake, round {number + 1} of {self.rounds}: {rate}")
        for side, done in zip(sides, rounds, strict=True):
            side.found["intake", "a second"] = median(one.rate for one in done)
            side.found["intake, p99", "ms"] = median(one.percentiles[0.99] for one in done) * 1e3
            await self._remove(side)
            await side.check()

    async def _remove(self, side: Side) -> None:
        """Have retention remove the oldest events, under full load at first, and at a steady rate until all are gone."""
        async with _removing(side.dsn, side.past) as removal:
            full = await side.send(self.seconds)
            spans = [await side.send(_SPAN, _STEADY)]
            while not removal.done():
                spans.append(await side.send(_SPAN, _STEADY))
            seconds = await removal
        count = await value(side.dsn, "SELECT oldest_after FROM retention")
        self.say(f"intake while the oldest {count:,} events are removed in {seconds:.0f} s: {full.rate:,.0f}/s")
        side.found["intake while the oldest events are removed", "a second"] = full.rate
        side.found["intake while the oldest events are removed, p99", "ms"] = full.percentiles[0.99] * 1e3
        worst = max(one.percentiles[0.99] for one in spans)
        side.found[f"p99 of {_STEADY:.0f} a second until they are gone, worst {_SPAN:.0f} s", "ms"] = worst * 1e3
        side.found["events removed under load", "a second"] = count / seconds

    async def _ask(self, question: Question, side: Side) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        asked = write_requests(self.directory / "question", [f"GET {question.path}"], [b""], headers)
        load = Load(requests=str(asked.path), ports=[side.port], connections=1, seconds=self.seconds, cycle=True)
        await send(replace(load, seconds=0.5))
        answers = await send(load)
        if answers.failed:
            raise click.ClickException(f"{question.path} was answered with {answers.statuses} {answers.samples}")
        self.say(f"{question.name}: {answers.percentiles[0.5] * 1e3:.2f} ms on {side.past.events:,} events")
        side.found[f"{question.name}, p50", "ms"] = answers.percentiles[0.5] * 1e3
        side.found[f"{question.name}, p99", "ms"] = answers.percentiles[0.99] * 1e3


@asynccontextmanager
async def _removing(dsn: str, past: Past) -> AsyncIterator[asyncio.Task[float]]:
    """Retention at work on the oldest events, until all of them are gone; its result is how many seconds that took.

    The deliveries stay, so that each has to be made whole first: the most that it ever has to do.
    """
    engine = create_engine(dsn, pool_size=1)

    async def work() -> float:
        day = timedelta(days=1)
        now = past.time(min(_REMOVED, past.events // 2) + 1) + day
        begun = time.perf_counter()
        while True:
            with suppress(DatabaseUnavailableError):  # it gave way to the ledger, and the service would go on later
                await remove(engine, Periods(day, None), now=now)
                return time.perf_counter() - begun
            await asyncio.sleep(_PAUSE)

    task = asyncio.create_task(work())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.dispose()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--events", default=1_000_000, show_default=True, type=click.IntRange(_SMALLEST), help="How long the past is."
)
@click.option(
    "--entities", default=100_000, show_default=True, type=click.IntRange(1_000), help="Of how many entities."
)
@click.option("--seconds", default=3.0, show_default=True, help="How long each figure is measured.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds of intake.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where Postgres keeps its data meanwhile; without it in the temporary directory. An event takes some 4 kB, "
    "the callbacks that are sent some gigabytes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(*, events: int, entities: int, seconds: float, rounds: int, directory: Path | None, as_json: bool) -> None:
    """Measure the service with a long past beside the same with one a hundredth as long.

    Intake, also while retention removes the oldest events, pages, filters, states of the past, histories, start-up and
    disk. The report goes to standard output, progress to standard error. Exits 0, or 1 where a callback was lost or
    doubled, or a call was not answered with 2xx.
    """
    with tempfile.TemporaryDirectory(prefix="jasper-growth-", dir=directory) as scratch:
        Path(scratch).chmod(0o755)  # for root's sake: Postgres then runs as somebody else
        small = Past(max(_SMALLEST, events // 100), max(1_000, entities // 100))
        figures = asyncio.run(_compare(small, Past(events, entities), Path(scratch), seconds, rounds))
        machine = this_machine(Path(scratch))
    if as_json:
        report = {
            "machine": machine,
            "small": small.events,
            "large": events,
            "figures": [asdict(one) for one in figures],
        }
        click.echo(msgspec.json.encode(report).decode())
        return
    rows = [[one.name, f"{one.small:,.2f}", f"{one.large:,.2f}", f"{one.ratio:.2f} x", one.unit] for one in figures]
    click.echo(table(("figure", f"{small.events:,} events", f"{events:,} events", "ratio", "unit"), rows))
    click.echo(f"\n{machine.cores} cores of {machine.processor}, data on {machine.filesystem}; commit {machine.commit}")


async def _compare(short: Past, long: Past, directory: Path, seconds: float, rounds: int) -> list[Figure]:
    def say(message: str) -> None:
        click.echo(message, err=True)

    async with running_postgres(directory / "postgres") as postgres, service_template(postgres) as key:
        run = Run(postgres, directory, key, seconds, rounds, say)
        async with run.side(short) as before, run.side(long) as after:
            await run.measure([before, after])
            return [Figure(name, unit, small, after.found[name, unit]) for (name, unit), small in before.found.items()]


if __name__ == "__main__":
    sys.exit(main())
