from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from app.simulator import Simulator, SimulatorOptions, create_simulator
from tests.simulator.receiver import Receiver, running_receiver

Start = Callable[..., Any]


def quiet_options(**changes: Any) -> SimulatorOptions:
    """Options without a stream and without waits, so that a test only gets what it asks for."""
    return SimulatorOptions(
        **{
            "rate": 0.0,
            "time_resolution": "microsecond",
            "time_scale": 0.001,
            "initial_load_delay": 0.0,
            **changes,
        }
    )


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running


@pytest.fixture
async def simulate() -> AsyncIterator[Start]:
    """Starts simulators with the options given, on demand; they stop with the test."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> Simulator:
            return await stack.enter_async_context(Simulator(quiet_options(**changes)))

        yield start


@pytest.fixture
def jasper() -> Callable[..., Any]:
    """Opens, in this process, a client of the API of a new simulator with the options given."""

    @asynccontextmanager
    async def client(**changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        app = create_simulator(quiet_options(**changes))
        async with (
            app.state.simulator as simulator,
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://jasper.test",
                headers={"Authorization": f"Bearer {simulator.token}"},
            ) as opened,
        ):
            yield opened

    return client
