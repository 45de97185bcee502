"""What readers call again and again never waits for a thread: under load each hop to one takes longer than the work."""

from typing import Any

import pytest

from tests.builders import an_entity, an_event
from tests.http.conftest import Reader


async def test_nothing_that_readers_call_runs_in_a_thread(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    event = await an_event(reader.engine)
    await an_entity(reader.engine, entity_id=event["entity_id"])

    async def refuse(work: Any, *_: object, **__: object) -> None:
        raise AssertionError(f"{work} is no coroutine, so that it needs a thread")

    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", refuse)
    monkeypatch.setattr("fastapi.routing.run_in_threadpool", refuse)
    assert (await reader.http.put("/v1/consumers/search", json={})).status_code == 201
    for path in (
        *("/v1/events", f"/v1/events/{event['id']}", "/v1/products", f"/v1/products/{event['entity_id']}"),
        *(f"/v1/products/{event['entity_id']}/events", "/v1/deliveries", "/v1/consumers", "/v1/consumers/search"),
        *("/v1/consumers/search/events", "/v1/consumers/search/parked"),
    ):
        await reader.get(path)
    acknowledged = await reader.http.post("/v1/consumers/search/ack", json={"after": event["sequence"]})
    assert acknowledged.status_code == 200, acknowledged.text
