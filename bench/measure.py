"""One measurement of one subject: how requests are sent, what came of it, and whether the database agrees."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from bench.load import Answers, Load, is_success, send
from bench.postgres import Postgres
from bench.processes import WebProcess
from bench.requests import Requests

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How requests are sent for `seconds`: as fast as they are answered, or with `rate` so many a second."""

    name: str
    connections: int
    seconds: float
    warm_seconds: float
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """What all subjects have in common: the server, the requests, and a directory for what they write."""

    postgres: Postgres
    requests: Requests
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one subject did in one round. Latencies and processor times are in seconds, memory in bytes.

    `web_cpu`, `postgres_cpu` and `client_cpu` are per 2xx answer, `wal` and `disk` are multiples of the bodies' bytes; None
    where a subject has no such thing. `answers` counts everything but 2xx; `problem` says why the round counts for nothing.
    """

    subject: str
    way: str
    rate: float = 0.0
    percentiles: dict[float, float] = field(default_factory=dict)
    longest: float = 0.0
    succeeded: int = 0
    web_cpu: float | None = None
    postgres_cpu: float | None = None
    client_cpu: float | None = None
    peak_memory: int | None = None
    wal: float | None = None
    disk: float | None = None
    answers: dict[str, int] = field(default_factory=dict)
    problem: str | None = None


class Subject(Protocol):
    """Something that takes callbacks in, or does as if."""

    @property
    def name(self) -> str:
        """One word."""

    @property
    def about(self) -> str:
        """What it is, in a line."""

    async def missing(self) -> str | None:
        """Why it cannot be measured here, None if it can. May install what it needs into its own folder."""

    async def measure(self, stage: Stage, way: Way) -> Round:
        """One round, from a fresh database to its rows counted. Raises ProcessError and LoadError."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen while a load was sent. `web_cpu` and `postgres_cpu` in seconds, `wal` in bytes, all in total."""

    answers: Answers
    web_cpu: float
    postgres_cpu: float
    wal: int
    peak_memory: int


async def observe(postgres: Postgres, processes: Sequence[WebProcess], load: Load) -> Observed:
    """Send a load and see what it takes. Raises LoadError."""
    wal, web, server = await postgres.wal_position(), sum(one.cpu for one in processes), postgres.cpu
    answers = await send(load)
    server, web = postgres.cpu - server, sum(one.cpu for one in processes) - web
    wal = await postgres.wal_position() - wal
    return Observed(answers, web, server, wal, max(one.peak_memory for one in processes))


def in_turn(items: Sequence[T], number: int) -> list[T]:
    """The items in their order, but who is first changes from one `number` of a round to the next."""
    first = number % len(items)
    return [*items[first:], *items[:first]]


def as_round(subject: str, way: str, seen: Observed) -> Round:
    """What was seen, per answer, without what the database says of it."""
    answers = seen.answers
    each = 1 / max(1, answers.succeeded)
    return Round(
        subject=subject,
        way=way,
        rate=answers.rate,
        percentiles=answers.percentiles,
        longest=answers.longest,
        succeeded=answers.succeeded,
        web_cpu=seen.web_cpu * each,
        postgres_cpu=seen.postgres_cpu * each,
        client_cpu=answers.cpu * each,
        peak_memory=seen.peak_memory,
        answers=other_answers(answers),
    )


def other_answers(answers: Answers) -> dict[str, int]:
    """How often there was what answer that is no 2xx, in words."""
    found = {
        f"{status}: {answers.samples.get(status, '')}": count
        for status, count in sorted(answers.statuses.items())
        if not is_success(status)
    }
    if answers.unanswered:
        found["no answer"] = answers.unanswered
    return found


def rows_problem(*, acknowledged: int, failed: int, rows: int, distinct: int) -> str | None:
    """What is wrong with `rows` in the database after so many requests were answered with 2xx and otherwise.

    Every one that was acknowledged has to be there, none twice. One that failed may be there: it may have been committed
    before its answer was lost. `distinct` is how many different changes the rows tell.
    """
    if distinct < rows:
        return f"{rows - distinct} of {rows} rows are there twice"
    if rows < acknowledged:
        return f"{acknowledged - rows} of {acknowledged} callbacks that were answered with 2xx are lost"
    if rows > acknowledged + failed:
        return f"{rows} rows came of {acknowledged} callbacks answered with 2xx and {failed} otherwise"
    return None
