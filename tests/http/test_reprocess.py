"""Deliveries that are read again: with the mapping mended, once, and as late as they are."""

import asyncio
from typing import Any

import httpx
import pytest

from app.access.keys import Scope, create_key
from app.clock import utc_now
from app.db.engine import create_engine
from app.db.locks import Lock
from tests.http.conftest import SECRET, Receiver, Start, problem_of

MENDED = {
    "jasper_payload_mapping": {
        "action": ["/verb"],
        "entity_id": ["/thing"],
        "data": ["/content"],
        "occurred_at": ["/when"],
    }
}
"""Settings with which what `odd` sends can be read."""


def odd(entity_id: str = "7", verb: str = "updated", **fields: object) -> dict[str, object]:
    """A payload that cannot be read without a mapping."""
    return {"verb": verb, "thing": entity_id, **fields}


async def reprocess(receiver: Receiver, delivery_id: str) -> dict[str, Any]:
    response = await receiver.http.post(f"/v1/deliveries/{delivery_id}/reprocess")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def reprocess_all(receiver: Receiver, status: str = "quarantined", **options: object) -> dict[str, Any]:
    response = await receiver.http.post("/v1/deliveries/reprocess", json={"status": status, **options})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def sent(receiver: Receiver, *bodies: object, status: str = "quarantined") -> list[str]:
    """The ids of the deliveries that came of these bodies."""
    ids = []
    for body in bodies:
        receipt = (await receiver.callback(body)).json()
        assert receipt["status"] == status, receipt
        ids.append(receipt["delivery_id"])
    return ids


async def events(receiver: Receiver) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await receiver.http.get("/v1/events?include_stale=true")).json()["events"]
    return found


async def test_what_could_not_be_read_becomes_an_event_once_the_mapping_is_mended(start: Start) -> None:
    async with start() as receiver:
        [delivery_id] = await sent(receiver, odd(when="2026-01-01T00:00:00Z", content={"price": 1}))
        before = (await receiver.http.get(f"/v1/deliveries/{delivery_id}")).json()
        await sent(receiver, {"event": "product.updated", "id": 1}, status="accepted")
    async with start(**MENDED) as receiver:
        again = await reprocess(receiver, delivery_id)
        after = (await receiver.http.get(f"/v1/deliveries/{delivery_id}")).json()
        first, second = await events(receiver)

    assert again == {"delivery_id": delivery_id, "status": "accepted", "event_id": second["id"], "reason": None}
    assert (second["delivery_id"], second["entity_id"], second["action"]) == (delivery_id, "7", "update")
    assert second["data"] == {"price": 1}
    assert second["occurred_at"] == "2026-01-01T00:00:00Z"
    assert second["sequence"] > first["sequence"]
    assert second["received_at"] > first["received_at"] > before["received_at"]
    assert after["reading"]["entity_id"] == "/thing"
    assert (after["status"], after["event_id"], after["reason"]) == ("accepted", second["id"], None)
    for name in ("body", "headers", "received_at", "client", "proof", "size"):
        assert after[name] == before[name]


@pytest.mark.parametrize("body", [odd(), odd(when="2026-01-01T00:00:00Z")], ids=["without a time", "with a time"])
async def test_reading_again_and_again_at_once_makes_one_event(start: Start, body: dict[str, object]) -> None:
    async with start() as receiver:
        [delivery_id] = await sent(receiver, body)
    async with start(**MENDED) as one, start(**MENDED) as other:
        answers = await asyncio.gather(*(reprocess(each, delivery_id) for each in (one, other) * 8))
        answers.append(await reprocess(one, delivery_id))
        [event] = await events(one)
    assert {answer["event_id"] for answer in answers} == {event["id"]}
    assert {answer["status"] for answer in answers} == {"accepted"}


async def test_what_still_cannot_be_read_stays_with_the_reason_of_today(start: Start) -> None:
    async with start() as receiver:
        [delivery_id] = await sent(receiver, {"verb": "archived", "thing": "7"})
        before = (await receiver.http.get(f"/v1/deliveries/{delivery_id}")).json()
    async with start(**MENDED) as receiver:
        again = await reprocess(receiver, delivery_id)
        after = (await receiver.http.get(f"/v1/deliveries/{delivery_id}")).json()
        assert await events(receiver) == []
    assert (again["status"], again["event_id"]) == ("quarantined", None)
    assert "'archived' at /verb" in again["reason"] == after["reason"] != before["reason"]
    assert after["body"] == before["body"]


