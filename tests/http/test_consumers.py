"""`/v1/consumers`: positions kept by the server, leases that one reader at a time holds, events set aside."""

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access.keys import Scope, create_key
from app.clock import utc_now
from app.feed import consumers
from app.feed.consumer_schemas import Consumer, ConsumerPage, ConsumerPageRecord, ParkedEvent
from tests.builders import NOW, an_event, events_of
from tests.http.conftest import Reader

HIGHEST = 2**63 - 1


async def call(reader: Reader, method: str, path: str, status: int, body: object = None) -> Any:
    """The answer to a call on a consumer, which must have this status."""
    options: dict[str, Any] = {} if body is None else {"json": body}
    response = await reader.http.request(method, f"/v1/consumers{path}", **options)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def created(reader: Reader, name: str = "search", start: object = "earliest") -> dict[str, Any]:
    answer: dict[str, Any] = await call(reader, "PUT", f"/{name}", 201, {"start": start})
    return answer


async def page(reader: Reader, name: str = "search", **params: Any) -> dict[str, Any]:
    answer: dict[str, Any] = (await reader.get(f"/v1/consumers/{name}/events", params)).json()
    return answer


async def ack(reader: Reader, after: int, *, status: int = 200, name: str = "search", **more: Any) -> Any:
    return await call(reader, "POST", f"/{name}/ack", status, {"after": after} | more)


async def park(reader: Reader, sequence: int, reason: str = "poison", *, status: int = 200) -> Any:
    return await call(reader, "POST", "/search/park", status, {"sequence": sequence, "reason": reason})


def numbers(answer: dict[str, Any]) -> list[int]:
    return [event["sequence"] for event in answer["events"]]


async def let_leases_run_out(engine: AsyncEngine) -> None:
    """As if their time were over: the clock of Postgres decides, and nobody has to wait for it here."""
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE consumers SET leased_until = now() - interval '1 millisecond'"))


async def test_a_consumer_has_the_fields_of_the_contract(reader: Reader) -> None:
    before = utc_now()
    [first, *_] = await events_of(reader.engine, 3, received_at=before - timedelta(seconds=90))
    consumer = await created(reader)
    fields = ["name", "position", "lag", "lag_seconds", "updated_at", "leased_until", "expires_at", "overtaken"]
    assert list(consumer) == fields
    assert (consumer["name"], consumer["position"], consumer["lag"]) == ("search", first["sequence"] - 1, 3)
    assert 90 <= consumer["lag_seconds"] < 150
    assert abs(datetime.fromisoformat(consumer["updated_at"]) - before) < timedelta(minutes=1)
    assert (consumer["leased_until"], consumer["expires_at"], consumer["overtaken"]) == (None, None, False)
    found = (await reader.get("/v1/consumers/search")).json()
    assert {**found, "lag_seconds": 0} == {**consumer, "lag_seconds": 0}
    assert (await reader.get("/v1/consumers")).json()["consumers"][0]["name"] == "search"


def test_records_and_their_description_have_the_same_fields_in_the_same_order() -> None:
    assert ConsumerPageRecord.__struct_fields__ == tuple(ConsumerPage.model_fields)


async def test_a_start_is_the_oldest_event_the_newest_or_a_number(reader: Reader) -> None:
    rows = [await an_event(reader.engine, sequence=sequence) for sequence in (5, 6, 9)]
    assert (await created(reader, "a", "earliest"))["position"] == 4
    assert (await created(reader, "b", "latest"))["position"] == 9
    assert (await created(reader, "c", 6))["position"] == 6
    assert (await created(reader, "d", 0))["position"] == 0
    assert (await call(reader, "PUT", "/e", 201))["position"] == 4
    lags = {one["name"]: one["lag"] for one in (await reader.get("/v1/consumers")).json()["consumers"]}
    assert lags == {"a": 3, "b": 0, "c": 1, "d": 3, "e": 3}
    assert numbers(await page(reader, "a")) == [row["sequence"] for row in rows]
    assert numbers(await page(reader, "b")) == []
    assert numbers(await page(reader, "c")) == [9]


