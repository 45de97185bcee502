"""One run: sets the stage, lets the faults strike under load, waits until all is told, and has everything checked."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.torture.changes import changes
from bench.torture.checker import Checker
from bench.torture.evidence import examine
from bench.torture.faults import Fault, Stage
from bench.torture.readers import Reader
from bench.torture.receiver import ReceiverProcess
from bench.torture.report import Report
from bench.torture.sender import Sender, SenderOptions
from bench.torture.service import running_service

_AT_ONCE = 2
"""Faults under way at the same time."""

_WORK_BETWEEN = 20
"""Callbacks that must have been heard before a fault strikes alone, and after the last one."""

_STANDSTILL = 90.0
"""Seconds without a callback being heard, and without a fault under way, after which the service is given up."""

_DRAIN = 120.0
"""Seconds after the last fault within which every callback must have been heard."""

_PROGRESS = 10.0
"""Seconds between two words about the progress."""


@dataclass(frozen=True, slots=True)
class TortureOptions:
    """One run. `faults` says how many of each strike, `seconds` bounds the time for them; `pause` is the mean between two.

    `settings` are those of Postgres; with `disk_megabytes` it has a disk of its own, which can be filled.
    """

    faults: Mapping[Fault, int]
    seed: int = 1
    receivers: int = 2
    entities: int = 120
    seconds: float = 1500.0
    stop_seconds: float = 30.0
    pause: float = 1.0
    sender: SenderOptions = field(default_factory=SenderOptions)
    settings: Mapping[str, str] = field(default_factory=dict)
    disk_megabytes: int | None = None


async def torture(options: TortureOptions, directory: Path, say: Callable[[str], None]) -> Report:
    """Run once, with all files under `directory`; `say` is told of the progress.

    Raises TimeoutError where the service never came back, which is a failure as well.
    """
    begin = time.monotonic()
    async with AsyncExitStack() as held:
        service = await held.enter_async_context(
            running_service(
                directory,
                receivers=options.receivers,
                settings=options.settings,
                disk_megabytes=options.disk_megabytes,
            )
        )
        receivers = service.receivers
        urls = [receiver.url for receiver in receivers]
        source = changes(options.seed, options.entities)
        ports = [receiver.port for receiver in receivers]
        sender = Sender(source, ports, service.headers, options.sender, options.seed)
        stage = Stage(
            receivers,
            service.postgres,
            lambda: sender.progress(1),
            stop_seconds=options.stop_seconds,
            seed=options.seed,
        )
        readers = [
            Reader("the reader by pages", urls, wait=0, limit=100, seed=options.seed),
            Reader("the reader by long poll", urls, wait=5, limit=1000, seed=options.seed),
        ]
        sending = await held.enter_async_context(_running(sender.run(), "sender"))
        for reader in readers:
            await held.enter_async_context(_running(reader.follow(), reader.name))
        await held.enter_async_context(_running(_tell_progress(sender, stage, options, say), "progress"))

        at_once = await _strike_all(options, stage, sender)
        sender.stop()
        say(f"no more faults; {len(sender.unsettled)} callbacks are still to be heard")
        await asyncio.wait({sending}, timeout=_DRAIN)
        checker = Checker(sender.changes, sender.answers)
        for number in sorted(sender.unsettled):
            checker.violations.add("never heard", f"{sender.changes[number]}")
        worked = time.monotonic() - begin
        say("checking")
        await asyncio.gather(*(receiver.ready() for receiver in receivers))
        await examine(receivers[0], checker, sender.changes, readers)
        wrong = [*sender.statistics.wrong, *stage.wrong, *(one for reader in readers for one in reader.wrong)]
        codes = [await receiver.stop() for receiver in receivers]
        wrong += [f"a receiver exited with {code} in the end" for code in codes if code != 0]
        for one in wrong:
            checker.violations.add("wrong answer", one)
        return _report(options, stage, sender, checker, worked, at_once, receivers)


async def _strike_all(options: TortureOptions, stage: Stage, sender: Sender) -> int:
    """Let the faults strike at random moments, some while others are under way; returns how many of those there were.

    Raises TimeoutError where nothing is heard any more for _STANDSTILL seconds.
    """
    chance = random.Random(f"plan {options.seed}")
    plan = [fault for fault, count in options.faults.items() for _ in range(count)]
    chance.shuffle(plan)
    deadline = time.monotonic() + options.seconds
    at_once = 0
    under_way: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as striking:
        for fault in plan:
            await asyncio.sleep(chance.expovariate(1 / options.pause))
            if len(under_way) == _AT_ONCE:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            if time.monotonic() > deadline:
                break
            if under_way:
                at_once += 1
            else:
                await _work(sender)
            task = striking.create_task(stage.strike(fault), name=fault)
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    await _work(sender)
    return at_once


async def _work(sender: Sender) -> None:
    """Let some callbacks be heard: without work there is nothing to lose."""
    async with asyncio.timeout(_STANDSTILL):
        await sender.progress(_WORK_BETWEEN)


async def _tell_progress(sender: Sender, stage: Stage, options: TortureOptions, say: Callable[[str], None]) -> None:
    planned = sum(options.faults.values())
    while True:
        await asyncio.sleep(_PROGRESS)
        say(
            f"{sum(stage.struck.values())} of {planned} faults, {sender.settled} callbacks heard, "
            f"{len(sender.unsettled)} not yet, {len(sender.statistics.wrong)} wrong answers"
        )


def _report(
    options: TortureOptions,
    stage: Stage,
    sender: Sender,
    checker: Checker,
    seconds: float,
    at_once: int,
    receivers: list[ReceiverProcess],
) -> Report:
    statistics = sender.statistics
    times = sorted(statistics.times)
    return Report(
        seed=options.seed,
        receivers=options.receivers,
        seconds=seconds,
        faults={fault.value: stage.struck[fault] for fault in Fault if stage.struck[fault]},
        faults_at_once=at_once,
        failed_starts=stage.failed_starts,
        errors_logged=sum(receiver.log.read_text().count('"level": "error"') for receiver in receivers),
        changes=len(sender.changes),
        attempts=statistics.attempts,
        answers=dict(statistics.answers.most_common()),
        deliveries=dict(checker.deliveries.most_common()),
        unheard=checker.unheard,
        events=checker.events,
        stale=checker.stale,
        events_per_second=checker.events / seconds,
        answered_within={name: times[int(len(times) * share)] for name, share in _SHARES.items()} if times else {},
        downtime=statistics.downtime,
        longest_gap=statistics.longest_gap,
        violations=dict(checker.violations.counts),
        details=checker.violations.details,
    )


_SHARES = {"half of them": 0.5, "95 %": 0.95, "99 %": 0.99}


@asynccontextmanager
async def _running(work: Coroutine[None, None, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """A task that is ended with the block. Raises what it raised itself."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
