"""Callbacks over real HTTP: order, retries, losses, trouble, and what becomes of them when webhooks change."""

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import httpx
import pytest

from app.simulator import Simulator, running_simulator
from app.simulator.sender import retry_wait
from tests.simulator.conftest import quiet_options
from tests.simulator.receiver import Call, Receiver

Start = Callable[..., Awaitable[Simulator]]


def entity_id(call: Call) -> Any:
    return call.json["data"]["id"]


async def test_a_change_arrives_with_headers_secret_and_data(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate(secret_place="hmac:Signature")
    webhook = simulator.create_webhook(receiver.webhook())
    change = await simulator.change(entity_id="1001", kind="price")
    await simulator.drained()
    (call,) = receiver.calls
    assert (call.method, call.path) == ("POST", "/callbacks/products")
    assert call.headers["My-Custom-Header"] == "abc123"
    assert call.headers["Content-Type"] == "application/json"
    assert call.headers["Signature"] == hmac.new(webhook.signing_secret.encode(), call.body, hashlib.sha256).hexdigest()
    assert call.json["data"] == change.entity == simulator.catalog.find("product", "1001")


async def test_only_enabled_webhooks_of_the_type_are_called(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate()
    simulator.create_webhook(receiver.webhook(entity_type="brand"))
    simulator.create_webhook(receiver.webhook(enabled=False))
    await simulator.change(entity_type="product")
    await simulator.drained()
    assert receiver.calls == []
    simulator.create_webhook(receiver.webhook(include_entity_data=False))
    simulator.create_webhook(receiver.webhook(callback_url=f"{receiver.url}/second"))
    await simulator.change(entity_type="product", kind="stock")
    await simulator.drained()
    by_path = {call.path: call for call in receiver.calls}
    assert set(by_path["/callbacks/products"].json["data"]) == {"id"}
    assert "inventory" in by_path["/second"].json["data"]


async def test_the_initial_load_sends_every_entity_once_and_in_order(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate(initial_load=True, concurrency=1)
    simulator.create_webhook(receiver.webhook())
    await simulator.drained()
    assert [entity_id(call) for call in receiver.calls] == list(range(1001, 1026))
    assert {call.json["event"] for call in receiver.calls} == {"product.created"}


async def test_changes_never_overtake_the_initial_load(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate(initial_load=True, initial_load_delay=0.05, concurrency=1, rate=1000.0, changes=40)
    simulator.create_webhook(receiver.webhook())
    await simulator.drained()
    events = [call.json["event"] for call in receiver.calls]
    assert events[:25] == ["product.created"] * 25
    assert len(events) == 25 + 40


async def test_a_stream_ends_after_its_changes_and_adds_up_to_the_state(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate(initial_load=True, concurrency=1, rate=5000.0, changes=200, burst_size=10)
    simulator.create_webhook(receiver.webhook())
    await simulator.drained()
    state: dict[Any, Any] = {}
    for call in receiver.calls:
        if call.json["event"] == "product.deleted":
            del state[entity_id(call)]
        else:
            state[entity_id(call)] = call.json["data"]
    assert len(receiver.calls) == 225
    assert [state[key] for key in sorted(state)] == simulator.catalog.entities("product")


async def test_a_paused_stream_makes_no_changes_until_resumed(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate(rate=2000.0, changes=300)
    simulator.create_webhook(receiver.webhook())
    await receiver.wait_for(5)
    simulator.pause()
    await simulator.drained()
    made = len(simulator.changes)
    assert 5 <= made < 300
    await simulator.change(kind="stock")
    await simulator.drained()
    assert len(simulator.changes) == made + 1
    simulator.resume()
    await simulator.drained()
    assert len(simulator.changes) == 301


@pytest.mark.parametrize("answer", [500, 302, 404, None])
async def test_what_is_not_2xx_in_time_is_retried_as_it_was(
    receiver: Receiver, simulate: Start, answer: int | None
) -> None:
    simulator = await simulate(callback_timeout=0.2)
    simulator.create_webhook(receiver.webhook())
    receiver.answer = lambda _call, number: answer if number <= 2 else 204
    await simulator.change()
    await simulator.drained()
    assert {call.path for call in receiver.calls} == {"/callbacks/products"}
    assert len({call.body for call in receiver.calls}) == 1
    assert len({call.headers["X-Signing-Secret"] for call in receiver.calls}) == 1
    assert asdict(simulator.sender.statistics) == {
        "callbacks": 1,
        "attempts": 3,
        "delivered": 1,
        "retried": 2,
        "lost": 0,
        "dropped": 0,
        "answers": {"no answer" if answer is None else str(answer): 2, "204": 1},
    }


async def test_a_receiver_that_is_not_there_is_retried(simulate: Start) -> None:
    simulator = await simulate()
    simulator.create_webhook(Receiver("http://127.0.0.1:1").webhook(retry_limit=1))
    await simulator.change()
    await simulator.drained()
    assert simulator.sender.statistics.lost == 1
    assert [attempt["error"].partition(":")[0] for attempt in simulator.attempts] == ["ConnectError"] * 2


@pytest.mark.parametrize(
    ("policy", "limit", "attempts"),
    [("no_retry", 5, 1), ("linear", 0, 1), ("linear", 3, 4), ("exponential", 3, 4)],
)
async def test_a_callback_is_lost_after_its_last_retry(
    receiver: Receiver, simulate: Start, policy: str, limit: int, attempts: int
) -> None:
    simulator = await simulate()
    simulator.create_webhook(receiver.webhook(retry_policy=policy, retry_limit=limit))
    receiver.answer = lambda _call, _number: 503
    await simulator.change()
    await simulator.drained()
    assert len(receiver.calls) == attempts
    assert (simulator.sender.statistics.lost, simulator.sender.statistics.delivered) == (1, 0)


def test_waits_follow_the_policy() -> None:
    assert [retry_wait("linear", 300, retry) for retry in (1, 2, 3)] == [300, 300, 300]
    assert [retry_wait("exponential", 300, retry) for retry in (1, 2, 3)] == [300, 600, 1200]
    assert retry_wait("exponential", 300, 10_000) < float("inf")


async def test_the_time_scale_shrinks_waits_but_keeps_their_proportion(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate(time_scale=0.0002)
    simulator.create_webhook(receiver.webhook(retry_policy="exponential", minimum_retry_interval=300, retry_limit=2))
    receiver.answer = lambda _call, _number: 503
    await simulator.change()
    await simulator.drained()
    first, second, third = (call.at for call in receiver.calls)
    assert second - first >= 0.06
    assert third - second >= 0.12


async def test_no_more_callbacks_are_under_way_than_allowed(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate(initial_load=True, concurrency=3, callback_timeout=0.1)
    simulator.create_webhook(receiver.webhook(retry_policy="no_retry"))
    receiver.answer = lambda _call, number: None if number <= 3 else 200
    await simulator.drained()
    assert receiver.most_under_way == 3


async def test_callbacks_of_one_entity_follow_each_other_where_overlap_is_off(
    receiver: Receiver, simulate: Start
) -> None:
    simulator = await simulate(overlap=False, disorder_probability=0.5, disorder_delay=0.02)
    simulator.create_webhook(receiver.webhook())
    receiver.answer = lambda _call, number: 500 if number % 2 else 200
    for _ in range(10):
        for identity in (1001, 1002):
            await simulator.change(entity_id=str(identity), kind="stock")
    await simulator.drained()
    for identity in (1001, 1002):
        times = [call.json["data"]["updated_at"] for call in receiver.calls if entity_id(call) == identity]
        assert times == sorted(times)


async def test_duplicates_repeat_the_body_or_come_in_a_new_envelope(receiver: Receiver, simulate: Start) -> None:
    for envelope, bodies in (("same", 1), ("new", 2)):
        receiver.calls.clear()
        simulator = await simulate(duplicate_probability=1.0, duplicate_envelope=envelope)
        simulator.create_webhook(receiver.webhook())
        await simulator.change()
        await simulator.drained()
        assert len(receiver.calls) == 2
        assert len({call.body for call in receiver.calls}) == bodies
        assert len({str(call.json["data"]) for call in receiver.calls}) == 1


async def test_disorder_lets_later_changes_arrive_first_and_loses_none(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate(initial_load=True, concurrency=1, disorder_probability=0.3, disorder_delay=0.1)
    simulator.create_webhook(receiver.webhook())
    await simulator.drained()
    arrived = [entity_id(call) for call in receiver.calls]
    assert arrived != sorted(arrived)
    assert sorted(arrived) == list(range(1001, 1026))


async def test_trouble_is_repeatable(simulate: Start) -> None:
    async def troubles(seed: int) -> list[Any]:
        simulator = await simulate(seed=seed, duplicate_probability=0.5, disorder_probability=0.5)
        return [simulator.faults.next_callback() for _ in range(50)]

    assert await troubles(1) == await troubles(1) != await troubles(2)


@pytest.mark.parametrize(("state", "arrives"), [("frozen", True), ("current", False)])
async def test_retries_outlive_their_webhook_or_not(
    receiver: Receiver, simulate: Start, state: str, arrives: bool
) -> None:
    simulator = await simulate(retry_state=state, time_scale=0.05)
    webhook = simulator.create_webhook(receiver.webhook())
    receiver.answer = lambda _call, number: 500 if number == 1 else 200
    await simulator.change()
    await receiver.wait_for(1)
    simulator.webhooks.delete(webhook)
    await simulator.drained()
    assert len(receiver.calls) == (2 if arrives else 1)
    assert simulator.sender.statistics.dropped == (0 if arrives else 1)


@pytest.mark.parametrize("state", ["frozen", "current"])
async def test_retries_bring_the_old_secret_or_the_new_one(receiver: Receiver, simulate: Start, state: str) -> None:
    simulator = await simulate(retry_state=state, time_scale=0.05)
    webhook = simulator.create_webhook(receiver.webhook())
    receiver.answer = lambda _call, number: 500 if number == 1 else 200
    await simulator.change()
    await receiver.wait_for(1)
    rotated = simulator.webhooks.rotate_secret(webhook)
    await simulator.drained()
    expected = webhook if state == "frozen" else rotated
    assert receiver.calls[1].headers["X-Signing-Secret"] == expected.signing_secret


async def test_a_full_backlog_stops_the_changes_and_loses_none(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate(initial_load=True, backlog_limit=4, time_scale=0.0)
    simulator.create_webhook(receiver.webhook())
    receiver.answer = lambda _call, number: 503 if number <= 5 else 200
    await receiver.wait_for(1)
    assert simulator.sender.pending <= 4
    await simulator.drained()
    assert simulator.sender.statistics.delivered == 25


async def test_no_record_of_an_attempt_holds_a_secret(receiver: Receiver, simulate: Start) -> None:
    simulator = await simulate()
    webhook = simulator.create_webhook(receiver.webhook())
    await simulator.change()
    await simulator.drained()
    (attempt,) = simulator.attempts
    assert (attempt["status"], attempt["answer"], attempt["attempt"]) == (200, "done", 1)
    for text in (repr(attempt), repr(webhook), repr(simulator.state())):
        assert webhook.signing_secret not in text
        assert "abc123" not in text


async def test_a_served_simulator_does_all_of_it_over_http(receiver: Receiver) -> None:
    """From registration to the same state on both sides, as a checker in another process would see it."""
    options = quiet_options(initial_load=True, concurrency=1, rate=1000.0, changes=50)
    async with running_simulator(options) as simulator:
        assert simulator.base_url
        async with httpx.AsyncClient(
            base_url=simulator.base_url, headers={"Authorization": f"Bearer {simulator.token}"}, trust_env=False
        ) as client:
            created = await client.post("/api/v1/webhooks", json=receiver.webhook())
            assert created.status_code == 201
            drained = (await client.post("/_simulator/drain", json={"timeout": 10})).json()
            assert drained["drained"] is True
            assert drained["callbacks"]["delivered"] == 75
            state = (await client.get("/_simulator/state")).json()
    latest = {entity_id(call): call.json for call in receiver.calls}
    live = [event["data"] for _, event in sorted(latest.items()) if event["event"] != "product.deleted"]
    gone = [event["data"] for _, event in sorted(latest.items()) if event["event"] == "product.deleted"]
    assert (live, gone) == (state["items"], state["gone"])
    assert Counter(call.headers["X-Signing-Secret"] for call in receiver.calls) == {
        created.json()["data"]["signing_secret"]: 75
    }


async def test_a_hanging_api_lets_go_of_callers_that_leave() -> None:
    async with running_simulator(quiet_options(api_hang=60)) as simulator:
        simulator.faults.api_mode = "hang"
        async with httpx.AsyncClient(base_url=simulator.base_url or "", trust_env=False) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/api/v1/ping", timeout=0.1)
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 1.5


async def test_leaving_gives_up_what_is_still_to_be_sent(receiver: Receiver) -> None:
    receiver.answer = lambda _call, _number: None
    async with asyncio.timeout(5), Simulator(quiet_options(initial_load=True, rate=1000.0)) as simulator:
        simulator.create_webhook(receiver.webhook())
        await receiver.wait_for(3)
    assert simulator.sender.pending > 0
