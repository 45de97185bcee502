"""A receiver of callbacks for these tests: real HTTP, answers as told, and remembers all that came."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.types import Receive, Scope, Send


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    method: str
    path: str
    headers: httpx.Headers
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Answers with what `answer` says of a call and its number, counted from 1: a status, or None for no answer at all."""

    url: str
    calls: list[Call] = field(default_factory=list)
    answer: Callable[[Call, int], int | None] = lambda _call, _number: 200
    under_way: int = 0
    most_under_way: int = 0
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    def webhook(self, **properties: Any) -> dict[str, Any]:
        """The properties of a webhook that calls here."""
        return {
            "name": "Product Updates Webhook",
            "callback_url": f"{self.url}/callbacks/products",
            "entity_type": "product",
            "include_entity_data": True,
            "headers": {"My-Custom-Header": "abc123"},
            "retry_policy": "linear",
            "minimum_retry_interval": 1,
            "retry_limit": 5,
            **properties,
        }

    async def wait_for(self, count: int) -> None:
        """Wait until so many calls have come."""
        async with self.arrived, asyncio.timeout(10):
            await self.arrived.wait_for(lambda: len(self.calls) >= count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            body, more = b"", True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            call = Call(
                scope["method"], scope["path"], httpx.Headers(scope["headers"]), body, asyncio.get_running_loop().time()
            )
            async with self.arrived:
                self.calls.append(call)
                number = len(self.calls)
                self.arrived.notify_all()
            status = self.answer(call, number)
            if status is None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            # A sender that followed redirects would come back here as often as it may.
            await send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": [(b"content-length", b"4"), (b"location", b"/elsewhere")],
                }
            )
            await send({"type": "http.response.body", "body": b"done"})
        finally:
            self.under_way -= 1


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def running_receiver() -> AsyncIterator[Receiver]:
    # With the protocol named, asyncio switches Nagle's algorithm off; answers would take 40 ms otherwise.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        receiver = Receiver(f"http://127.0.0.1:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            receiver, log_config=None, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield receiver
        finally:
            server.should_exit = True
            await serving
