"""The newcomer's main job in one command: embedded Postgres, the receiver, and a simulated Jasper that keeps changing.

The receiver is a process of its own, as in production, and is started again when it is killed, so that one can watch that
nothing is lost. Everything stands under `DATA_DIR/demo` and begins afresh each time; no other database is ever touched.
"""

import asyncio
import fcntl
import os
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import asyncpg
import httpx

from app.db.embedded import embedded_postgres
from app.errors import ReceiverError
from app.serving import listen, web_address
from app.settings import Settings
from app.simulator import Simulator, SimulatorOptions, running_simulator

Say = Callable[[str], None]

_READY_WITHIN = 60.0
_POLL = 0.1
_WAIT = 20
"""Seconds the demo's own reader lets the receiver hold a request."""


class DemoError(ReceiverError):
    """The demo cannot start."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`rate` is in changes a second, `changes` how many there shall be (0: for ever), `catalog` a JSON Lines file."""

    catalog: Path | None = None
    rate: float = 1.0
    changes: int = 0


async def run_demo(settings: Settings, options: DemoOptions, say: Say, show: Say) -> None:
    """Run until cancelled; `say` gets talk, `show` a line for each event of the feed.

    Raises DemoError where it cannot start, and the simulator's CatalogError where the catalogue cannot be read.
    """
    directory = settings.data_dir.resolve() / "demo"
    simulated = SimulatorOptions(
        catalog=options.catalog.resolve() if options.catalog else None,
        initial_load=True,
        rate=options.rate,
        changes=options.changes,
        time_resolution="microsecond",
        time_scale=0.01,
        concurrency=32,
        overlap=False,  # so that nothing on the screen is stale
    )
    say("starting Postgres and a simulated Jasper …")
    with _only_one(directory), embedded_postgres(directory) as dsn:
        await _empty(dsn)
        async with running_simulator(simulated) as simulator:
            simulator.pause()  # until the catalogue is through, so that one sees what comes of which
            receiver = _Receiver(directory, settings, f"{simulator.base_url}/api/v1", simulated.token, say)
            async with receiver.running(), httpx.AsyncClient(base_url=receiver.url, timeout=_WAIT + 10) as http:
                http.headers["Authorization"] = f"Bearer {receiver.key}"
                await _ready(http)
                _introduce(receiver, simulator.base_url or "", directory, say)
                await _follow(http, simulator, say, show)


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise DemoError(f"a demo is running already in {directory}: end it, or set another DATA_DIR") from exc
        yield


async def _empty(dsn: str) -> None:
    """Forget what an earlier demo left."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("DROP SCHEMA IF EXISTS feed, public CASCADE; CREATE SCHEMA public")
    finally:
        await connection.close()


class _Receiver:
    """The receiver as a process of its own, started again when it dies."""

    def __init__(self, directory: Path, settings: Settings, api_url: str, token: str, say: Say) -> None:
        self.key = f"demo_{secrets.token_urlsafe(18)}"
        self._directory = directory
        self._say = say
        port = _free_port(settings.host, settings.port)
        self.url = web_address(settings.host, port)
        # Nothing of a real set-up may leak in: the directory has no .env, and what names a setting is left out.
        ours = {name.upper() for name in Settings.model_fields}
        self._environment = {
            name: value for name, value in os.environ.items() if name.upper().removesuffix("_FILE") not in ours
        } | {
            "DATA_DIR": str(directory),
            "HOST": settings.host,
            "PORT": str(port),
            "PUBLIC_URL": self.url,
            "JASPER_API_URL": api_url,
            "JASPER_API_TOKEN": token,
            "ADMIN_API_KEY": self.key,
            "LOG_LEVEL": "warning",
            "LOG_FORMAT": "console",
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._keep_running(), name="demo-receiver")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _keep_running(self) -> None:
        while True:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app.cli.commands", "serve"),
                cwd=self._directory,
                env=self._environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                start_new_session=True,  # Ctrl-C is for the demo, which ends its receiver in order
            )
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                with suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
                raise
            self._say(f"the receiver ended ({f'signal {-code}' if code < 0 else f'exit {code}'}); starting it again …")
            await asyncio.sleep(_POLL)


def _free_port(host: str, wanted: int) -> int:
    """The wanted port, or any free one where that is taken."""
    try:
        with listen(host, wanted) as taken:
            return int(taken.getsockname()[1])
    except OSError:
        with listen(host, 0) as taken:
            return int(taken.getsockname()[1])


async def _ready(http: httpx.AsyncClient) -> None:
    try:
        async with asyncio.timeout(_READY_WITHIN):
            while True:
                with suppress(httpx.TransportError):
                    if (await http.get("/readyz")).is_success:
                        return
                await asyncio.sleep(_POLL)
    except TimeoutError as exc:
        raise DemoError(f"the receiver did not become ready within {_READY_WITHIN:g} s: see its log above") from exc


def _introduce(receiver: _Receiver, simulator_url: str, directory: Path, say: Say) -> None:
    curl = f"curl -s -H 'Authorization: Bearer {receiver.key}'"
    say(
        f"""
The receiver is registered with the simulated Jasper, which sends its whole catalogue and then keeps changing it.

  dashboard  {receiver.url}/   (log in with the API key)
  receiver   {receiver.url}   (API pages: {receiver.url}/docs)
  simulator  {simulator_url}
  API key    {receiver.key}

Try in another terminal:

  {curl} '{receiver.url}/v1/events?limit=3'
  {curl} '{receiver.url}/v1/events?changed=price&wait=30'
  {curl} '{receiver.url}/v1/products?limit=2'
  curl -s {receiver.url}/readyz
  DATA_DIR={quote(str(directory))} {quote(shutil.which("jasper-receiver") or "jasper-receiver")} events tail

Ctrl-C ends everything. The feed, as it comes:
"""
    )


async def _follow(http: httpx.AsyncClient, simulator: Simulator, say: Say, show: Say) -> None:
    """Follow the feed as any reader would: count the creates of the first load, then show every event."""
    total = len(simulator.catalog.entities("product"))
    after, created, said_at = 0, 0, 0.0
    while True:
        try:
            response = await http.get("/v1/events", params={"after": after, "wait": _WAIT, "limit": 500})
            response.raise_for_status()
        except httpx.HTTPError:
            await asyncio.sleep(_POLL)  # the receiver is being started again
            continue
        page = response.json()
        after = page["after"]
        for event in page["events"]:
            if created >= total:
                show(describe(event))
            created += event["action"] == "create"
        if page["events"] and said_at != float("inf"):
            if created >= total:
                said_at = float("inf")
                say(f"{created:>9,} products created; from here on Jasper changes them:\n")
                simulator.resume()
            elif time.monotonic() > said_at + 1:
                said_at = time.monotonic()
                say(f"{created:>9,} of {total:,} products created …")


def describe(event: dict[str, Any]) -> str:
    """An event of the feed in one line."""
    differences = ", ".join(_in_words(change) for change in event["changes"] if change["path"] != "/updated_at")
    return f"#{event['sequence']:<7} {event['type']:<16} {event['entity_id']:<8} {differences}".rstrip()


def _in_words(change: dict[str, Any]) -> str:
    before, after = _short(change.get("from")), _short(change.get("to"))
    match change["op"]:
        case "add":
            return f"{change['path']} = {after}"
        case "remove":
            return f"{change['path']} gone"
        case _:
            return f"{change['path']} {before} → {after}"


_LONGEST_VALUE = 30


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