async def test_all_of_a_status_are_read_again_page_by_page(start: Start) -> None:
    async with start() as receiver:
        ids = await sent(receiver, *(odd(str(number)) for number in range(5)), b"no json", odd("5"))
        await sent(receiver, {"event": "product.updated", "id": 1}, status="accepted")
    async with start(**MENDED) as receiver:
        first = await reprocess_all(receiver, limit=4)
        assert first == {"accepted": 4, "duplicate": 0, "quarantined": 0, "after": ids[3], "has_more": True}
        rest = await reprocess_all(receiver, limit=4, after=first["after"])
        assert rest == {"accepted": 2, "duplicate": 0, "quarantined": 1, "after": ids[6], "has_more": False}
        # Begun anew, as after a break: only what could not be read is left.
        anew = await reprocess_all(receiver)
        assert anew == {"accepted": 0, "duplicate": 0, "quarantined": 1, "after": ids[5], "has_more": False}
        assert [event["entity_id"] for event in await events(receiver)] == ["1", "0", "1", "2", "3", "4", "5"]
        assert (await reprocess_all(receiver, after=ids[5]))["after"] == ids[5]


async def test_one_that_was_taken_for_a_repetition_by_mistake_is_recovered(start: Start) -> None:
    """A mapping named a delivery id that turned out to be the same on every callback."""
    bodies = [{"event": "product.updated", "id": 1, "hook": "h-1", "price": price} for price in (1, 2)]
    async with start(jasper_payload_mapping={"delivery_id": ["/hook"]}) as receiver:
        await sent(receiver, bodies[0], status="accepted")
        [mistaken] = await sent(receiver, bodies[1], status="duplicate")
        assert (await reprocess(receiver, mistaken))["status"] == "duplicate"
    async with start() as receiver:
        assert await reprocess_all(receiver, "duplicate") | {"after": None} == {
            "accepted": 1, "duplicate": 0, "quarantined": 0, "after": None, "has_more": False
        }  # fmt: skip
        assert [event["data"]["price"] for event in await events(receiver)] == [1, 2]
        delivery = (await receiver.http.get(f"/v1/deliveries/{mistaken}")).json()
        assert (delivery["status"], delivery["duplicate_of"], delivery["reason"]) == ("accepted", None, None)


async def test_what_was_read_already_changes_nothing(start: Start) -> None:
    bodies: list[dict[str, object]] = [
        {"event": "product.updated", "id": 1},
        {"event": "product.updated", "data": {"id": 2, "a": 1, "updated_at": "2026-01-01T00:00:00Z"}},
        {"id": 3, "name": "inferred"},
        {"event": "product.deleted", "id": 4},
    ]
    async with start() as receiver:
        await sent(receiver, *bodies, status="accepted")
        await sent(receiver, bodies[1], bodies[3], status="duplicate")
        before = (await receiver.sql.fetch("SELECT * FROM deliveries ORDER BY id"), await events(receiver))
        for status, count in {"accepted": 4, "duplicate": 2}.items():
            assert (await reprocess_all(receiver, status))[status] == count
        assert (await receiver.sql.fetch("SELECT * FROM deliveries ORDER BY id"), await events(receiver)) == before


async def test_one_that_was_misread_gets_an_event_of_its_own_and_keeps_the_first(start: Start) -> None:
    body = {"event": "product.updated", "data": {"id": 1, "thing": "real", "price": 1}}
    async with start() as receiver:
        [delivery_id] = await sent(receiver, body, status="accepted")
    async with start(jasper_payload_mapping={"entity_id": ["/data/thing"]}) as receiver:
        first = await reprocess(receiver, delivery_id)
        assert await reprocess(receiver, delivery_id) == first
        misread, event = await events(receiver)
        assert (misread["entity_id"], event["entity_id"]) == ("1", "real")
        assert (first["status"], first["event_id"]) == ("accepted", event["id"])
        delivery = (await receiver.http.get(f"/v1/deliveries/{delivery_id}")).json()
        assert delivery["body"].replace(" ", "") == (
            '{"event":"product.updated","data":{"id":1,"thing":"real","price":1}}'
        )


