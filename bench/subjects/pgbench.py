"""The database's own limit: pgbench with the same rows, so that neither HTTP nor Python is in the way."""

import asyncio
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from bench.load import PERCENTILES, LoadError, percentile
from bench.measure import Round, Stage, Way
from bench.postgres import Postgres, program, size
from bench.subjects.web import DELIVERIES

_INSERT = "INSERT INTO deliveries (body) VALUES (BODY);\n"
_BODIES = 10
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Transactions:
    """What pgbench did: how long each transaction took (in seconds, ascending), and how many a second there were."""

    latencies: list[float]
    rate: float


async def run_pgbench(
    postgres: Postgres, database: str, scripts: list[str], way: Way, *, seconds: float, variables: dict[str, str]
) -> Transactions:
    """Run scripts, each as often as the others, prepared, one connection a client. Raises LoadError with what pgbench said."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        arguments = ["-n", "-M", "prepared", "-l", "--log-prefix=log", "-c", str(way.connections)]
        arguments += ["-j", str(min(2, way.connections)), "-T", str(max(1, round(seconds)))]
        if way.rate:
            arguments += ["-R", str(way.rate)]
        for name, text in variables.items():
            arguments += ["-D", f"{name}={text}"]
        for number, script in enumerate(scripts):
            (directory / f"{number}.sql").write_text(script)
            arguments += ["-f", f"{number}.sql@1"]
        process = await asyncio.create_subprocess_exec(
            *(str(program("pgbench")), *arguments, database),
            cwd=directory,
            env=postgres.variables,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        said = output.decode(errors="replace")
        rates = [line.split()[2] for line in said.splitlines() if line.startswith("tps = ")]
        if process.returncode != 0 or not rates:
            raise LoadError(f"pgbench ended with {process.returncode}: {said[-2_000:]}")
        return Transactions(_latencies(directory), float(rates[0]))


def _latencies(directory: Path) -> list[float]:
    """Seconds of each transaction, ascending. A line of its logs: client, number, microseconds, script, time."""
    lines = [line.split() for log in directory.glob("log.*") for line in log.read_text().splitlines()]
    return sorted(int(line[2]) / _MICRO for line in lines)


def pgbench_round(way: Way, done: Transactions, *, postgres_cpu: float) -> Round:
    """A run as a round; `postgres_cpu` in seconds, in total."""
    count = len(done.latencies)
    return Round(
        subject="pgbench",
        way=way.name,
        rate=done.rate,
        percentiles={share: percentile(done.latencies, share) for share in PERCENTILES},
        longest=done.latencies[-1],
        succeeded=count,
        postgres_cpu=postgres_cpu / count,
    )


@dataclass(frozen=True, slots=True)
class PgbenchSubject:
    """One insert and its commit a transaction, into the table of the peers."""

    name: str = "pgbench"
    about: str = "the database alone: pgbench with the peers' insert, as many clients as connections"

    async def missing(self) -> str | None:
        """It comes with the embedded Postgres."""
        return None

    async def measure(self, stage: Stage, way: Way) -> Round:
        """One round. The bodies are those of a few of the prepared requests."""
        postgres, database = stage.postgres, "round"
        step = max(1, len(stage.requests) // _BODIES)
        bodies = [stage.requests.body(number * step).decode() for number in range(_BODIES)]
        scripts = [_INSERT.replace("BODY", f":body{number}") for number in range(_BODIES)]
        variables = {f"body{number}": body for number, body in enumerate(bodies)}
        mean = sum(len(body.encode()) for body in bodies) / _BODIES
        async with postgres.database(database, schema=DELIVERIES) as dsn:
            await postgres.settle()
            await run_pgbench(postgres, database, scripts, way, seconds=way.warm_seconds, variables=variables)
            empty, wal, cpu = await size(dsn), await postgres.wal_position(), postgres.cpu
            done = await run_pgbench(postgres, database, scripts, way, seconds=way.seconds, variables=variables)
            cpu, wal = postgres.cpu - cpu, await postgres.wal_position() - wal
            sent = mean * len(done.latencies)
            found = pgbench_round(way, done, postgres_cpu=cpu)
            return replace(found, wal=wal / sent, disk=(await size(dsn) - empty) / sent)
