"""Serves the application: the socket first, then the application on it, and an orderly end.

The socket listens before the application starts, and so before anything is registered with Jasper: no callback that Jasper
sends because of a registration finds the door closed. At the first signal readers that wait are let go at once.
What a connection may do is in `app.protocol`.
"""

import gc
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from app.protocol import ShortcutProtocol

KEEP_ALIVE = 75
"""Seconds an idle connection stays open: longer than the usual 60 s of a proxy in front, which would else send into a
connection that is just being closed."""

GRACE = 20
"""Seconds that running requests have to finish after a signal."""

BACKLOG = 2048
"""Connections that may wait to be accepted: a burst is queued by the kernel rather than refused."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises OSError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle's delay off only for sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def web_address(host: str, port: int) -> str:
    """Where a browser finds what listens there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Uvicorn with our settings; calls `app.state.drain` before it waits for running requests."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=ShortcutProtocol,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=GRACE,
                ws="none",
            )
        )
        self._app = app

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End in order at SIGINT and SIGTERM, and leave it at that.

        Uvicorn would raise the signal again afterwards, which ends the process before its callers have tidied up.
        """
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does."""
        await super().startup(sockets)
        self.restrain_collector()

    def restrain_collector(self) -> None:
        """Keep the garbage collector out of the way for the rest of the process.

        What is there now stays for as long, and what callbacks leave behind has no cycles: with the usual thresholds a
        fifth of the time went into looking through all of it again and again.
        """
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let go of readers that wait, then end as uvicorn does."""
        self._app.state.drain()
        await super().shutdown(sockets)
