"""The OpenAPI document tells the truth: every answer, every example, and nothing that changes unseen."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import validator_for

from app.access.keys import Scope, create_key
from app.clock import utc_now
from app.main import create_app
from app.problems import KINDS
from app.sealing import generate_key
from app.settings import Settings
from tests.builders import NOW, a_delivery, an_entity, an_event
from tests.http.conftest import Reader

OPERATIONS = {
    "GET /v1/events": "listEvents",
    "GET /v1/events/stream": "streamEvents",
    "GET /v1/events/{event_id}": "getEvent",
    "GET /v1/{collection}": "listEntities",
    "GET /v1/{collection}/{entity_id}": "getEntity",
    "GET /v1/{collection}/{entity_id}/events": "listEntityEvents",
    "GET /v1/deliveries": "listDeliveries",
    "GET /v1/deliveries/{delivery_id}": "getDelivery",
    "POST /v1/deliveries/{delivery_id}/reprocess": "reprocessDelivery",
    "POST /v1/deliveries/reprocess": "reprocessDeliveries",
    "GET /v1/consumers": "listConsumers",
    "PUT /v1/consumers/{name}": "putConsumer",
    "GET /v1/consumers/{name}": "getConsumer",
    "DELETE /v1/consumers/{name}": "deleteConsumer",
    "GET /v1/consumers/{name}/events": "listConsumerEvents",
    "POST /v1/consumers/{name}/ack": "ackConsumer",
    "POST /v1/consumers/{name}/park": "parkEvent",
    "GET /v1/consumers/{name}/parked": "listParkedEvents",
    "DELETE /v1/consumers/{name}/parked/{sequence}": "unparkEvent",
}
"""Generated clients name their functions after these, so they stay."""


RECORDED = Path(__file__).parents[2] / "docs/openapi.json"


def operation_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    method, path = name.split()
    found: dict[str, Any] = document["paths"][path][method.lower()]
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation, with its method and path."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def contents(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every answer and body that has a content: where it stands, its media type, what is said of it."""
    for name, operation in operations(document):
        answers = {**operation["responses"], "body": operation.get("requestBody", {})}
        for status, answer in answers.items():
            for media_type, content in answer.get("content", {}).items():
                yield f"{name} {status}", media_type, content


