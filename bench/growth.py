"""`python -m bench.growth`: what changes when the tables grow, by the side of a past a hundredth as long.

Every figure is taken twice, on a small past and on the large one, so that what grows with it stands out.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import median

import click
import msgspec

from app.db.engine import create_engine
from app.ledger.retention import Periods, remove
from bench.fill import RARE_NAME, Past, fill, latest
from bench.load import Answers, Load, send
from bench.measure import rows_problem
from bench.postgres import Postgres, row, running_postgres, size, value
from bench.products import FIRST_ID, LIVELY, bodies
from bench.report import table, this_machine
from bench.requests import Requests, write_requests
from bench.subjects.service import TEMPLATE, service, service_template
from bench.subjects.web import HEADERS

_DATABASE = "growth"
_FASTEST = 12_000
_CONNECTIONS = 64
_SMALLEST = 10_000


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
        Question("100 products by id, middle", f"{products}?limit=100&after={FIRST_ID + past.entities // 2}"),
    ]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run needs at both sizes."""

    postgres: Postgres
    directory: Path
    key: str
    seconds: float
    rounds: int
    say: Callable[[str], None]

    async def figures(self, past: Past) -> dict[tuple[str, str], float]:
        """All figures of one size, by name and unit."""
        found: dict[tuple[str, str], float] = {}
        callbacks = self._callbacks(past)
        async with AsyncExitStack() as held:
            dsn = await held.enter_async_context(self.postgres.database(_DATABASE, template=TEMPLATE))
            empty = await size(dsn)
            begun = time.perf_counter()
            self.say(f"filling in {past.events:,} events of {past.entities:,} entities")
            await fill(dsn, past)
            self.say(f"filled in {time.perf_counter() - begun:.0f} s")
            payload = await value(dsn, "SELECT sum(size)::float8 FROM deliveries")
            found["disk, a multiple of the payload", "x"] = (await size(dsn) - empty) / payload
            await self.postgres.settle()
            begun = time.perf_counter()
            [process] = await held.enter_async_context(service().running(self.postgres, _DATABASE, self.directory))
            found["start until it is ready", "s"] = time.perf_counter() - begun
            for question in questions(past):
                answers = await self._ask(question, process.port)
                if answers.failed:
                    raise click.ClickException(
                        f"{question.path} was answered with {answers.statuses} {answers.samples}"
                    )
                self.say(f"{question.name}: {answers.percentiles[0.5] * 1e3:.2f} ms")
                found[f"{question.name}, p50", "ms"] = answers.percentiles[0.5] * 1e3
                found[f"{question.name}, p99", "ms"] = answers.percentiles[0.99] * 1e3
            found |= await self._intake(callbacks, process.port, dsn, past)
        return found

    def _callbacks(self, past: Past) -> Requests:
        known = latest(past, LIVELY)
        count = int(_FASTEST * (self.seconds * (self.rounds + 1) + 1))
        made = bodies(known=known, first_id=FIRST_ID + past.entities)
        return write_requests(self.directory / "callbacks", ["POST /callbacks/products"] * count, made, HEADERS)

    async def _ask(self, question: Question, port: int) -> Answers:
        headers = {"Authorization": f"Bearer {self.key}"}
        asked = write_requests(self.directory / "question", [f"GET {question.path}"], [b""], headers)
        load = Load(requests=str(asked.path), ports=[port], connections=1, seconds=self.seconds, cycle=True)
        await send(replace(load, seconds=0.5))
        return await send(load)

    async def _intake(self, callbacks: Requests, port: int, dsn: str, past: Past) -> dict[tuple[str, str], float]:
        """The medians of some rounds, and one more round in which the oldest events are removed meanwhile."""
        await self.postgres.settle()
        load = Load(requests=str(callbacks.path), ports=[port], connections=_CONNECTIONS, seconds=1)
        done = [await send(load)]

        async def one_round() -> Answers:
            first = sum(one.sent for one in done)
            done.append(await send(replace(load, first=first, seconds=self.seconds)))
            return done[-1]

        for number in range(self.rounds):
            self.say(f"intake, round {number + 1} of {self.rounds}: {(await one_round()).rate:,.0f}/s")
        rounds = done[1:]
        async with _removing(dsn, past) as removal:
            beside = await one_round()
        self.say(f"intake while {removal.rate:,.0f} events a second are removed: {beside.rate:,.0f}/s")
        new = f"status = 'accepted' AND event_sequence > {past.events}"
        counts = f"SELECT count(*), count(DISTINCT event_sequence) FROM deliveries WHERE {new}"  # noqa: S608 - ours
        rows, distinct = await row(dsn, counts)
        problem = rows_problem(
            acknowledged=sum(one.succeeded for one in done),
            failed=sum(one.failed for one in done),
            rows=rows,
            distinct=distinct,
        )
        if problem:
            raise click.ClickException(problem)
        return {
            ("intake", "a second"): median(one.rate for one in rounds),
            ("intake, p99", "ms"): median(one.percentiles[0.99] for one in rounds) * 1e3,
            ("intake while the oldest events are removed", "a second"): beside.rate,
            ("intake while the oldest events are removed, p99", "ms"): beside.percentiles[0.99] * 1e3,
            ("events removed meanwhile", "a second"): removal.rate,
        }


@dataclass(slots=True)
class _Removal:
    """How many events went in a second; known once it is over."""

    rate: float = 0.0


@asynccontextmanager
async def _removing(dsn: str, past: Past) -> AsyncIterator[_Removal]:
    """Retention at work on the oldest fifth of the past, as long as the block lasts or there is something to do.

    The deliveries stay, so that each has to be made whole first: the most that it ever has to do.
    """
    found = _Removal()
    engine = create_engine(dsn, pool_size=1)
    day = timedelta(days=1)
    begun = ended = time.perf_counter()

    def end(_: object) -> None:
        nonlocal ended
        ended = time.perf_counter()

    work = asyncio.create_task(remove(engine, Periods(day, None), now=past.time(past.events // 5) + day))
    work.add_done_callback(end)
    try:
        yield found
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        found.rate = await value(dsn, "SELECT oldest_after::float8 FROM retention") / (ended - begun)
    finally:
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
    help="Where Postgres keeps its data meanwhile; without it in the temporary directory. An event takes some 4 kB.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(*, events: int, entities: int, seconds: float, rounds: int, directory: Path | None, as_json: bool) -> None:
    """Measure the service with a long past beside the same with one a hundredth as long.

    Intake, also beside retention, pages, filters, states of the past, histories, start-up and disk. The report goes to
    standard output, progress to standard error. Exits 0, or 1 where a callback was lost or doubled, or a call was not
    answered with 2xx.
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


async def _compare(small: Past, large: Past, directory: Path, seconds: float, rounds: int) -> list[Figure]:
    def say(message: str) -> None:
        click.echo(message, err=True)

    async with running_postgres(directory / "postgres") as postgres, service_template(postgres) as key:
        run = Run(postgres, directory, key, seconds, rounds, say)
        before, after = await run.figures(small), await run.figures(large)
        return [Figure(name, unit, before[name, unit], after[name, unit]) for name, unit in before]


if __name__ == "__main__":
    sys.exit(main())
