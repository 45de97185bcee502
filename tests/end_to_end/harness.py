"""A real receiver in a process of its own, on an embedded Postgres of its own, and a checker that trusts neither."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.torture import receiver


class ReceiverProcess(receiver.ReceiverProcess):
    """`jasper-receiver serve` with the embedded Postgres of its own data directory."""

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
async def running_receiver(data_dir: Path, *arguments: str, **environment: str) -> AsyncIterator[ReceiverProcess]:
    """A receiver that is stopped when the block ends, however it stands then; `arguments` are those of `serve`."""
    process = ReceiverProcess(data_dir, environment, arguments)
    try:
        await process.start()
        yield process
    finally:
        await process.close()


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