async def test_an_empty_feed_has_both_ends_at_0(reader: Reader) -> None:
    for name in ("earliest", "latest"):
        consumer = await created(reader, name, name)
        assert (consumer["position"], consumer["lag"], consumer["lag_seconds"]) == (0, 0, 0)
        assert await page(reader, name) == {"events": [], "after": 0, "has_more": False, "lease_id": None}


async def test_a_put_with_a_start_moves_and_one_without_leaves_the_position_alone(reader: Reader) -> None:
    rows = await events_of(reader.engine, 4)
    await created(reader)
    await ack(reader, rows[2]["sequence"])
    for body in (None, {}, {"start": None}):
        assert (await call(reader, "PUT", "/search", 200, body))["position"] == rows[2]["sequence"]
    for start, left in [("earliest", 4), ("earliest", 4), (rows[0]["sequence"], 3), ("latest", 0)]:
        assert (await call(reader, "PUT", "/search", 200, {"start": start}))["lag"] == left


@pytest.mark.parametrize("start", [1, HIGHEST])
async def test_a_start_past_the_end_is_refused(reader: Reader, start: int) -> None:
    problem = await reader.problem(409, "/v1/consumers/search", "PUT", json={"start": start})
    assert problem["type"] == "/problems/conflict"
    assert "past the end" in problem["detail"]
    await reader.problem(404, "/v1/consumers/search")


@pytest.mark.parametrize("name", ["a", "A-z.0_9", "x" * 100])
async def test_a_name_has_letters_digits_and_a_few_signs(reader: Reader, name: str) -> None:
    assert (await created(reader, name))["name"] == name


@pytest.mark.parametrize("name", ["x" * 101, "a%20b", "a%00b", ".a", "-", "%C3%BC", "a%0A", "%ff", "a:b"])
@pytest.mark.parametrize(("method", "rest"), [("PUT", ""), ("GET", ""), ("GET", "/events"), ("DELETE", "")])
async def test_any_other_name_is_refused(reader: Reader, name: str, method: str, rest: str) -> None:
    problem = await reader.problem(400, f"/v1/consumers/{name}{rest}", method)
    assert [error["parameter"] for error in problem["errors"]] == ["name"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/events", None),
        ("GET", "/events?lease=5", None),
        ("POST", "/ack", {"after": 0}),
        ("POST", "/park", {"sequence": 1, "reason": "poison"}),
        ("GET", "/parked", None),
        ("DELETE", "/parked/1", None),
    ],
)
async def test_a_consumer_that_is_not_there_is_404(reader: Reader, method: str, path: str, body: object) -> None:
    await created(reader, "another")
    problem = await reader.problem(404, f"/v1/consumers/search{path}", method, json=body)
    assert problem["type"] == "/problems/not-found"
    assert "search" in problem["detail"]


BODIES: list[tuple[str, str, bytes, set[str]]] = [
    ("PUT", "", b'{"start": "oldest"}', {"start"}),
    ("PUT", "", b'{"start": -1}', {"start"}),
    ("PUT", "", b'{"start": true}', {"start"}),
    ("PUT", "", b'{"start": "5"}', {"start"}),
    ("PUT", "", b'{"start": 5.5}', {"start"}),
    ("PUT", "", b'{"start": []}', {"start"}),
    ("PUT", "", b'{"start": 9223372036854775808}', {"start"}),
    ("PUT", "", b'{"begin": "latest"}', {"begin"}),
    ("PUT", "", b'{"start": "latest"', {"body"}),
    ("PUT", "", b'"latest"', {"body"}),
    ("PUT", "", b"[" * 10_000, {"body"}),
    ("PUT", "", b"\xff", {"body"}),
    ("POST", "/ack", b"", {"after"}),
    ("POST", "/ack", b'{"after": "7"}', {"after"}),
    ("POST", "/ack", b'{"after": 1.5}', {"after"}),
    ("POST", "/ack", b'{"after": -1}', {"after"}),
    ("POST", "/ack", b'{"after": 9223372036854775808}', {"after"}),
    ("POST", "/ack", b'{"after": 0, "lease_id": "7"}', {"lease_id"}),
    ("POST", "/ack", b'{"after": 0, "position": 7}', {"position"}),
    ("POST", "/ack", b'{"after": 0, "lease": 5}', {"body"}),
    (
        *("POST", "/ack"),
        *(b'{"after": 0, "lease": 3601, "lease_id": "5b2c6a0e-2a5d-4c1f-9b57-0d6f1c1f9a10"}', {"lease"}),
    ),
    ("POST", "/park", b"{}", {"sequence", "reason"}),
    ("POST", "/park", b'{"sequence": 0, "reason": "x"}', {"sequence"}),
    ("POST", "/park", b'{"sequence": 1, "reason": ""}', {"reason"}),
    ("POST", "/park", b'{"sequence": 1, "reason": "a\\u0000b"}', {"reason"}),
    ("POST", "/park", b'{"sequence": 1, "reason": "\\ud800"}', {"body"}),
    ("POST", "/park", json.dumps({"sequence": 1, "reason": "x" * 1001}).encode(), {"reason"}),
]


