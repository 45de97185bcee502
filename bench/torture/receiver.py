"""Receivers as processes of their own, which can be killed, stopped, and started again on the same port and data."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.serving import listen

ROOT = Path(__file__).parents[2]
KEY = "an-admin-key-for-the-tests"
START_TIMEOUT = 60.0
"""Seconds that a receiver has to answer for the first time."""

STOP_TIMEOUT = 40.0
"""Seconds that a receiver has to end after SIGTERM: what it waits for itself, and some more."""


class ReceiverDiedError(Exception):
    """The process ended while an answer of it was waited for; the message is its log."""


@dataclass
class ReceiverProcess:
    """`jasper-receiver serve`. Keeps its log, and its data where it has no `DATABASE_URL`, in `data_dir`."""

    data_dir: Path
    environment: dict[str, str]
    arguments: tuple[str, ...] = ()
    port: int = 0
    process: asyncio.subprocess.Process | None = None
    http: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=70))

    def __post_init__(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if self.port == 0:
            with listen("127.0.0.1", 0) as free:
                self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What all its processes have said."""
        return self.data_dir / "receiver.log"

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        """Start it and wait until it answers. Raises ReceiverDiedError, and TimeoutError after START_TIMEOUT."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app.cli.commands", "serve", *self.arguments),
                cwd=self.data_dir,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATA_DIR": str(self.data_dir)}
                | {"PORT": str(self.port), "PUBLIC_URL": self.url, "ADMIN_API_KEY": KEY}
                | self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for whoever runs this, who then stops it in order
            )
        await self.until(lambda: self.http.get(f"{self.url}/healthz"))

    async def until(self, ask: Callable[[], Awaitable[httpx.Response]], within: float = START_TIMEOUT) -> None:
        """Ask until the answer is a 2xx. Raises ReceiverDiedError, and TimeoutError after `within` seconds."""
        async with asyncio.timeout(within):
            while True:
                if not self.alive:
                    raise ReceiverDiedError(self.log.read_text())
                try:
                    if (await ask()).is_success:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)

    async def ready(self) -> None:
        """Wait until it is ready for callbacks."""
        await self.until(lambda: self.http.get(f"{self.url}/readyz"))

    async def get(self, path: str, **parameters: Any) -> Any:
        """What a call of the API answers. Raises httpx.HTTPError."""
        headers = {"Authorization": f"Bearer {KEY}"}
        response = await self.http.get(f"{self.url}{path}", params=parameters, headers=headers)
        return response.raise_for_status().json()

    async def kill(self) -> None:
        """SIGKILL: no time for anything."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; returns the exit code. Raises TimeoutError where it does not end by itself within STOP_TIMEOUT."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT)

    async def close(self) -> None:
        """Leave nothing behind, however it stands."""
        try:
            if self.alive:
                await self.stop()
        finally:
            if self.alive:
                await self.kill()
            await self.http.aclose()
