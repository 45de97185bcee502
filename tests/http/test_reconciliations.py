"""`/v1/reconciliations` over real HTTP, with the simulated Jasper behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from jsonschema_rs import validator_for

from app.access.keys import Scope, create_key
from app.clock import utc_now
from app.simulator import Simulator, SimulatorOptions, running_simulator
from app.simulator.api import API_PATH
from app.simulator.catalog import Kind
from tests.http.conftest import Reader, Receiver, Start, problem_of

CALL = "/v1/reconciliations"


def settings_for(simulator: Simulator, **others: Any) -> dict[str, Any]:
    return {
        "jasper_api_url": f"{simulator.base_url}{API_PATH}",
        "jasper_api_token": simulator.token,
        "public_url": "http://127.0.0.1:1",  # nothing that Jasper tells arrives
        "reconcile_rate": 1000,
    } | others


@asynccontextmanager
async def beside(start: Start, options: SimulatorOptions, **settings: Any) -> AsyncIterator[tuple[Simulator, Receiver]]:
    async with running_simulator(options) as simulator, start(**settings_for(simulator, **settings)) as receiver:
        yield simulator, receiver


async def ended(receiver: Receiver, address: str) -> dict[str, Any]:
    while True:
        shown = (await receiver.http.get(address)).json()
        if shown["status"] != "running":
            found: dict[str, Any] = shown
            return found
        await asyncio.sleep(0.02)


async def state(receiver: Receiver) -> dict[str, Any]:
    items = (await receiver.http.get("/v1/products", params={"limit": 1000})).json()["items"]
    return {item["entity_id"]: item["data"] for item in items}


def catalogue(simulator: Simulator) -> dict[str, Any]:
    return {str(entity["id"]): entity for entity in simulator.catalog.entities("product")}


async def test_one_is_begun_watched_and_listed(start: Start) -> None:
    async with beside(start, SimulatorOptions(rate=0)) as (simulator, receiver):
        begun = await receiver.http.post(CALL, json={"entity_type": "product"})
        assert begun.status_code == 202
        address = begun.headers["location"]
        assert begun.json()["status"] == "running"
        done = await ended(receiver, address)
        assert address == f"{CALL}/{done['id']}"
        assert list(done) == [
            "id", "entity_type", "status", "compared", "created", "updated", "deleted", "error", "started_at",
            "finished_at",
        ]  # fmt: skip
        count = len(catalogue(simulator))
        assert (done["status"], done["created"], done["compared"]) == ("succeeded", count, count)
        assert (await receiver.http.get(CALL)).json() == {"reconciliations": [done]}
        assert await state(receiver) == catalogue(simulator)
        [event, *_] = (await receiver.http.get("/v1/events")).json()["events"]
        assert (event["source"], event["delivery_id"], event["type"]) == ("reconciliation", None, "product.created")


@pytest.mark.parametrize(
    "options",
    [
        {"list_style": "links"},
        {"list_style": "meta", "wrap_resources": False},
        {"list_style": "flat", "list_fields": "id,updated_at"},
        {"list_style": "bare", "list_fields": "sku,id"},
        {"list_style": "laravel", "api_rate_limit": 40, "api_retry_after": 0},
        {"json_style": "php", "time_format": "space"},
        {"api_error_probability": 0.1, "api_throttle_probability": 0.1, "api_retry_after": 0, "page_size": 100},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
async def test_missed_changes_come_back_whichever_way_the_undocumented_falls(
    start: Start, options: dict[str, Any]
) -> None:
    merged: dict[str, Any] = {"rate": 0, "page_size": 7, "time_resolution": "microsecond"} | options
    given = SimulatorOptions(**merged)
    async with beside(start, given, reconcile_most_deleted=1) as (simulator, receiver):
        await ended(receiver, (await receiver.http.post(CALL, json={"entity_type": "product"})).headers["location"])
        head = (await receiver.http.get("/v1/events", params={"limit": 1000})).json()["after"]
        missed = {}
        kinds: tuple[Kind, ...] = ("price", "gone", "new", "price", "gone", "text", "new")
        for kind in kinds:
            change = await simulator.change(kind=kind, entity_type="product")
            missed[str(change.entity_id)] = change.action
        before = catalogue(simulator)
        done = await ended(
            receiver, (await receiver.http.post(CALL, json={"entity_type": "product"})).headers["location"]
        )
        assert done["status"] == "succeeded", done
        assert (await state(receiver)).keys() == before.keys()
        events = (await receiver.http.get("/v1/events", params={"after": head, "limit": 1000})).json()["events"]
        assert {event["entity_id"] for event in events} <= missed.keys()
        assert done["created"] + done["updated"] + done["deleted"] == len(events)
        if "updated_at" in given.list_fields or not given.list_fields:
            assert await state(receiver) == {key: _as_sent(value, given) for key, value in before.items()}


def _as_sent(value: Any, options: SimulatorOptions) -> Any:
    if options.json_style != "php":
        return value
    if isinstance(value, dict):
        return {name: _as_sent(item, options) for name, item in value.items()} or []
    return [_as_sent(item, options) for item in value] if isinstance(value, list) else value


async def test_deleted_at_once_by_the_simulator_needs_force_where_that_is_much(start: Start) -> None:
    async with beside(start, SimulatorOptions(rate=0), reconcile_most_deleted=0) as (simulator, receiver):
        await ended(receiver, (await receiver.http.post(CALL, json={"entity_type": "product"})).headers["location"])
        await simulator.change(kind="gone", entity_type="product")
        begun = await receiver.http.post(CALL, json={"entity_type": "product"})
        assert (await ended(receiver, begun.headers["location"]))["status"] == "needs_confirmation"
        begun = await receiver.http.post(CALL, json={"entity_type": "product", "force": True})
        done = await ended(receiver, begun.headers["location"])
        assert (done["status"], done["deleted"]) == ("succeeded", 1)
        [*_, event] = (await receiver.http.get("/v1/events", params={"limit": 1000})).json()["events"]
        assert (event["type"], event["data"]) == ("product.deleted", None)
        assert event["occurred_at"] is not None  # by Jasper's clock


async def test_only_an_admin_may_and_wrong_bodies_are_refused(reader: Reader) -> None:
    await reader.problem(400, CALL + "?x=1")
    for wrong in (
        {},
        {"entity_type": "shoe"},
        {"entity_type": "product", "force": 1},
        {"entity_type": "product", "x": 1},
    ):
        response = await reader.http.post(CALL, json=wrong)
        assert problem_of(response, 400)["errors"], wrong
    assert problem_of(await reader.http.get(CALL, headers={"Authorization": "Bearer nobody"}), 401)
    _, key = await create_key(reader.engine, "reader", {Scope.READ, Scope.WRITE}, now=utc_now())
    allowed = {"Authorization": f"Bearer {key}"}
    for refused in (
        await reader.http.get(CALL, headers=allowed),
        await reader.http.get(f"{CALL}/01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10", headers=allowed),
        await reader.http.post(CALL, headers=allowed, json={"entity_type": "product"}),
    ):
        assert problem_of(refused, 403)
    await reader.problem(404, f"{CALL}/01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10")
    conflict = problem_of(await reader.http.post(CALL, json={"entity_type": "product"}), 409)
    assert "JASPER_API_URL" in conflict["detail"]


async def test_answers_are_as_described(start: Start) -> None:
    async with beside(start, SimulatorOptions(rate=0)) as (_, receiver):
        document = (await receiver.http.get("/openapi.json")).json()
        begun = await receiver.http.post(CALL, json={"entity_type": "product"})
        await ended(receiver, begun.headers["location"])
        one = await receiver.http.get(begun.headers["location"])
        many = await receiver.http.get(CALL)
        for path, method, response in (
            (CALL, "post", begun),
            (CALL, "get", many),
            (f"{CALL}/{{reconciliation_id}}", "get", one),
        ):
            operation = document["paths"][path][method]
            assert operation["tags"] == ["reconciliations"]
            schema = operation["responses"][str(response.status_code)]["content"]["application/json"]["schema"]
            check = validator_for({"components": document["components"], **schema}, validate_formats=True)
            check.validate(response.json())


async def test_an_absence_is_told_by_readiness_without_failing_it(start: Start) -> None:
    async with start() as receiver:

        async def said() -> tuple[bool, str]:
            checks = (await receiver.http.get("/readyz")).json()["checks"]
            return next((check["ok"], check["reason"]) for check in checks if check["name"] == "reconciliation")

        assert await said() == (True, "nothing says that callbacks were missed")
        await receiver.sql.execute(
            "INSERT INTO attendance VALUES ('product', now(), now() - interval '2 hours', now() - interval '1 hour')"
            " ON CONFLICT (entity_type) DO UPDATE SET away_from = excluded.away_from, away_until = excluded.away_until"
        )
        ok, reason = await said()
        assert ok
        assert "jasper-receiver reconcile product" in reason


async def test_a_receiver_notes_that_it_is_there(start: Start) -> None:
    async with start() as receiver:
        while not await receiver.sql.fetchval("SELECT count(*) FROM attendance WHERE entity_type = 'product'"):
            await asyncio.sleep(0.01)


async def test_thin_callbacks_are_filled_in(start: Start) -> None:
    options = SimulatorOptions(rate=0, shape="id_only", time_resolution="microsecond")
    async with (
        running_simulator(options) as simulator,
        start(**settings_for(simulator, jasper_fetch_entity=True)) as receiver,
    ):
        entity_id = next(iter(catalogue(simulator)))
        sent = await receiver.callback({"action": "updated", "entity_type": "product", "entity_id": entity_id})
        assert sent.json()["status"] == "accepted"
        while not (await state(receiver)).get(entity_id):
            await asyncio.sleep(0.02)
        assert await state(receiver) == {entity_id: catalogue(simulator)[entity_id]}
        events = (await receiver.http.get("/v1/events")).json()["events"]
        assert [(event["data"] is None, event["source"]) for event in events] == [
            (True, "webhook"), (False, "reconciliation"),
        ]  # fmt: skip
