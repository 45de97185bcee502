"""The whole job with real processes: registered, received, committed, read, whatever is killed on the way."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.simulator import SimulatorOptions, running_simulator
from tests.end_to_end.harness import ReceiverProcess, running_receiver, write_catalog

pytestmark = pytest.mark.timeout(180)


def simulated(catalog: Path, **options: Any) -> SimulatorOptions:
    return SimulatorOptions(
        catalog=catalog, initial_load=True, time_resolution="microsecond", time_scale=0.002, concurrency=16, **options
    )


async def check_against(receiver: ReceiverProcess, simulator: Any, creates: int, changes: int) -> None:
    """Nothing missing, nothing twice, in order, and the same state on both sides."""
    assert simulator.sender.statistics.lost == 0
    feed = await receiver.feed()
    sequences = [event["sequence"] for event in feed]
    assert sequences == sorted(set(sequences))
    assert len({event["id"] for event in feed}) == len(feed) == creates + changes
    counted = Counter(event["action"] for event in feed)
    assert counted["create"] >= creates
    times: dict[str, str] = {}
    for event in feed:
        if not event["stale"]:
            assert times.get(event["entity_id"], "") <= event["occurred_at"]
            times[event["entity_id"]] = event["occurred_at"]
    expected = {str(entity["id"]): entity for entity in simulator.catalog.entities("product")}
    assert await receiver.state() == expected


async def test_what_happens_in_jasper_appears_in_the_feed_exactly_once_whatever_is_killed(tmp_path: Path) -> None:
    creates, changes = 300, 200
    options = simulated(write_catalog(tmp_path / "catalog.jsonl", creates), rate=100, changes=changes)
    async with running_simulator(options) as simulator:
        jasper = {
            "JASPER_API_URL": f"{simulator.base_url}/api/v1",
            "JASPER_API_TOKEN": options.token,
            # With the time scale: every 0.6 s for half a minute, as Jasper would every 5 minutes for hours.
            "JASPER_WEBHOOK_RETRY_LIMIT": "50",
        }
        async with running_receiver(tmp_path / "data", **jasper) as receiver:
            await receiver.ready()

            async def feed_beyond(position: int) -> None:
                async with asyncio.timeout(60):
                    while len(await receiver.feed()) < position:
                        await asyncio.sleep(0.02)

            await feed_beyond(20)
            await receiver.kill()
            await receiver.start()
            await feed_beyond(100)
            receiver.kill_postgres()
            await receiver.ready()
            await feed_beyond(200)
            await receiver.kill()
            await receiver.start()
            async with asyncio.timeout(90):
                await simulator.drained()
            await check_against(receiver, simulator, creates, changes)
            assert await receiver.stop() == 0


async def test_a_second_start_finds_its_webhook_and_its_data_again(tmp_path: Path) -> None:
    options = simulated(write_catalog(tmp_path / "catalog.jsonl", 30), rate=0)
    async with running_simulator(options) as simulator:
        jasper = {"JASPER_API_URL": f"{simulator.base_url}/api/v1", "JASPER_API_TOKEN": options.token}
        async with running_receiver(tmp_path / "data", **jasper) as receiver:
            await receiver.ready()
            async with asyncio.timeout(60):
                await simulator.drained()
            before = await receiver.feed()
            assert await receiver.stop() == 0
            await receiver.start()
            await receiver.ready()
            await simulator.change(kind="price")
            async with asyncio.timeout(60):
                await simulator.drained()
            feed = await receiver.feed()
        assert len(before) == 30
        assert feed[:30] == before
        assert [event["action"] for event in feed[30:]] == ["update"]
        assert len(simulator.webhooks.all()) == 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"secret_place": "bearer", "shape": "action_entity", "action_words": "update"},
            id="bearer",
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"secret_place": "hmac:Signature", "shape": "nested", "json_style": "php"}, id="hmac, php, nested"
        ),
        pytest.param(
            {"secret_place": "body:/meta/secret", "action_words": "ProductUpdated"},
            id="in the body",
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"secret_place": "header:X-K", "shape": "headers", "update_verb": "patch"}, id="action in headers"
        ),
        pytest.param(
            {"wrap_resources": False, "duplicate_probability": 0.5, "duplicate_envelope": "new", "page_size": 1},
            id="duplicates in a new envelope",
        ),
        pytest.param({"disorder_probability": 0.5, "disorder_delay": 0.3}, id="disorder"),
    ],
)
async def test_whatever_the_undocumented_turns_out_to_be_the_first_callback_is_understood(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    creates, changes = 20, 30
    chosen = simulated(write_catalog(tmp_path / "catalog.jsonl", creates), rate=200, changes=changes, **options)
    async with running_simulator(chosen) as simulator:
        jasper = {"JASPER_API_URL": f"{simulator.base_url}/api/v1", "JASPER_API_TOKEN": chosen.token}
        async with running_receiver(tmp_path / "data", **jasper) as receiver:
            await receiver.ready()
            async with asyncio.timeout(60):
                await simulator.drained()
            await check_against(receiver, simulator, creates, changes)
            [webhook] = (await receiver.get("/v1/webhooks"))["webhooks"]
            assert webhook["state"] == "registered"
            assert webhook["proof"] is not None
