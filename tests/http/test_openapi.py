"""The OpenAPI document tells the truth about the reading side."""

from typing import Any

import pytest
from jsonschema_rs import validator_for

from app.problems import KINDS
from tests.builders import a_delivery, an_entity, an_event
from tests.http.conftest import Reader

OPERATIONS = {
    "/v1/events": "listEvents",
    "/v1/events/stream": "streamEvents",
    "/v1/events/{event_id}": "getEvent",
    "/v1/{collection}": "listEntities",
    "/v1/{collection}/{entity_id}": "getEntity",
    "/v1/{collection}/{entity_id}/events": "listEntityEvents",
    "/v1/deliveries": "listDeliveries",
    "/v1/deliveries/{delivery_id}": "getDelivery",
}
"""Generated clients name their functions after these, so they stay."""


@pytest.fixture
async def document(reader: Reader) -> dict[str, Any]:
    found: dict[str, Any] = (await reader.get("/openapi.json")).json()
    return found


def test_operations_keep_their_names(document: dict[str, Any]) -> None:
    assert {path: document["paths"][path]["get"]["operationId"] for path in OPERATIONS} == OPERATIONS


def test_every_operation_says_what_it_does_who_may_and_what_goes_wrong(document: dict[str, Any]) -> None:
    for path in OPERATIONS:
        operation = document["paths"][path]["get"]
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]
        assert operation["security"] == [{"ApiKey": []}]
        assert {"200", "400", "401", "403", "503", "default"} <= operation["responses"].keys()
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


def test_examples_of_problems_are_of_the_status_they_stand_at(document: dict[str, Any]) -> None:
    types = {(kind.type, kind.status, kind.title) for kind in KINDS.values()}
    for path in OPERATIONS:
        for status, response in document["paths"][path]["get"]["responses"].items():
            for example in response.get("content", {}).get("application/problem+json", {}).get("examples", {}).values():
                value = example["value"]
                assert str(value["status"]) == status
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
    paths = {
        "/v1/events": "/v1/events",
        "/v1/events/{event_id}": f"/v1/events/{event['id']}",
        "/v1/{collection}": "/v1/products",
        "/v1/{collection}/{entity_id}": "/v1/products/1001",
        "/v1/{collection}/{entity_id}/events": "/v1/products/1001/events",
        "/v1/deliveries": "/v1/deliveries",
        "/v1/deliveries/{delivery_id}": f"/v1/deliveries/{delivery['id']}",
    }
    assert paths.keys() == OPERATIONS.keys() - {"/v1/events/stream"}
    for described, path in paths.items():
        schema = document["paths"][described]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        answer = (await reader.get(path)).json()
        validator_for({"components": document["components"], **schema}, validate_formats=True).validate(answer)
    problem = await reader.problem(400, "/v1/events?limit=0")
    wrong = {"components": document["components"], "$ref": "#/components/schemas/Problem"}
    validator_for(wrong).validate(problem)


def test_bounds_of_parameters_are_told(document: dict[str, Any]) -> None:
    schemas = {one["name"]: one["schema"] for one in document["paths"]["/v1/events"]["get"]["parameters"]}
    after = schemas["after"]["anyOf"][0]
    assert (schemas["limit"]["minimum"], schemas["limit"]["maximum"]) == (1, 1000)
    assert (schemas["wait"]["minimum"], schemas["wait"]["maximum"]) == (0, 60)
    assert (after["minimum"], after["maximum"]) == (0, 2**63 - 1)


@pytest.mark.parametrize("path", OPERATIONS)
def test_parameters_are_described_with_an_example_or_a_default(document: dict[str, Any], path: str) -> None:
    for parameter in document["paths"][path]["get"].get("parameters", []):
        schema = parameter["schema"]
        assert parameter.get("description") or schema.get("description"), parameter["name"]
        assert {"example", "examples"} & parameter.keys() or {"default", "examples"} & schema.keys(), parameter["name"]
