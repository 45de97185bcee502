"""`python -m bench.torture`: the torture run as a command."""

import asyncio
import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from bench.torture.faults import Fault
from bench.torture.report import Report
from bench.torture.run import TortureOptions, torture
from bench.torture.sender import SenderOptions

_DEFAULTS = {
    Fault.RECEIVER_KILL: (100, "SIGKILL of a receiver."),
    Fault.RECEIVER_STOP: (10, "SIGTERM of a receiver, which must exit with 0."),
    Fault.POSTGRES_KILL: (30, "SIGKILL of Postgres."),
    Fault.POSTGRES_STOP: (2, "Postgres stopped for --stop-seconds."),
    Fault.POSTGRES_FREEZE: (5, "SIGSTOP of all processes of Postgres for some seconds."),
    Fault.CUT: (15, "pg_terminate_backend on the receivers' connections."),
    Fault.DISK_FULL: (8, "Postgres says for some seconds that its disk is full, though it is not."),
    Fault.NO_SPACE: (0, "The disk of Postgres is really full for some seconds; needs --small-disk."),
    Fault.LOCK: (10, "Another session holds what commits need, longer than a receiver waits."),
}


def _fault_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option for each fault."""
    for fault, (count, sentence) in reversed(_DEFAULTS.items()):
        name = fault.name.lower()
        command = click.option(
            f"--{fault}", name, type=click.IntRange(0), default=count, show_default=True, help=sentence
        )(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_fault_options
@click.option("--stop-seconds", default=30.0, show_default=True, help="How long a stopped Postgres stays away.")
@click.option("--minutes", default=25.0, show_default=True, help="How long the faults may take at most.")
@click.option("--seed", default=1, show_default=True, help="Decides what is sent, and what strikes when and where.")
@click.option("--receivers", type=click.IntRange(1), default=2, show_default=True, help="Replicas side by side.")
@click.option("--rate", default=200.0, show_default=True, help="Changes a second.")
@click.option("--entities", type=click.IntRange(1), default=120, show_default=True, help="How many the changes are of.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where Postgres and the receivers keep their files; without it they go when the run ends.",
)
@click.option(
    "--small-disk",
    type=click.IntRange(512),
    metavar="MEGABYTES",
    help="Put Postgres on a file system of its own in memory, so that --full-disks can strike. Only root can.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    *,
    stop_seconds: float,
    minutes: float,
    seed: int,
    receivers: int,
    rate: float,
    entities: int,
    directory: Path | None,
    small_disk: int | None,
    as_json: bool,
    **faults: int,
) -> None:
    """Kill receivers and Postgres under load, again and again, and check that nothing is lost, doubled or out of order.

    Real processes on a real Postgres of their own, on this machine only. A sender retries as Jasper does; in the end an
    independent checker compares what it was answered with the deliveries, the feed and the state. The report goes to
    standard output, progress to standard error.

    Exits 0 without a violation, 1 with one or where the service never came back, 2 where it was called wrongly.
    """
    if faults[Fault.NO_SPACE.name.lower()] and small_disk is None:
        raise click.UsageError("--full-disks needs --small-disk")
    options = TortureOptions(
        faults={fault: faults[fault.name.lower()] for fault in _DEFAULTS},
        seed=seed,
        receivers=receivers,
        entities=entities,
        seconds=minutes * 60,
        stop_seconds=stop_seconds,
        sender=SenderOptions(rate=rate),
        disk_megabytes=small_disk,
        settings={"max_wal_size": "256MB"},  # so that recovery is short, as it has to be 30 times
    )
    logging.disable(logging.WARNING)  # that Postgres died is no news here
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        try:
            report = asyncio.run(_run(options, directory or Path(temporary), partial(_say, begin)))
        except (KeyboardInterrupt, asyncio.CancelledError):
            _say(begin, "interrupted; everything has been stopped")
            sys.exit(1)
        except Exception as error:  # noqa: BLE001 - that it did not come to its end is the result
            _say(begin, f"the run failed: {error!r}")
            sys.exit(1)
    print(json.dumps(asdict(report)) if as_json else "\n".join(report.lines()))
    sys.exit(0 if report.passed else 1)


async def _run(options: TortureOptions, directory: Path, say: Callable[[str], None]) -> Report:
    task = asyncio.ensure_future(torture(options, directory, say))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _say(begin: float, words: str) -> None:
    print(f"{time.monotonic() - begin:6.0f} s  {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
