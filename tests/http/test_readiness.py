"""`/readyz` while Jasper is away or refuses: it is told, and the receiver is ready all the same."""

import asyncio
from typing import Any

from app.simulator import Simulator, SimulatorOptions, running_simulator
from tests.http.conftest import Receiver, Start


async def readiness(receiver: Receiver) -> tuple[int, str, dict[str, Any]]:
    """The status of the answer, the word in it, and what it says of the registration."""
    answer = await receiver.http.get("/readyz")
    document = answer.json()
    [registration] = [check for check in document["checks"] if check["name"] == "registration"]
    return answer.status_code, document["status"], registration


def names(simulator: Simulator) -> dict[str, str]:
    """Settings that name a simulated Jasper, which calls nobody."""
    return {
        "jasper_api_url": f"{simulator.base_url}/api/v1",
        "jasper_api_token": simulator.token,
        "public_url": "https://receiver.test",
    }


async def test_token_that_was_rotated_away_is_told_and_receiving_goes_on(start: Start) -> None:
    async with (
        running_simulator(SimulatorOptions(rate=0)) as simulator,
        start(**names(simulator)) as receiver,
        asyncio.timeout(60),
    ):
        while not (await readiness(receiver))[2]["ok"]:
            await asyncio.sleep(0.02)
        status, word, registration = await readiness(receiver)
        assert (status, word, registration["required"]) == (200, "ready", False)
        assert "product: registered" in registration["reason"]

        simulator.token = "another"
        refused = await receiver.http.post("/v1/webhooks/product/register")
        assert refused.status_code == 502
        status, word, registration = await readiness(receiver)
        assert (status, word, registration["ok"]) == (200, "ready", False)
        assert "set JASPER_API_TOKEN" in registration["reason"]
        [webhook] = simulator.webhooks.all()
        assert (await receiver.callback(x_secret=webhook.signing_secret)).status_code == 200


async def test_jasper_that_is_not_there_is_told_and_receiving_goes_on(start: Start) -> None:
    away = {"jasper_api_url": "http://127.0.0.1:1", "jasper_api_token": "token", "public_url": "https://receiver.test"}
    async with start(**away) as receiver:
        status, word, registration = await readiness(receiver)
        assert (status, word, registration["ok"]) == (200, "ready", False)
        assert (await receiver.callback()).status_code == 200


async def test_without_jasper_the_registration_is_as_it_should_be(start: Start) -> None:
    async with start() as receiver:
        status, word, registration = await readiness(receiver)
        assert (status, word, registration["ok"]) == (200, "ready", True)
        assert "nothing is registered" in registration["reason"]
