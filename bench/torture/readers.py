"""Readers who follow the feed during the run, through whichever receiver is alive, and write down what they were given."""

import asyncio
import random
from collections.abc import Sequence

import httpx

from bench.torture.receiver import KEY

_PAUSE = 0.2
"""Seconds between two pages of a reader that does not wait, and after a failure."""

_CATCH_UP = 60.0
"""Seconds that a reader has in the end to come to the end of the feed."""


class Reader:
    """Follows the feed page by page from the beginning; with `wait` (seconds) by long poll."""

    def __init__(self, name: str, urls: Sequence[str], *, wait: int, limit: int, seed: int) -> None:
        self.name = name
        self.seen: list[tuple[int, str]] = []
        """Sequence and id of every event it was given, in the order it was given them."""
        self.wrong: list[str] = []
        self.position = 0
        self._moved = asyncio.Condition()
        self._urls = urls
        self._parameters: dict[str, int | str] = {"limit": limit, "wait": wait, "include_stale": "true"}
        self._wait = wait
        self._chance = random.Random(f"reader {name} {seed}")
        headers = {"Authorization": f"Bearer {KEY}"}
        self._http = httpx.AsyncClient(timeout=wait + 10, headers=headers, trust_env=False)

    async def follow(self) -> None:
        """Read for ever; run it as a task and cancel it."""
        try:
            while True:
                if not await self._read() and not self._wait:
                    await asyncio.sleep(_PAUSE)
        finally:
            await self._http.aclose()

    async def reach(self, position: int) -> None:
        """Wait until it has come that far. Raises TimeoutError."""
        async with asyncio.timeout(_CATCH_UP), self._moved:
            await self._moved.wait_for(lambda: self.position >= position)

    async def _read(self) -> bool:
        """Read one page; returns whether more is to be had at once."""
        url = f"{self._chance.choice(self._urls)}/v1/events"
        try:
            response = await self._http.get(url, params=self._parameters | {"after": self.position})
        except httpx.TransportError:
            await asyncio.sleep(_PAUSE)
            return False
        if response.status_code != httpx.codes.OK:
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                self.wrong.append(f"a reader was answered {response.status_code}: {response.text[:300]}")
            await asyncio.sleep(_PAUSE)
            return False
        page = response.json()
        self.seen += [(event["sequence"], event["id"]) for event in page["events"]]
        if page["after"] < self.position or any(event["sequence"] > page["after"] for event in page["events"]):
            self.wrong.append(f"a reader at {self.position} was sent to {page['after']}")
        self.position = page["after"]
        async with self._moved:
            self._moved.notify_all()
        return bool(page["has_more"])