@pytest.mark.parametrize(("method", "path", "body", "wrong"), BODIES)
async def test_a_wrong_body_is_refused_by_what_is_wrong_in_it(
    reader: Reader, method: str, path: str, body: bytes, wrong: set[str]
) -> None:
    await created(reader)
    problem = await reader.problem(400, f"/v1/consumers/search{path}", method, content=body)
    assert problem["type"] == "/problems/invalid-parameters"
    assert {error["parameter"] for error in problem["errors"]} == wrong
    assert all(error["detail"] for error in problem["errors"])


async def test_a_body_of_any_content_type_is_read_as_json(reader: Reader) -> None:
    """What `curl -d` sends without a header is meant as well as any."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = await reader.http.put("/v1/consumers/search", content=b'{"start": "latest"}', headers=headers)
    assert response.status_code == 201


async def test_a_large_body_is_refused(reader: Reader) -> None:
    body = b'{"start": "latest"}'.ljust(65_536)
    await reader.problem(413, "/v1/consumers/search", "PUT", content=body + b" ")
    assert (await reader.http.put("/v1/consumers/search", content=body)).status_code == 201


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("after=0", "after"),
        ("lease=0", "lease"),
        ("lease=3601", "lease"),
        ("lease=1.5", "lease"),
        ("lease=", "lease"),
        ("lease=5&lease=5", "lease"),
        ("wait=61", "wait"),
        ("limit=1001", "limit"),
        ("lease_id=5b2c6a0e-2a5d-4c1f-9b57-0d6f1c1f9a10", "lease_id"),
    ],
)
async def test_a_wrong_parameter_of_a_page_is_refused_by_name(reader: Reader, query: str, parameter: str) -> None:
    problem = await reader.problem(400, f"/v1/consumers/search/events?{query}")
    assert parameter in [error["parameter"] for error in problem["errors"]]


CALLS: list[tuple[str, str, object, Scope]] = [
    ("GET", "", None, Scope.READ),
    ("GET", "/search", None, Scope.READ),
    ("GET", "/search/events", None, Scope.READ),
    ("GET", "/search/parked", None, Scope.READ),
    ("PUT", "/search", {"start": "latest"}, Scope.WRITE),
    ("POST", "/search/ack", {"after": 0}, Scope.WRITE),
    ("POST", "/search/park", {"sequence": 1, "reason": "poison"}, Scope.WRITE),
    ("DELETE", "/search/parked/1", None, Scope.WRITE),
    ("DELETE", "/search", None, Scope.WRITE),
]


@pytest.mark.parametrize(("method", "path", "body", "scope"), CALLS)
async def test_what_reads_needs_read_and_what_changes_needs_write(
    reader: Reader, method: str, path: str, body: object, scope: Scope
) -> None:
    """And that is said before anything about the consumer or what is wrong with the call."""
    others = [other for other in Scope if other is not scope]
    _, with_others = await create_key(reader.engine, "others", others, now=NOW)
    _, with_scope = await create_key(reader.engine, "scope", [scope], now=NOW)
    for asked in (f"/v1/consumers{path}", f"/v1/consumers{path}?unknown=1"):
        await reader.problem(401, asked, method, headers={"Authorization": ""}, content=b"{")
        await reader.problem(403, asked, method, headers={"Authorization": f"Bearer {with_others}"}, content=b"{")
    await events_of(reader.engine, 1)
    await created(reader)
    await reader.http.post("/v1/consumers/search/park", json={"sequence": 1, "reason": "poison"})
    headers = {"Authorization": f"Bearer {with_scope}"}
    response = await reader.http.request(method, f"/v1/consumers{path}", json=body, headers=headers)
    assert response.is_success, response.text


async def test_who_may_only_write_is_not_told_what_an_event_is_about(reader: Reader) -> None:
    await events_of(reader.engine, 1)
    await created(reader)
    for scopes, is_told in [([Scope.WRITE], False), ([Scope.READ, Scope.WRITE], True)]:
        _, key = await create_key(reader.engine, "-".join(scopes), scopes, now=NOW)
        headers, body = {"Authorization": f"Bearer {key}"}, {"sequence": 1, "reason": "poison"}
        told = (await reader.http.post("/v1/consumers/search/park", json=body, headers=headers)).json()
        assert {name for name, value in told.items() if value is not None} == {
            *("sequence", "reason", "parked_at"),
            *(("event_id", "entity_type", "entity_id") if is_told else ()),
        }


async def test_a_lease_needs_both_scopes(reader: Reader) -> None:
    await created(reader)
    for scopes, status in [([Scope.READ], 403), ([Scope.WRITE], 403), ([Scope.READ, Scope.WRITE], 200)]:
        _, key = await create_key(reader.engine, "-".join(scopes), scopes, now=NOW)
        headers = {"Authorization": f"Bearer {key}"}
        response = await reader.http.get("/v1/consumers/search/events?lease=5", headers=headers)
        assert response.status_code == status, response.text


async def test_pages_and_acks_follow_the_feed_without_gap_or_repetition(reader: Reader) -> None:
    rows = await events_of(reader.engine, 5)
    await created(reader)
    seen: list[int] = []
    while True:
        found = await page(reader, limit=2)
        assert await page(reader, limit=2) == found, "a page does not move the position"
        seen += numbers(found)
        consumer = await ack(reader, found["after"])
        assert (consumer["position"], consumer["lag"]) == (found["after"], 5 - len(seen))
        if not found["has_more"]:
            break
    assert seen == [row["sequence"] for row in rows]


async def test_a_page_has_the_filters_of_the_feed_and_stands_behind_what_they_skip(reader: Reader) -> None:
    wanted = await an_event(reader.engine, action="delete", entity_type="brand", entity_id="7", changed=["price"])
    stale = await an_event(reader.engine, stale=True)
    last = (await events_of(reader.engine, 3))[-1]
    await created(reader)
    for params in ({"action": "delete"}, {"entity_type": "brand"}, {"entity_id": "7"}, {"changed": "price"}):
        found = await page(reader, **params)
        assert (numbers(found), found["after"], found["has_more"]) == ([wanted["sequence"]], last["sequence"], False)
    assert numbers(await page(reader, include_stale="true"))[:2] == [wanted["sequence"], stale["sequence"]]
    nothing = await page(reader, entity_type="category")
    assert (nothing["events"], nothing["after"]) == ([], last["sequence"])
    assert (await ack(reader, nothing["after"]))["lag"] == 0


async def test_an_ack_may_be_repeated_but_never_goes_back_or_past_the_end(reader: Reader) -> None:
    rows = await events_of(reader.engine, 4)
    one, two, *_, last = (row["sequence"] for row in rows)
    await created(reader)
    moved = await ack(reader, two)
    again = await ack(reader, two)
    assert (again["position"], again["updated_at"]) == (two, moved["updated_at"])
    assert "behind" in (await ack(reader, one, status=409))["detail"]
    assert "past the end" in (await ack(reader, last + 1, status=409))["detail"]
    assert "past the end" in (await ack(reader, HIGHEST, status=409))["detail"]
    assert (await reader.get("/v1/consumers/search")).json()["position"] == two
    assert (await ack(reader, last))["updated_at"] > moved["updated_at"]


async def test_a_leased_page_is_one_callers_alone_until_it_is_acknowledged(reader: Reader) -> None:
    rows = await events_of(reader.engine, 4)
    await created(reader)
    mine = await page(reader, limit=2, lease=60)
    assert numbers(mine) == [row["sequence"] for row in rows[:2]]
    shown = (await reader.get("/v1/consumers/search")).json()
    assert datetime.fromisoformat(shown["leased_until"]) > utc_now() + timedelta(seconds=30)
    assert mine["lease_id"] not in str(await reader.get("/v1/consumers"))

    for query in ("", "?lease=60", "?limit=1&action=update"):
        response = await reader.http.get(f"/v1/consumers/search/events{query}")
        assert (response.status_code, response.json()["type"]) == (409, "/problems/leased")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert mine["lease_id"] not in response.text
    for stranger in ({}, {"lease_id": str(uuid4())}):
        assert (await ack(reader, mine["after"], status=409, **stranger))["type"] == "/problems/conflict"

    done = await ack(reader, mine["after"], lease_id=mine["lease_id"])
    assert (done["position"], done["leased_until"]) == (mine["after"], None)
    assert numbers(await page(reader, lease=60)) == [row["sequence"] for row in rows[2:]]


async def test_the_holder_cannot_ack_back_or_past_the_end_either(reader: Reader) -> None:
    rows = await events_of(reader.engine, 3)
    await created(reader, start=rows[0]["sequence"])
    mine = await page(reader, lease=60)
    await ack(reader, rows[0]["sequence"] - 1, status=409, lease_id=mine["lease_id"])
    await ack(reader, rows[2]["sequence"] + 1, status=409, lease_id=mine["lease_id"])
    await ack(reader, rows[0]["sequence"], lease_id=mine["lease_id"])  # hands the page back, nothing done
    assert numbers(await page(reader, lease=60)) == numbers(mine)


async def test_the_holder_may_tell_how_far_it_is_and_keep_the_lease(reader: Reader) -> None:
    rows = await events_of(reader.engine, 3)
    await created(reader)
    mine = await page(reader, lease=5)
    part = await ack(reader, rows[0]["sequence"], lease_id=mine["lease_id"], lease=3600)
    assert part["position"] == rows[0]["sequence"]
    assert datetime.fromisoformat(part["leased_until"]) > utc_now() + timedelta(minutes=30)
    same = await ack(reader, rows[0]["sequence"], lease_id=mine["lease_id"], lease=600)
    assert same["leased_until"] < part["leased_until"]
    await reader.problem(409, "/v1/consumers/search/events?lease=5")
    await ack(reader, mine["after"], lease_id=mine["lease_id"])
    assert (await page(reader))["events"] == []


async def test_a_repeated_ack_of_a_lease_that_is_over_is_fine_and_frees_nothing(reader: Reader) -> None:
    """The answer to the first one may have been lost on its way; meanwhile another reader may have begun."""
    rows = await events_of(reader.engine, 2)
    await created(reader)
    first = await page(reader, limit=1, lease=60)
    await ack(reader, first["after"], lease_id=first["lease_id"])
    second = await page(reader, limit=1, lease=60)
    assert (await ack(reader, first["after"], lease_id=first["lease_id"]))["leased_until"] is not None
    await ack(reader, first["after"], status=409, lease_id=first["lease_id"], lease=60)
    await ack(reader, rows[1]["sequence"], lease_id=second["lease_id"])


async def test_a_slow_reader_whose_page_another_took_moves_nothing(reader: Reader) -> None:
    rows = await events_of(reader.engine, 4)
    await created(reader)
    slow = await page(reader, limit=3, lease=60)
    await let_leases_run_out(reader.engine)
    assert (await reader.get("/v1/consumers/search")).json()["leased_until"] is None
    quick = await page(reader, limit=1, lease=60)
    assert numbers(quick) == [rows[0]["sequence"]], "the page of a reader that vanished is free again"
    await ack(reader, slow["after"], status=409, lease_id=slow["lease_id"])
    await ack(reader, slow["after"], status=409)
    await ack(reader, quick["after"], lease_id=quick["lease_id"])
    await ack(reader, slow["after"], status=409, lease_id=slow["lease_id"])
    assert (await reader.get("/v1/consumers/search")).json()["position"] == rows[0]["sequence"]


async def test_a_late_ack_counts_where_nobody_took_the_page(reader: Reader) -> None:
    await events_of(reader.engine, 2)
    await created(reader)
    late = await page(reader, lease=60)
    await let_leases_run_out(reader.engine)
    assert (await ack(reader, late["after"], lease_id=late["lease_id"]))["lag"] == 0


async def test_a_move_ends_the_lease(reader: Reader) -> None:
    await events_of(reader.engine, 2)
    await created(reader)
    mine = await page(reader, lease=60)
    moved = await call(reader, "PUT", "/search", 200, {"start": "earliest"})
    assert moved["leased_until"] is None
    await ack(reader, mine["after"], status=409, lease_id=mine["lease_id"])
    assert numbers(await page(reader, lease=60)) == numbers(mine)
    left_alone = await call(reader, "PUT", "/search", 200)
    assert left_alone["leased_until"] is not None


async def test_an_empty_page_is_not_leased(reader: Reader) -> None:
    await created(reader)
    assert (await page(reader, lease=60))["lease_id"] is None
    assert (await page(reader, lease=60, wait="0.05"))["lease_id"] is None
    row = await an_event(reader.engine)
    assert numbers(await page(reader, lease=60)) == [row["sequence"]]


async def test_wait_answers_with_a_lease_as_soon_as_there_is_an_event(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.feed.waiting._POLL", 60)
    await created(reader)
    waiting = asyncio.create_task(page(reader, wait=30, lease=60, action="delete"))
    async with asyncio.timeout(10):
        await events_of(reader.engine, 3)
        row = await an_event(reader.engine, action="delete")
        found = await waiting
    assert numbers(found) == [row["sequence"]]
    assert found["lease_id"]


async def test_wait_waits_for_the_page_that_another_holds(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.feed.waiting._POLL", 0.02)
    rows = await events_of(reader.engine, 2)
    await created(reader)
    first = await page(reader, limit=1, lease=60)
    await reader.problem(409, "/v1/consumers/search/events?lease=60&wait=0.05")
    waiting = asyncio.create_task(page(reader, lease=60, wait=30))
    async with asyncio.timeout(10):
        await ack(reader, first["after"], lease_id=first["lease_id"])
        assert numbers(await waiting) == [rows[1]["sequence"]]


async def test_who_waits_notices_what_becomes_of_the_consumer(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move back, or an event taken off the list, must not be lost to a reader that had already passed the place."""
    monkeypatch.setattr("app.feed.waiting._POLL", 0.02)
    rows = await events_of(reader.engine, 2)
    await created(reader, start="latest")
    async with asyncio.timeout(10):
        waiting = asyncio.create_task(page(reader, wait=30))
        await asyncio.sleep(0.1)
        await call(reader, "PUT", "/search", 200, {"start": "earliest"})
        assert numbers(await waiting) == [row["sequence"] for row in rows]
        await ack(reader, rows[0]["sequence"])
        await park(reader, rows[1]["sequence"])
        waiting = asyncio.create_task(page(reader, wait=30))
        await asyncio.sleep(0.1)
        await call(reader, "DELETE", f"/search/parked/{rows[1]['sequence']}", 204)
        assert numbers(await waiting) == [rows[1]["sequence"]]
        await ack(reader, rows[1]["sequence"])
        gone = asyncio.create_task(reader.problem(404, "/v1/consumers/search/events?wait=30"))
        await asyncio.sleep(0.1)
        await call(reader, "DELETE", "/search", 204)
        await gone


