"""A simulator served over HTTP for as long as an `async with` lasts: for the command, the demo and the tests.

Runs in the caller's event loop, and leaves signals alone: whoever starts it decides what Ctrl-C means.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from app.simulator.api import create_simulator
from app.simulator.options import SimulatorOptions
from app.simulator.simulator import Simulator

_GRACE_SECONDS = 2


class _Server(uvicorn.Server):
    """A server that installs no signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the caller."""
        yield


@contextlib.asynccontextmanager
async def running_simulator(
    options: SimulatorOptions | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Simulator]:
    """Serve a simulator; port 0 takes a free one. Its `base_url` says where it is.

    Leaving ends the stream and gives up callbacks that are still under way. Raises CatalogError, OptionsError, and
    OSError where the address cannot be had.
    """
    simulator = Simulator(options)
    config = uvicorn.Config(
        create_simulator(simulator=simulator),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config)
    with _listen(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        simulator.base_url = f"http://{name}:{listener.getsockname()[1]}"
        async with simulator:
            # A connection is accepted from here on, and answered as soon as the server runs.
            serving = asyncio.create_task(server.serve(sockets=[listener]), name="simulator's server")
            try:
                yield simulator
            finally:
                server.should_exit = True
                await serving


def _listen(host: str, port: int) -> socket.socket:
    # The protocol is named because asyncio switches Nagle's algorithm off only where it is; each answer would otherwise
    # wait some 40 ms for a delayed acknowledgement.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