async def test_one_whose_new_reading_repeats_an_event_that_is_there_keeps_its_own(start: Start) -> None:
    """Its own event, read with another time, or the event of another delivery: neither makes a duplicate of it."""
    data = {"id": 1, "other": "2", "when": "2026-02-02T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
    as_two = {"event": "product.updated", "product_id": "2", "data": data}
    async with start() as receiver:
        [mine] = await sent(receiver, {"event": "product.updated", "data": data}, status="accepted")
        before = (await receiver.http.get(f"/v1/deliveries/{mine}")).json()
    async with start(jasper_payload_mapping={"occurred_at": ["/data/when"]}) as receiver:
        assert (await reprocess(receiver, mine))["event_id"] == before["event_id"]
    async with start(jasper_payload_mapping={"entity_id": ["/data/other"]}) as receiver:
        await sent(receiver, as_two, status="accepted")
        assert await reprocess(receiver, mine) == {
            "delivery_id": mine, "status": "accepted", "event_id": before["event_id"], "reason": None
        }  # fmt: skip
        assert (await receiver.http.get(f"/v1/deliveries/{mine}")).json() == before
        assert len(await events(receiver)) == 2


async def test_reading_an_old_one_says_nothing_of_when_jasper_called_last(start: Start) -> None:
    async with start() as receiver:
        [delivery_id] = await sent(receiver, odd())
        await receiver.callback({"event": "product.updated", "id": 1}, x_elsewhere=SECRET)
    async with start(**MENDED) as receiver:
        before = (await receiver.http.get("/v1/webhooks")).json()
        assert (await reprocess(receiver, delivery_id))["status"] == "accepted"
        assert (await receiver.http.get("/v1/webhooks")).json() == before
        assert before["webhooks"][0]["proof"] == "header:x-elsewhere"


async def test_a_reading_that_fails_now_never_takes_an_event_away(start: Start) -> None:
    async with start() as receiver:
        [delivery_id] = await sent(receiver, {"event": "product.updated", "id": 1, "odd": "x"}, status="accepted")
    async with start(jasper_payload_mapping={"action": ["/odd"]}) as receiver:
        assert (await reprocess(receiver, delivery_id))["status"] == "accepted"
        assert len(await events(receiver)) == 1


async def test_one_without_a_time_never_overrides_what_was_told_after_it(start: Start) -> None:
    async with start() as receiver:
        ids = await sent(
            receiver, odd("1", content={"price": 1}), odd("1", content={"price": 2}), odd("2", verb="deleted")
        )
        for number in (1, 2):
            await sent(receiver, {"event": "product.updated", "data": {"id": number, "price": 3}}, status="accepted")
        await sent(receiver, odd("3", content={"price": 4}), odd("3", content={"price": 5}))
    async with start(**MENDED) as receiver:
        await reprocess_all(receiver)
        late = [event for event in await events(receiver) if event["delivery_id"] in ids]
        assert [event["stale"] for event in late] == [True, True, True]
        for number, price in ((1, 3), (2, 3), (3, 5)):
            entity = (await receiver.http.get(f"/v1/products/{number}")).json()
            assert entity["data"]["price"] == price


async def test_while_postgres_cannot_write_the_call_may_be_made_again(start: Start) -> None:
    async with start() as receiver:
        ids = await sent(receiver, odd("1"), odd("2"))
    async with start(**MENDED) as receiver:
        async with receiver.sql.transaction():
            await receiver.sql.execute("SELECT pg_advisory_xact_lock($1)", Lock.FEED.key)
            problem_of(await receiver.http.post(f"/v1/deliveries/{ids[0]}/reprocess"), 503)
        assert (await reprocess_all(receiver))["accepted"] >= 1
        assert len(await events(receiver)) == 2


async def test_an_unknown_delivery_is_404_and_a_wrong_call_400(receiver: Receiver) -> None:
    nobody = "01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10"
    problem_of(await receiver.http.post(f"/v1/deliveries/{nobody}/reprocess"), 404)
    problem_of(await receiver.http.post("/v1/deliveries/1/reprocess"), 404)
    wrong: list[Any] = [None, [], {}, {"status": "lost"}, {"status": "quarantined", "limit": 0}]
    for body in [*wrong, {"status": "quarantined", "all": True}, {"status": "quarantined", "after": 1}]:
        problem = problem_of(await receiver.http.post("/v1/deliveries/reprocess", json=body), 400)
        assert problem["errors"]


@pytest.mark.parametrize(
    "path", ["deliveries/reprocess", "deliveries/01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10/reprocess", "unproven/release"]
)
async def test_only_an_admin_may(receiver: Receiver, database: str, path: str) -> None:
    engine = create_engine(database)
    _, key = await create_key(engine, "reader", {Scope.READ, Scope.WRITE}, now=utc_now())
    await engine.dispose()
    async with httpx.AsyncClient(base_url=receiver.http.base_url) as http:
        problem_of(await http.post(f"/v1/{path}"), 401)
        problem_of(await http.post(f"/v1/{path}", headers={"Authorization": f"Bearer {key}"}), 403)
        problem_of(await http.post(f"/v1/{path}", headers={"x-secret": SECRET}), 401)
