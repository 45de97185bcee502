"""A client that a public generator makes from the document that is served, calling the service that serves it.

As a team in another language would come by theirs. Nothing is left out of it: a warning of the generator fails the test.
"""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.builders import NOW, an_entity, an_event
from tests.http.conftest import ADMIN_KEY, Reader

NAME = "generated_jasper_receiver"


@pytest.fixture
async def generated(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator["Generated"]:
    """The client, made anew and imported for one test."""
    (tmp_path / "openapi.json").write_bytes((await reader.get("/openapi.json")).content)
    (tmp_path / "config.yaml").write_text("post_hooks: []\n")
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("openapi-python-client"), "generate", "--fail-on-warning"),
        *("--path", "openapi.json", "--config", "config.yaml", "--meta", "none", "--output-path", NAME),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    monkeypatch.syspath_prepend(tmp_path)
    made = Generated(str(reader.http.base_url))
    with made.client:
        yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


class Generated:
    """The generated client; `call` is made beside the loop, on which the service runs."""

    def __init__(self, url: str) -> None:
        self.models = self.module("models")
        client = importlib.import_module(NAME).AuthenticatedClient(base_url=url, token=ADMIN_KEY)
        self.client = client

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{NAME}.{name}")

    async def call(self, operation: str, *arguments: Any, **named: Any) -> Any:
        """What an operation, such as `feed.list_events`, answers."""
        module = self.module(f"api.{operation}")
        return await asyncio.to_thread(module.sync_detailed, *arguments, client=self.client, **named)


async def test_a_generated_client_has_every_operation(generated: Generated, reader: Reader) -> None:
    document = (await reader.get("/openapi.json")).json()
    described = {
        (operation["tags"][0], operation["operationId"].lower())
        for methods in document["paths"].values()
        for operation in methods.values()
    }
    api = Path(generated.module("api").__path__[0])
    made = {(file.parent.name, file.stem.replace("_", "")) for file in api.glob("*/*.py") if file.stem != "__init__"}
    assert made == described


async def test_a_generated_client_reads_the_feed_and_the_state(generated: Generated, reader: Reader) -> None:
    models = generated.models
    row = await an_event(
        reader.engine, changed=["price"], changes='[{"op":"replace","path":"/price","from":52,"to":49}]'
    )
    await an_event(reader.engine, entity_type="brand")
    answer = await generated.call("feed.list_events", entity_type=[models.EntityType.PRODUCT], limit=10)
    page = answer.parsed
    assert (answer.status_code, page.after, page.has_more) == (200, 2, False)
    [event] = page.events
    assert (event.sequence, event.id, event.type_, event.received_at) == (1, row["id"], "product.updated", NOW)
    assert (event.changes[0].op, event.changes[0].from_, event.changes[0].to) == ("replace", 52, 49)
    assert (await generated.call("feed.get_event", row["id"])).parsed == event

    await an_entity(reader.engine)
    entity = (await generated.call("entities.get_entity", models.Collection.PRODUCTS, "1001")).parsed
    assert (entity.entity_id, entity.data, entity.deleted_at) == ("1001", {"id": 1001}, None)
    listed = await generated.call("entities.list_entities", models.Collection.PRODUCTS)
    assert listed.parsed.items == [entity]
    assert listed.headers["Feed-Position"] == "3"


async def test_a_generated_client_works_as_a_consumer(generated: Generated, reader: Reader) -> None:
    await an_event(reader.engine)
    made = await generated.call(
        "consumers.put_consumer", "search", body=generated.models.ConsumerStart(start="earliest")
    )
    assert (made.status_code, made.parsed.position) == (201, 0)
    page = (await generated.call("consumers.list_consumer_events", "search", lease=30)).parsed
    assert ([event.sequence for event in page.events], type(page.lease_id)) == ([1], UUID)
    done = generated.models.Ack(after=page.after, lease_id=page.lease_id)
    assert (await generated.call("consumers.ack_consumer", "search", body=done)).parsed.position == 1
    parked = generated.models.Park(sequence=1, reason="poison")
    assert (await generated.call("consumers.park_event", "search", body=parked)).parsed.entity_id == "1001"
    assert (await generated.call("consumers.delete_consumer", "search")).status_code == 204


async def test_a_generated_client_is_told_of_problems(generated: Generated, reader: Reader) -> None:
    problem = (await generated.call("feed.get_event", uuid4())).parsed
    assert isinstance(problem, generated.models.Problem)
    assert (problem.status, problem.type_) == (404, "/problems/not-found")
    await an_entity(reader.engine, deleted_at=NOW)
    gone = (await generated.call("entities.get_entity", generated.models.Collection.PRODUCTS, "1001")).parsed
    assert (gone.status, gone.additional_properties["entity"]["entity_id"]) == (410, "1001")
    wrong = (await generated.call("feed.list_events", limit=0)).parsed
    assert [one.parameter for one in wrong.errors] == ["limit"]
    generated.client.get_httpx_client().headers["Authorization"] = "Bearer wrong"
    assert (await generated.call("feed.list_events")).parsed.type_ == "/problems/key-missing"