def examples(content: dict[str, Any]) -> list[Any]:
    return [content["example"]] if "example" in content else [one["value"] for one in content["examples"].values()]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document as it is served: see the test of the one that is recorded."""
    app = create_app(Settings(_env_file=None), "postgresql://nowhere", [generate_key()])
    found: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    return found


def test_operations_keep_their_names(document: dict[str, Any]) -> None:
    assert {name: operation_of(document, name)["operationId"] for name in OPERATIONS} == OPERATIONS


def test_no_operation_on_what_readers_use_is_left_out(document: dict[str, Any]) -> None:
    tags = {"feed", "consumers", "entities", "deliveries"}
    described = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if tags & set(operation["tags"])
    }
    assert described == OPERATIONS.keys()


def test_every_operation_says_what_it_does_who_may_and_what_goes_wrong(document: dict[str, Any]) -> None:
    for name in OPERATIONS:
        operation = operation_of(document, name)
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]
        assert operation["security"] == [{"ApiKey": []}]
        assert {"400", "401", "403", "503", "default"} <= operation["responses"].keys()
        assert {"200", "204"} & operation["responses"].keys()
        assert "422" not in operation["responses"]
        for status, response in operation["responses"].items():
            if status.startswith(("4", "5", "d")):
                assert list(response["content"]) == ["application/problem+json"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    assert "HTTPValidationError" not in schemas


async def test_the_document_is_as_recorded(reader: Reader) -> None:
    """So that what generated clients are made from changes on purpose only."""
    served = json.loads((await reader.get("/openapi.json")).content)
    assert served == json.loads(RECORDED.read_text()), "run script/record-openapi, and read the difference"


def test_operations_have_names_that_generators_can_use(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z]+([A-Z][a-z]+)+", name) for name in names), names


def test_every_operation_has_one_of_the_tags_that_tell_the_story(document: dict[str, Any]) -> None:
    told = [tag["name"] for tag in document["tags"]]
    assert all(tag["description"] for tag in document["tags"])
    used = {name: operation["tags"] for name, operation in operations(document)}
    assert all(len(tags) == 1 and tags[0] in told for tags in used.values()), used
    assert {tag for tags in used.values() for tag in tags} == set(told)


def test_every_answer_and_body_has_an_example_that_is_valid(document: dict[str, Any]) -> None:
    checked = 0
    for where, media_type, content in contents(document):
        assert content.get("example") or content.get("examples"), where
        if media_type == "text/event-stream":
            continue
        check = validator_for({"components": document["components"], **content["schema"]}, validate_formats=True)
        for example in examples(content):
            check.validate(example)
            checked += 1
    assert checked > 100


def test_every_parameter_and_header_has_an_example_or_a_default_that_is_valid(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        described = [*operation.get("parameters", [])]
        for answer in operation["responses"].values():
            described += answer.get("headers", {}).values()
        for one in described:
            schema = one["schema"]
            found = [one["example"]] if "example" in one else schema.get("examples", [])
            assert found or "default" in schema or "enum" in schema or "$ref" in schema, f"{name}: {one}"
            assert one.get("description"), f"{name}: {one}"
            check = validator_for({"components": document["components"], **schema}, validate_formats=True)
            for example in found:
                assert check.is_valid(example), f"{name}: {one}"


def test_the_example_of_a_stream_is_one(document: dict[str, Any]) -> None:
    text = operation_of(document, "GET /v1/events/stream")["responses"]["200"]["content"]["text/event-stream"][
        "example"
    ]
    [event] = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    check = {"components": document["components"], "$ref": "#/components/schemas/Event"}
    validator_for(check, validate_formats=True).validate(event)


async def test_examples_of_problems_are_what_is_answered(reader: Reader, document: dict[str, Any]) -> None:
    """To the letter. Each operation is called with its own examples, on a database in which nothing is."""
    lacking = {
        scope: (await create_key(reader.engine, f"not {scope}", set(Scope) - {scope}, now=utc_now()))[1]
        for scope in Scope
    }
    compared: Counter[str] = Counter()
    for name, operation in operations(document):
        method, path = name.split()
        if not path.startswith("/v1"):
            continue
        told = {
            kind: example["value"]
            for answer in operation["responses"].values()
            if "application/problem+json" in answer.get("content", {})
            for kind, example in answer["content"]["application/problem+json"]["examples"].items()
        }
        body = operation.get("requestBody", {"content": {"application/json": {"example": None}}})
        call = {"json": body["content"]["application/json"]["example"]}
        address = told["key-missing"]["instance"]
        scope = Scope(told["scope-missing"]["detail"].rpartition(" ")[2])
        tried: dict[str, dict[str, Any]] = {
            "key-missing": {"headers": {"Authorization": ""}},
            "scope-missing": {"headers": {"Authorization": f"Bearer {lacking[scope]}"}},
            "invalid-parameters": {"params": {"colour": "red"}},
            "not-acceptable": {"headers": {"Accept": "text/html"}},
            "body-too-large": {"json": "x" * 70_000},
        }
        if "/webhooks/" not in path:  # whose examples name what is there
            tried["not-found"] = {}
        if name.startswith("PUT"):
            tried["conflict"] = {"json": {"start": 1042}}
            told["conflict"]["detail"] = told["conflict"]["detail"].replace("1041", "0")
        if "/webhooks/" in path:
            tried["conflict"] = {}
        for kind in tried.keys() & told.keys():
            answer = await reader.http.request(method, address, **(call | tried[kind]))
            assert answer.json() == told[kind], f"{name}: {kind}"
            compared[kind] += 1
    assert compared.keys() == {
        *(
            "key-missing",
            "scope-missing",
            "invalid-parameters",
            "not-acceptable",
            "body-too-large",
            "not-found",
            "conflict",
        )
    }
    assert compared["key-missing"] > 20


async def test_the_example_of_a_deleted_entity_has_what_is_answered(reader: Reader, document: dict[str, Any]) -> None:
    await an_entity(reader.engine, deleted_at=NOW, source_updated_at=NOW)
    answer = operation_of(document, "GET /v1/{collection}/{entity_id}")["responses"]["410"]
    told = answer["content"]["application/problem+json"]["examples"]["gone"]["value"]
    problem = await reader.problem(410, told["instance"])
    check = {"components": document["components"], "$ref": "#/components/schemas/Entity"}
    for one in (told, problem):
        validator_for(check, validate_formats=True).validate(one.pop("entity"))
    assert problem == told


def test_examples_of_problems_are_of_the_status_they_stand_at(document: dict[str, Any]) -> None:
    types = {(kind.type, kind.status, kind.title) for kind in KINDS.values()}
    for name in OPERATIONS:
        for status, response in operation_of(document, name)["responses"].items():
            for example in response.get("content", {}).get("application/problem+json", {}).get("examples", {}).values():
                value = example["value"]
                assert str(value["status"]) == (status if status != "default" else "500")
                assert (value["type"], value["status"], value["title"]) in types


def test_examples_in_schemas_are_valid(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        for property_name, described in schema.get("properties", {}).items():
            for example in described.get("examples", []):
                check = validator_for({"components": document["components"], **described}, validate_formats=True)
                assert check.is_valid(example), f"{name}.{property_name}: {example!r}"


async def test_answers_are_as_described(reader: Reader, document: dict[str, Any]) -> None:
    event = await an_event(reader.engine, changed=["price"], changes='[{"op": "add", "path": "/price", "to": 1.1}]')
    await an_event(reader.engine, data=None, occurred_at=None, delivery_id=None)
    await an_entity(reader.engine)
    delivery = await a_delivery(reader.engine)
    sequence = event["sequence"]
    calls: dict[str, tuple[str, object]] = {  # in this order
        "GET /v1/events": ("/v1/events", None),
        "GET /v1/events/{event_id}": (f"/v1/events/{event['id']}", None),
        "GET /v1/{collection}": ("/v1/products", None),
        "GET /v1/{collection}/{entity_id}": ("/v1/products/1001", None),
        "GET /v1/{collection}/{entity_id}/events": ("/v1/products/1001/events", None),
        "GET /v1/deliveries": ("/v1/deliveries", None),
        "GET /v1/deliveries/{delivery_id}": (f"/v1/deliveries/{delivery['id']}", None),
        "POST /v1/deliveries/{delivery_id}/reprocess": (f"/v1/deliveries/{delivery['id']}/reprocess", None),
        "POST /v1/deliveries/reprocess": ("/v1/deliveries/reprocess", {"status": "quarantined", "limit": 10}),
        "PUT /v1/consumers/{name}": ("/v1/consumers/search", {"start": 0}),
        "GET /v1/consumers": ("/v1/consumers", None),
        "POST /v1/consumers/{name}/park": ("/v1/consumers/search/park", {"sequence": sequence, "reason": "poison"}),
        "GET /v1/consumers/{name}/parked": ("/v1/consumers/search/parked", None),
        "DELETE /v1/consumers/{name}/parked/{sequence}": (f"/v1/consumers/search/parked/{sequence}", None),
        "POST /v1/consumers/{name}/ack": ("/v1/consumers/search/ack", {"after": sequence}),
        "GET /v1/consumers/{name}/events": ("/v1/consumers/search/events?lease=5", None),
        "GET /v1/consumers/{name}": ("/v1/consumers/search", None),
        "DELETE /v1/consumers/{name}": ("/v1/consumers/search", None),
    }
    assert calls.keys() == OPERATIONS.keys() - {"GET /v1/events/stream"}
    for name, (path, body) in calls.items():
        operation = operation_of(document, name)
        if body is not None:
            request = operation["requestBody"]["content"]["application/json"]["schema"]
            request = {"components": document["components"], **request}
            validator_for(request, validate_formats=True).validate(body)
        response = await reader.http.request(name.split()[0], path, json=body)
        described = operation["responses"][str(response.status_code)]
        if response.status_code == 204:
            assert not response.content
            continue
        schema = described["content"]["application/json"]["schema"]
        validator = validator_for({"components": document["components"], **schema}, validate_formats=True)
        validator.validate(response.json())
    problem = await reader.problem(400, "/v1/events?limit=0")
    wrong = {"components": document["components"], "$ref": "#/components/schemas/Problem"}
    validator_for(wrong).validate(problem)


def test_bounds_of_parameters_are_told(document: dict[str, Any]) -> None:
    schemas = {one["name"]: one["schema"] for one in document["paths"]["/v1/events"]["get"]["parameters"]}
    after = schemas["after"]["anyOf"][0]
    assert (schemas["limit"]["minimum"], schemas["limit"]["maximum"]) == (1, 1000)
    assert (schemas["wait"]["minimum"], schemas["wait"]["maximum"]) == (0, 60)
    assert (after["minimum"], after["maximum"]) == (0, 2**63 - 1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_parameters_are_described_with_an_example_or_a_default(document: dict[str, Any], name: str) -> None:
    for parameter in operation_of(document, name).get("parameters", []):
        schema = parameter["schema"]
        assert parameter.get("description") or schema.get("description"), parameter["name"]
        assert {"example", "examples"} & parameter.keys() or {"default", "examples"} & schema.keys(), parameter["name"]


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name.startswith(("POST", "PUT"))])
def test_members_of_bodies_are_described_with_valid_examples(document: dict[str, Any], name: str) -> None:
    """And a body that is refused is announced."""
    operation = operation_of(document, name)
    if "requestBody" not in operation:
        assert name == "POST /v1/deliveries/{delivery_id}/reprocess"
        return
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert schema["additionalProperties"] is False
    for member, alone in schema["properties"].items():
        described = {"components": document["components"], **alone}
        assert described["description"], member
        assert described["examples"], member
        for example in described["examples"]:
            assert validator_for(described, validate_formats=True).is_valid(example), f"{member}: {example!r}"
    assert {"408", "413"} <= operation["responses"].keys()


def test_bounds_of_consumers_are_told(document: dict[str, Any]) -> None:
    operation = operation_of(document, "GET /v1/consumers/{name}/events")
    schemas = {one["name"]: one["schema"] for one in operation["parameters"]}
    lease = schemas["lease"]["anyOf"][0]
    assert (lease["minimum"], lease["maximum"]) == (1, 3600)
    assert schemas["name"]["pattern"] == "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
