"""A reader of Server-Sent Events as the HTML standard (section 9.2) tells browsers to be one, and nothing more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Message:
    """One dispatched event."""

    id: str
    event: str
    data: str


@dataclass
class EventSource:
    """An open stream: `last_id` is what a browser would send when it comes back."""

    response: httpx.Response
    last_id: str = ""
    retry: int | None = None
    comments: int = 0
    ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._messages = self._read()

    async def next(self) -> Message:
        """The next event; raises StopAsyncIteration at the end of the stream."""
        return await anext(self._messages)

    async def take(self, count: int) -> list[Message]:
        return [await self.next() for _ in range(count)]

    async def rest(self) -> list[Message]:
        """All events until the stream ends."""
        return [message async for message in self._messages]

    async def _read(self) -> AsyncIterator[Message]:
        kind, data = "", ""
        async for line in self._lines():
            if not line:
                if data:
                    yield Message(self.last_id, kind, data[:-1])
                kind, data = "", ""
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "":
                    self.comments += 1
                case "id":
                    self.last_id = value
                    self.ids.append(int(value))
                case "event":
                    kind = value
                case "data":
                    data += value + "\n"
                case "retry":
                    self.retry = int(value)

    async def _lines(self) -> AsyncIterator[str]:
        """Lines that end with CR, LF or both, and with nothing else: not what Python takes for line ends."""
        text = b""
        async for chunk in self.response.aiter_bytes():
            *lines, text = (text + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                yield line.decode()


@asynccontextmanager
async def event_source(http: httpx.AsyncClient, query: str = "", **headers: str) -> AsyncIterator[EventSource]:
    """A stream that must open, for as long as the block lasts; headers are given with underscores."""
    named: dict[str, Any] = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.stream("GET", f"/v1/events/stream?{query}", headers=named) as response:
        if response.status_code != 200:
            await response.aread()
        assert response.status_code == 200, response.text
        yield EventSource(response)
