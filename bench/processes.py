"""Processes that are measured: started, waited for, stopped, and what they took of the machine, as Linux tells in /proc."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.serving import listen

ROOT = Path(__file__).parents[1]

START_TIMEOUT = 120.0
"""Seconds that a process has to answer for the first time."""

STOP_TIMEOUT = 40.0
"""Seconds that a process has to end after SIGTERM."""

_TICKS = os.sysconf("SC_CLK_TCK")
_POLL = 0.02


class ProcessError(Exception):
    """A process did not start, or ended by itself; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class WebProcess:
    """A web server that runs and answers."""

    process_id: int
    port: int

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it and its children have taken."""
        return sum(cpu_of(one) for one in family_of(self.process_id))

    @property
    def peak_memory(self) -> int:
        """Bytes of resident memory that the largest of it and its children ever had."""
        return max(peak_memory_of(one) for one in family_of(self.process_id))


@asynccontextmanager
async def running_web(
    command: Iterable[str], environment: Mapping[str, str], *, directory: Path, ready: str
) -> AsyncIterator[WebProcess]:
    """A web server on a free port, which it is given as PORT or where the command says `{port}`, until the block ends.

    It runs as soon as `ready` (a path) is answered with 2xx. Its log and whatever else it writes stand in `directory`, which
    is there. Raises ProcessError where it does not come that far.
    """
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    log = directory / f"web-{port}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(part.replace("{port}", str(port)) for part in command),
            cwd=directory,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PORT": str(port), **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then stops it in order
        )
    try:
        await _wait_until_ready(process, f"http://127.0.0.1:{port}{ready}", log)
        yield WebProcess(process.pid, port)
        if process.returncode is not None:
            raise ProcessError(f"it ended by itself with {process.returncode}: {_tail(log)}")
    finally:
        await _stop(process)


async def _wait_until_ready(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT), httpx.AsyncClient() as http:
            while True:
                if process.returncode is not None:
                    raise ProcessError(f"it ended with {process.returncode}: {_tail(log)}")
                with suppress(httpx.TransportError):
                    if (await http.get(url)).is_success:
                        return
                await asyncio.sleep(_POLL)
    except TimeoutError as exc:
        raise ProcessError(f"it was not ready within {START_TIMEOUT:.0f} s: {_tail(log)}") from exc


async def _stop(process: asyncio.subprocess.Process) -> None:
    try:
        if process.returncode is None:
            process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2_000:]


def cpu_of(process_id: int) -> float:
    """Seconds of processor time a process has taken, those of its children that have ended included; 0 where it is gone."""
    return sum(map(int, _stat(process_id)[11:15])) / _TICKS


def family_of(process_id: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {
        int(entry.name): _parent_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    }
    family = [process_id]
    for member in family:  # grows as it is gone through
        family += [one for one, parent in parents.items() if parent == member]
    return family


def _parent_of(process_id: int) -> int:
    return int(_stat(process_id)[1])


def _stat(process_id: int) -> list[str]:
    """The fields of /proc/PID/stat behind the program's name (proc(5)): state, parent, …; zeros where it is gone."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 50
    return text.rpartition(")")[2].split()


def peak_memory_of(process_id: int) -> int:
    """Bytes of resident memory that a process ever had; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