async def test_a_parked_event_is_in_no_page_and_on_the_list(reader: Reader) -> None:
    rows = await events_of(reader.engine, 5, entity_id="7")
    first, poison, *rest = (row["sequence"] for row in rows)
    await created(reader)
    parked = await park(reader, poison, "the price is no number")
    assert list(parked) == list(ParkedEvent.model_fields)
    assert (parked["sequence"], parked["reason"]) == (poison, "the price is no number")
    assert (parked["event_id"], parked["entity_type"], parked["entity_id"]) == (str(rows[1]["id"]), "product", "7")
    assert (await reader.get(f"/v1/events/{parked['event_id']}")).json()["sequence"] == poison
    for params in ({}, {"entity_id": "7"}, {"action": "update"}):
        assert numbers(await page(reader, **params)) == [first, *rest]
    assert numbers(await page(reader, limit=2)) == [first, rest[0]]

    assert await park(reader, poison, "another reason") == parked, "what is parked stays as it is"
    await park(reader, rest[-1])
    await ack(reader, rest[-1])
    listed = (await reader.get("/v1/consumers/search/parked")).json()["parked"]
    assert [one["sequence"] for one in listed] == [poison, rest[-1]], "acks leave the list as it is"
    assert listed[0] == parked


async def test_a_page_of_which_all_is_parked_is_empty_and_its_position_can_be_acknowledged(reader: Reader) -> None:
    [row] = await events_of(reader.engine, 1)
    await created(reader)
    await park(reader, row["sequence"])
    found = await page(reader, lease=60)
    assert (found["events"], found["after"], found["lease_id"]) == ([], row["sequence"], None)
    assert (await ack(reader, found["after"]))["lag"] == 0


