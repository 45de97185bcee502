"""A real receiver in a process of its own, on an embedded Postgres of its own, and a checker that trusts neither."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.serving import listen

ROOT = Path(__file__).parents[2]
KEY = "an-admin-key-for-the-tests"


@dataclass
class ReceiverProcess:
    """`jasper-receiver serve` as a process that can be killed and started again on the same port and data."""

    data_dir: Path
    environment: dict[str, str]
    port: int = 0
    process: asyncio.subprocess.Process | None = None
    http: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=70))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and wait until it answers."""
        if self.port == 0:
            with listen("127.0.0.1", 0) as free:
                self.port = free.getsockname()[1]
        log = (self.data_dir / "receiver.log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli.commands", "serve"),
            cwd=self.data_dir,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATA_DIR": str(self.data_dir)}
            | {"PORT": str(self.port), "PUBLIC_URL": self.url, "ADMIN_API_KEY": KEY}
            | self.environment,
            stdout=log,
            stderr=log,
        )
        log.close()
        await self.until(lambda: self.http.get(f"{self.url}/healthz"))

    async def until(self, ask: Any, within: float = 60) -> httpx.Response:
        """Ask until the answer is a 2xx."""
        async with asyncio.timeout(within):
            while True:
                assert self.process is not None
                assert self.process.returncode is None, (self.data_dir / "receiver.log").read_text()
                try:
                    response: httpx.Response = await ask()
                    if response.is_success:
                        return response
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)

    async def ready(self) -> None:
        await self.until(lambda: self.http.get(f"{self.url}/readyz"))

    async def get(self, path: str, **parameters: Any) -> Any:
        response = await self.http.get(
            f"{self.url}{path}", params=parameters, headers={"Authorization": f"Bearer {KEY}"}
        )
        assert response.is_success, response.text
        return response.json()

    async def kill(self) -> None:
        """SIGKILL: no time for anything."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 40)

    def kill_postgres(self) -> None:
        """SIGKILL the embedded server's first process, whose others then end at once."""
        pid = (self.data_dir / "postgres" / "cluster" / "postmaster.pid").read_text().split("\n", 1)[0]
        os.kill(int(pid), signal.SIGKILL)

    async def feed(self) -> list[dict[str, Any]]:
        """The whole feed, stale events included, read page by page."""
        events: list[dict[str, Any]] = []
        after, more = 0, True
        while more:
            page = await self.get("/v1/events", after=after, limit=500, include_stale="true")
            assert all(event["sequence"] > after for event in page["events"])
            events += page["events"]
            after, more = page["after"], page["has_more"]
        return events

    async def state(self, collection: str = "products") -> dict[str, Any]:
        """Every entity that is not deleted, by id: its data."""
        found: dict[str, Any] = {}
        after: str | None = ""
        while after is not None:
            page = await self.get(f"/v1/{collection}", limit=500, **({"after": after} if after else {}))
            found |= {item["entity_id"]: item["data"] for item in page["items"]}
            after = page["after"]
        return found


@asynccontextmanager
async def running_receiver(data_dir: Path, **environment: str) -> AsyncIterator[ReceiverProcess]:
    """A receiver that is stopped when the block ends, however it stands then."""
    data_dir.mkdir(parents=True, exist_ok=True)
    receiver = ReceiverProcess(data_dir, environment)
    try:
        await receiver.start()
        yield receiver
    finally:
        if receiver.process is not None and receiver.process.returncode is None:
            await receiver.stop()
        await receiver.http.aclose()


def write_catalog(path: Path, count: int) -> Path:
    """A catalogue of `count` products, one a line."""
    with path.open("w") as file:
        for number in range(1, count + 1):
            product = {
                "id": 1000 + number,
                "sku": f"SKU-{number:05}",
                "name": f"Product {number} – größer",
                "description": f"<p>Words about product {number}.</p>" * 10,
                "categories": ["Default Category", "Default Category/Men"],
                "price": number + 0.1,
                "special_price": None,
                "attributes": {"size": "XS", "color": "Black"},
                "inventory": {"qty": number, "is_in_stock": True},
            }
            file.write(json.dumps(product) + "\n")
    return path
