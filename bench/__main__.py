"""`python -m bench`: the benchmark as a command."""

import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from app.simulator.catalog import CatalogError, read_jsonl
from bench.burst import CALLBACKS as BURST
from bench.burst import burst
from bench.fill import Past
from bench.load import LoadError
from bench.measure import Round, Stage, Subject, Way, in_turn
from bench.postgres import running_postgres
from bench.processes import ProcessError
from bench.products import FASTEST, bodies
from bench.reads import Reading, filled, positions, read
from bench.report import Report, as_text, filesystem_of, summarise, this_machine
from bench.requests import write_requests
from bench.subjects.pgbench import PgbenchSubject
from bench.subjects.service import service, service_template
from bench.subjects.web import CEILING, FASTIFY, HEADERS, NAIVE, NAIVE_PAGE, TUNED

_WARM_SECONDS = 1.0

SUBJECTS: dict[str, Subject] = {one.name: one for one in (service(), CEILING, NAIVE, TUNED, FASTIFY, PgbenchSubject())}
READERS = ("service", "naive", "pgbench")
MEASURES = ("intake", "steady", "reads", "burst")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run was asked for."""

    measures: tuple[str, ...]
    subjects: list[Subject]
    connections: tuple[int, ...]
    rate: float
    rounds: int
    seconds: float
    events: int
    catalog: Path | None

    @property
    def warm_seconds(self) -> float:
        """How long each measurement is run before it counts."""
        return min(_WARM_SECONDS, self.seconds)

    @property
    def callbacks(self) -> int:
        """How many callbacks have to be prepared."""
        wanted = [int(FASTEST * (way.seconds + way.warm_seconds)) for way in self.ways]
        return max(wanted + [BURST] * ("burst" in self.measures), default=0)

    @property
    def ways(self) -> list[Way]:
        """How callbacks are sent."""
        times = {"seconds": self.seconds, "warm_seconds": self.warm_seconds}
        found = []
        if "intake" in self.measures:
            found += [
                Way(name=f"intake, {_counted(count, 'connection')}", connections=count, **times)
                for count in self.connections
            ]
        if "steady" in self.measures:
            name = f"intake at a steady {self.rate:g} a second"
            found.append(Way(name=name, connections=max(self.connections), rate=self.rate, **times))
        return found


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def say(message: str) -> None:
    """Progress."""
    click.echo(message, err=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("measures", nargs=-1, type=click.Choice(MEASURES))
@click.option(
    "--subject", "names", multiple=True, type=click.Choice(list(SUBJECTS)), help="Only these; without it all of them."
)
@click.option(
    "--connections",
    multiple=True,
    default=(64,),
    show_default=True,
    type=click.IntRange(1, 512),
    help="Of intake; repeatable.",
)
@click.option("--rate", default=500.0, show_default=True, help="Callbacks a second of steady.")
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="How often each subject has its turn."
)
@click.option("--seconds", default=5.0, show_default=True, help="How long each measurement lasts.")
@click.option(
    "--replicas",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Measure the service as so many processes too.",
)
@click.option(
    "--events", default=100_000, show_default=True, type=click.IntRange(1_000), help="How many events reads find."
)
@click.option(
    "--catalog",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Products, one JSON object a line; without it they are made up.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where Postgres keeps its data meanwhile; without it in the temporary directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, every round included.")
def main(
    *,
    measures: tuple[str, ...],
    names: tuple[str, ...],
    connections: tuple[int, ...],
    rate: float,
    rounds: int,
    seconds: float,
    replicas: int,
    events: int,
    catalog: Path | None,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Measure the service beside its peers, all on the same Postgres with the same payloads.

    MEASURES are intake (as fast as can be, the default), steady (at a rate), reads (pages of the feed) and burst
    (20,000 callbacks over 512 connections, and a reader). The report goes to standard output, progress to standard error.

    Exits 0, or 1 where a subject lost or doubled a callback or could not be measured, 2 where it was called wrongly.
    """
    subjects = [SUBJECTS[name] for name in names or SUBJECTS]
    if replicas > 1:
        subjects.insert(1, service(replicas))
    options = Options(
        measures=measures or ("intake",),
        subjects=subjects,
        connections=connections,
        rate=rate,
        rounds=rounds,
        seconds=seconds,
        events=events,
        catalog=catalog,
    )
    with tempfile.TemporaryDirectory(prefix="jasper-bench-", dir=directory) as scratch:
        Path(scratch).chmod(0o755)  # for root's sake: Postgres then runs as somebody else
        try:
            report = asyncio.run(run(options, Path(scratch)))
        except CatalogError as exc:
            raise click.UsageError(str(exc)) from exc
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(1)
    click.echo(msgspec.json.encode(report).decode() if as_json else as_text(report))
    sys.exit(1 if report.problems else 0)


async def run(options: Options, directory: Path) -> Report:
    """Everything that was asked for, on a Postgres of its own in `directory`."""
    if filesystem_of(directory) == "tmpfs":
        say("the data is on tmpfs, where a commit costs nothing: give --directory on a disk")
    rounds: list[Round] = []
    skipped: dict[str, str] = {}
    async with AsyncExitStack() as held:
        postgres = await held.enter_async_context(running_postgres(directory / "postgres"))
        key = await held.enter_async_context(service_template(postgres))
        if options.callbacks:
            say(f"preparing {options.callbacks:,} callbacks")
            catalog = read_jsonl(options.catalog) if options.catalog else []
            heads = ["POST /callbacks/products"] * options.callbacks
            requests = await asyncio.to_thread(write_requests, directory / "callbacks", heads, bodies(catalog), HEADERS)
            stage = Stage(postgres, requests, directory)
            subjects = []
            for subject in options.subjects if options.ways else ():
                if reason := await subject.missing():
                    skipped[subject.name] = reason
                else:
                    subjects.append(subject)
            for way in options.ways:
                rounds += await intake(stage, subjects, way, options.rounds)
            if "burst" in options.measures:
                for number in range(options.rounds):
                    say(f"burst, round {number + 1} of {options.rounds}")
                    rounds += await burst(stage, key)
        names = [one.name for one in options.subjects if one.name in READERS]
        if "reads" in options.measures and names:
            past = Past(options.events, max(2, options.events // 10))
            say(f"filling in {past.events:,} events")
            database = await held.enter_async_context(filled(postgres, past))
            reading = Reading(
                postgres, database, directory, key, positions(past), options.seconds, options.warm_seconds
            )
            rounds += await read(reading, names, options.rounds, say)
    measured = {one.subject for one in rounds}
    return Report(
        machine=this_machine(directory),
        about={one.name: one.about for one in (*options.subjects, NAIVE_PAGE) if one.name in measured},
        skipped=skipped,
        summaries=summarise(rounds),
        rounds=rounds,
    )


async def intake(stage: Stage, subjects: list[Subject], way: Way, rounds: int) -> list[Round]:
    """Every subject in its turn, `rounds` times over; who is first changes from round to round."""
    done = []
    for number in range(rounds):
        for subject in in_turn(subjects, number):
            try:
                result = await subject.measure(stage, way)
            except (ProcessError, LoadError) as exc:
                result = Round(subject=subject.name, way=way.name, problem=f"it could not be measured: {exc}")
            say(
                f"{way.name}, round {number + 1} of {rounds}: {subject.name} {result.rate:,.0f}/s {result.problem or ''}"
            )
            done.append(result)
    return done


if __name__ == "__main__":
    main()