async def test_parking_is_a_consumers_own(reader: Reader) -> None:
    [row] = await events_of(reader.engine, 1)
    await created(reader)
    await created(reader, "other")
    await park(reader, row["sequence"])
    assert numbers(await page(reader, "other")) == [row["sequence"]]
    assert (await reader.get("/v1/consumers/other/parked")).json() == {"parked": []}


async def test_an_event_may_be_parked_while_its_page_is_leased(reader: Reader) -> None:
    """An operator sets aside what takes one reader after the other down."""
    rows = await events_of(reader.engine, 2)
    await created(reader)
    mine = await page(reader, lease=60)
    await park(reader, rows[0]["sequence"])
    await let_leases_run_out(reader.engine)
    assert numbers(await page(reader, lease=60)) == numbers(mine)[1:]


async def test_only_what_is_there_can_be_parked(reader: Reader) -> None:
    await an_event(reader.engine, sequence=5)
    await an_event(reader.engine, sequence=7)
    await created(reader)
    for sequence in (1, 6, 8, HIGHEST):
        assert "no event" in (await park(reader, sequence, status=409))["detail"]
    assert (await reader.get("/v1/consumers/search/parked")).json() == {"parked": []}


async def test_an_event_behind_the_position_can_be_parked_for_later(reader: Reader) -> None:
    rows = await events_of(reader.engine, 2)
    await created(reader, start="latest")
    await park(reader, rows[0]["sequence"])
    await call(reader, "PUT", "/search", 200, {"start": "earliest"})
    assert numbers(await page(reader)) == [rows[1]["sequence"]]


