"""What a run comes to: medians and spreads of the rounds, ratios of the service to its peers, as a table or as JSON."""

import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from bench.load import PERCENTILES
from bench.measure import Round
from bench.postgres import SETTINGS
from bench.processes import ROOT

SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some values, and how far they reach."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """The service's rate by another subject's: of their medians, and the median of the ratios of each round."""

    of_medians: float
    of_rounds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All rounds of one subject in one way; what is not a rate is the median of its rounds, memory the largest.

    Rounds with a problem count for nothing but `problems`. Units as in Round.
    """

    way: str
    subject: str
    rounds: int
    rate: Spread | None
    service_ratio: Ratio | None
    percentiles: dict[float, float]
    web_cpu: float | None
    postgres_cpu: float | None
    client_cpu: float | None
    peak_memory: int | None
    wal: float | None
    disk: float | None
    answers: dict[str, int]
    problems: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and when it was measured. `load` is the system's load average at the end: other work makes figures worthless."""

    cores: int
    processor: str
    memory: int
    system: str
    python: str
    filesystem: str
    postgres_settings: dict[str, str]
    commit: str
    finished_at: str
    load: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run."""

    machine: Machine
    about: dict[str, str]
    skipped: dict[str, str]
    summaries: list[Summary]
    rounds: list[Round]

    @property
    def problems(self) -> list[str]:
        """Why subjects are disqualified."""
        return [f"{one.subject}, {one.way}: {problem}" for one in self.summaries for problem in one.problems]


def summarise(rounds: Sequence[Round]) -> list[Summary]:
    """One summary for each subject and way, in the order in which they first came."""
    return [_summary(way, subject, rounds) for way, subject in dict.fromkeys((one.way, one.subject) for one in rounds)]


def _summary(way: str, subject: str, rounds: Sequence[Round]) -> Summary:
    def those_of(name: str) -> list[Round]:
        return [one for one in rounds if one.way == way and one.subject == name]

    mine = those_of(subject)
    sound = [one for one in mine if one.problem is None]
    answers: dict[str, int] = {}
    for one in mine:
        for answer, count in one.answers.items():
            answers[answer] = answers.get(answer, 0) + count

    return Summary(
        way=way,
        subject=subject,
        rounds=len(sound),
        rate=spread([one.rate for one in sound]),
        service_ratio=None if subject == SERVICE else ratio(those_of(SERVICE), mine),
        percentiles={
            share: median(values)
            for share in PERCENTILES
            if (values := [one.percentiles[share] for one in sound if share in one.percentiles])
        },
        web_cpu=_middle(one.web_cpu for one in sound),
        postgres_cpu=_middle(one.postgres_cpu for one in sound),
        client_cpu=_middle(one.client_cpu for one in sound),
        peak_memory=max((one.peak_memory for one in sound if one.peak_memory is not None), default=None),
        wal=_middle(one.wal for one in sound),
        disk=_middle(one.disk for one in sound),
        answers=answers,
        problems=[one.problem for one in mine if one.problem is not None],
    )


def spread(values: Sequence[float]) -> Spread | None:
    """Median, lowest and highest; None of nothing."""
    return Spread(median(values), min(values), max(values)) if values else None


def ratio(numerators: Sequence[Round], denominators: Sequence[Round]) -> Ratio | None:
    """How the rates of two subjects compare; None where one of them has none. Rounds are paired by their number."""
    pairs = [
        (one.rate, other.rate)
        for one, other in zip(numerators, denominators, strict=False)
        if one.problem is None and other.problem is None and other.rate > 0
    ]
    if not pairs:
        return None
    return Ratio(
        of_medians=median(one for one, _ in pairs) / median(other for _, other in pairs),
        of_rounds=median(one / other for one, other in pairs),
    )


def _middle(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return median(there) if there else None


def as_text(report: Report) -> str:
    """The report for people."""
    machine = report.machine
    parts = [
        (
            f"{machine.cores} cores of {machine.processor}, {machine.memory / 2**30:.0f} GiB, {machine.system}, "
            f"Python {machine.python}, data on {machine.filesystem}; commit {machine.commit}; {machine.finished_at}; "
            f"load average {machine.load[0]:.1f} at the end"
        )
    ]
    for way in dict.fromkeys(one.way for one in report.summaries):
        rows = [_cells(one) for one in report.summaries if one.way == way]
        parts.append(f"{way}\n\n{table(_COLUMNS, rows)}")
    parts.append("\n".join(f"{name}: {about}" for name, about in report.about.items()))
    if report.skipped:
        parts.append("\n".join(f"SKIPPED {name}: {reason}" for name, reason in report.skipped.items()))
    others = [
        f"{one.subject}, {one.way}: {count} x {answer}"
        for one in report.summaries
        for answer, count in one.answers.items()
    ]
    if others:
        parts.append("Answers that were no 2xx:\n" + "\n".join(others))
    if report.problems:
        parts.append("DISQUALIFIED:\n" + "\n".join(report.problems))
    return "\n\n".join(parts)


_COLUMNS = (
    *("subject", "per second", "lowest-highest", "service is", "by round", "web us", "pg us", "client us"),
    *("p50 ms", "p99 ms", "p99.9 ms", "peak MB", "WAL x", "disk x", "rounds"),
)


def _cells(one: Summary) -> list[str]:
    milli = [_shown(one.percentiles.get(share), lambda value: f"{value * 1e3:.2f}") for share in PERCENTILES]
    return [
        one.subject,
        "-" if one.rate is None else f"{one.rate.median:,.0f}",
        "-" if one.rate is None else f"{one.rate.low:,.0f}-{one.rate.high:,.0f}",
        "-" if one.service_ratio is None else f"{one.service_ratio.of_medians:.2f} x",
        "-" if one.service_ratio is None else f"{one.service_ratio.of_rounds:.2f} x",
        *(
            _shown(value, lambda value: f"{value * 1e6:.0f}")
            for value in (one.web_cpu, one.postgres_cpu, one.client_cpu)
        ),
        *milli,
        _shown(one.peak_memory, lambda value: f"{value / 1e6:.0f}"),
        *(_shown(value, lambda value: f"{value:.2f}") for value in (one.wal, one.disk)),
        str(one.rounds),
    ]


def _shown(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown has it, also readable as it is: the first column to the left, figures to the right."""
    widths = [max(len(row[number]) for row in (columns, *rows)) for number in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = f"|{'|'.join('-' * (width + 1) + (':' if number else '-') for number, width in enumerate(widths))}|"
    return "\n".join([line(columns), rule, *map(line, rows)])


def this_machine(directory: Path) -> Machine:
    """Where this runs; `directory` is where the data is."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 - the system's own
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        processor=_after(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        filesystem=filesystem_of(directory),
        postgres_settings=SETTINGS,
        commit=commit.stdout.strip() or "unknown",
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        load=os.getloadavg(),
    )


def _after(path: Path, name: str) -> str | None:
    lines = path.read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def filesystem_of(directory: Path) -> str:
    """The kind of file system that a directory is on, such as `ext4`."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    place = directory.resolve()
    above = [(Path(mount[1]), mount[2]) for mount in mounts if place.is_relative_to(mount[1])]
    return max(above, key=lambda mount: len(mount[0].parts))[1]