async def test_what_is_taken_off_the_list_comes_again_where_it_was_not_passed(reader: Reader) -> None:
    rows = await events_of(reader.engine, 2)
    await created(reader)
    await park(reader, rows[0]["sequence"])
    await call(reader, "DELETE", f"/search/parked/{rows[0]['sequence']}", 204)
    assert numbers(await page(reader)) == [row["sequence"] for row in rows]
    await call(reader, "DELETE", f"/search/parked/{rows[0]['sequence']}", 404)
    for wrong in ("0", "x", str(HIGHEST + 1)):
        await call(reader, "DELETE", f"/search/parked/{wrong}", 404)


async def test_a_parked_event_that_is_no_longer_kept_is_still_listed(reader: Reader) -> None:
    [row] = await events_of(reader.engine, 1)
    await created(reader)
    await park(reader, row["sequence"])
    async with reader.engine.begin() as connection:
        await connection.execute(text("DELETE FROM events"))
    [parked] = (await reader.get("/v1/consumers/search/parked")).json()["parked"]
    assert (parked["event_id"], parked["entity_type"], parked["entity_id"]) == (None, None, None)
    assert (await park(reader, row["sequence"]))["reason"] == "poison"


async def test_the_number_of_parked_events_is_bounded(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "MOST_PARKED", 2)
    rows = await events_of(reader.engine, 12)
    await created(reader)
    answers = await asyncio.gather(
        *(
            reader.http.post("/v1/consumers/search/park", json={"sequence": row["sequence"], "reason": "poison"})
            for row in rows
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [409] * 10
    parked = (await reader.get("/v1/consumers/search/parked")).json()["parked"]
    assert (await park(reader, parked[0]["sequence"])) == parked[0]
    await call(reader, "DELETE", f"/search/parked/{parked[0]['sequence']}", 204)
    await park(reader, parked[0]["sequence"])


async def test_the_number_of_consumers_is_bounded(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "MOST_CONSUMERS", 2)
    answers = await asyncio.gather(*(reader.http.put(f"/v1/consumers/c{number}") for number in range(6)))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 409, 409, 409, 409]
    [one, two] = (await reader.get("/v1/consumers")).json()["consumers"]
    await call(reader, "PUT", f"/{one['name']}", 200)
    await call(reader, "DELETE", f"/{two['name']}", 204)
    await created(reader, "another")


async def test_many_that_create_the_same_consumer_create_one(reader: Reader) -> None:
    answers = await asyncio.gather(*(reader.http.put("/v1/consumers/search") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]


async def test_a_deleted_consumer_is_forgotten_with_what_it_parked(reader: Reader) -> None:
    [row] = await events_of(reader.engine, 1)
    await created(reader)
    await park(reader, row["sequence"])
    await call(reader, "DELETE", "/search", 204)
    await call(reader, "DELETE", "/search", 404)
    await created(reader)
    assert (await reader.get("/v1/consumers/search/parked")).json() == {"parked": []}
    assert numbers(await page(reader)) == [row["sequence"]]
    assert len((await reader.get("/v1/events")).json()["events"]) == 1


async def test_consumers_are_listed_by_name_each_with_its_own_lag(reader: Reader) -> None:
    for sequence in (2, 3, 7, 8, 20):
        await an_event(reader.engine, sequence=sequence, received_at=utc_now() - timedelta(seconds=1000 - sequence))
    starts = {"z": 3, "a": 3, "m": 0, "B": 20, "k": 7}
    for name, start in starts.items():
        await created(reader, name, start)
    listed = [Consumer.model_validate(one) for one in (await reader.get("/v1/consumers")).json()["consumers"]]
    assert [(one.name, one.lag) for one in listed] == [("B", 0), ("a", 3), ("k", 2), ("m", 5), ("z", 3)]
    assert [one.lag_seconds > 0 for one in listed] == [False, True, True, True, True]
    assert listed[3].lag_seconds > listed[1].lag_seconds > listed[2].lag_seconds


class Pods:
    """Several readers of one consumer, which share nothing but the service; notes who works on which event and when."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.done: list[int] = []
        self.begun: list[int] = []
        self.working: set[int] = set()
        self.taken = 0
        self.refused = 0

    async def run(self, last: int) -> None:
        """Take pages until `last` is done. Each third page is begun and never finished: whoever has it crashes."""
        while not self.done or self.done[-1] != last:
            response = await self.reader.http.get("/v1/consumers/search/events?limit=4&lease=60")
            if response.status_code == 409:
                self.refused += 1
                assert int(response.headers["retry-after"]) >= 1
                await asyncio.sleep(0.001)
                continue
            mine = response.json()
            if not mine["lease_id"]:
                continue
            self.taken += 1
            crashes = self.taken % 3 == 0
            events = numbers(mine)
            assert not self.working, "two readers work on one page"
            self.working.update(events)
            self.begun += events
            await asyncio.sleep(0.001)
            self.working.clear()
            if crashes:
                await let_leases_run_out(self.reader.engine)
                continue
            self.done += events
            await ack(self.reader, mine["after"], lease_id=mine["lease_id"])


async def test_many_readers_share_one_consumer_and_each_event_is_handled_by_one_at_a_time(reader: Reader) -> None:
    rows = await events_of(reader.engine, 60)
    await created(reader)
    pods = Pods(reader)
    async with asyncio.timeout(60):
        await asyncio.gather(*(pods.run(rows[-1]["sequence"]) for _ in range(8)))
    assert pods.done == [row["sequence"] for row in rows], "none is missed, none done twice, all in order"
    assert len(pods.begun) > len(pods.done), "some readers crashed over their page"
    assert pods.refused > 0
    assert (await reader.get("/v1/consumers/search")).json()["lag"] == 0


async def test_of_many_that_ask_at_once_one_gets_the_page(reader: Reader) -> None:
    await events_of(reader.engine, 2)
    await created(reader)

    async def ask() -> httpx.Response:
        return await reader.http.get("/v1/consumers/search/events?lease=60")

    answers = await asyncio.gather(*(ask() for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
