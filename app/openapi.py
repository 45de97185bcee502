"""What the OpenAPI document says beyond what FastAPI finds out by itself: its introduction, the callback endpoint, examples.

Examples of answers are put together from those of their members, so that each value stands in one place.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from app.domain.values import ENTITY_TYPE_OF, DeliveryStatus
from app.errors import (
    BodyTooLargeError,
    DatabaseUnavailableError,
    DrainingError,
    MethodNotAllowedError,
    NotAuthenticError,
    NotFoundError,
    QueueFullError,
    RequestTimeoutError,
    SecretUnknownError,
)
from app.problems import MEDIA_TYPE as PROBLEM
from app.problems import documented

DESCRIPTION = """\
Receives Jasper PIM's callbacks and serves what they say: an ordered feed of create, update and delete events, and the
latest state of every entity.

Follow the feed with `GET /v1/events?after=N`, where `N` is the `after` of the page before. Everything under `/v1` wants
`Authorization: Bearer KEY`.
"""

TAGS = [
    {"name": "feed", "description": "The feed: every create, update and delete, in one strict order."},
    {"name": "consumers", "description": "Named positions in the feed, kept by the server, for one pod or many."},
    {"name": "entities", "description": "The latest state of each entity, and its history."},
    {"name": "deliveries", "description": "Every authentic callback as it came, and how it was read."},
    {"name": "webhooks", "description": "The registrations with Jasper."},
    {"name": "reconciliations", "description": "Comparisons with Jasper's own lists."},
    {"name": "operations", "description": "Health, readiness, what was refused."},
    {"name": "callbacks", "description": "For Jasper alone: where its webhooks deliver."},
]

_RECEIPT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Receipt",
    "description": "What came of a callback; it is committed when this is said.",
    "required": ["status", "delivery_id", "event_id"],
    "properties": {
        "status": {"type": "string", "enum": [str(status) for status in DeliveryStatus]},
        "delivery_id": {"type": "string", "format": "uuid"},
        "event_id": {"anyOf": [{"type": "string", "format": "uuid"}, {"type": "null"}]},
    },
    "example": {
        "status": "accepted",
        "delivery_id": "019aaf6e-7c00-7a3e-8f4e-5b1a0c2d3e4f",
        "event_id": "019aaf6e-7c01-7b1d-9a2b-3c4d5e6f7a8b",
    },
}


def add_callback(app: FastAPI) -> None:
    """Describe the callback endpoint in the application's document."""
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_document()
        document["paths"]["/callbacks/{collection}"] = {"post": _callback()}
        document.setdefault("components", {}).setdefault("schemas", {})["Receipt"] = _RECEIPT_SCHEMA
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way of extending the document


def add_examples(app: FastAPI) -> None:
    """Give every answer and every body in the application's document an example, where their members have some, and a name.

    Comes after all else that describes.
    """
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_document()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _name_body(operation, document["components"]["schemas"])
                _add_examples(operation, path, document["components"]["schemas"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way of extending the document


def _name_body(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Put the schema of a body among the others, under the name of its model, which generated clients then have too."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        if "properties" in content["schema"]:
            name = content["schema"]["title"]
            schemas[name] = content["schema"]
            content["schema"] = {"$ref": f"#/components/schemas/{name}"}


def _add_examples(operation: dict[str, Any], path: str, schemas: Mapping[str, Any]) -> None:
    given = {
        one["name"]: one.get("example") or example_of(one["schema"], schemas) for one in operation.get("parameters", [])
    }
    instance = path.format_map(given)
    answers = [*operation["responses"].values(), *filter(None, [operation.get("requestBody")])]
    for media_type, content in (one for answer in answers for one in answer.get("content", {}).items()):
        if media_type == PROBLEM:
            for example in content["examples"].values():
                example["value"]["instance"] = instance
        elif "example" not in content:
            with suppress(LookupError):
                content["example"] = example_of(content["schema"], schemas)


def example_of_model(model: type[BaseModel]) -> dict[str, Any]:
    """An example of what a model describes. Raises LookupError where a member has none."""
    schema = model.model_json_schema()
    example: dict[str, Any] = example_of(schema, schema.get("$defs", {}))
    return example


def example_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """An example of what a schema describes: its own, or one put together from those of its members.

    Raises LookupError where a member has none.
    """
    match schema:
        case {"$ref": reference}:
            return example_of(schemas[reference.rpartition("/")[2]], schemas)
        case {"example": own} | {"examples": [own, *_]} | {"const": own} | {"enum": [own, *_]} | {"default": own}:
            return own
        case {"properties": members}:
            return {name: example_of(member, schemas) for name, member in members.items()}
        case {"type": "array", "items": items}:
            return [example_of(items, schemas)]
        case {"anyOf": [first, *_]}:
            return example_of(first, schemas)
        case _:
            raise LookupError(f"give an example of {schema}")


def _callback() -> dict[str, Any]:
    return {
        "tags": ["callbacks"],
        "summary": "Deliver a callback",
        "description": (
            "Where Jasper's webhooks deliver. Authentic is what carries the custom headers of the webhook and proves its "
            "signing secret. The `Content-Type` decides nothing. A trailing slash is allowed."
        ),
        "operationId": "receiveCallback",
        "security": [],
        "parameters": [
            {
                "name": "collection",
                "in": "path",
                "required": True,
                "description": "The collection of the entity type whose webhook calls",
                "schema": {"type": "string", "enum": list(ENTITY_TYPE_OF)},
                "example": "products",
            }
        ],
        "requestBody": {
            "required": False,  # one without a body is taken, too, and quarantined
            "content": {
                "application/json": {
                    "schema": {"description": "Whatever Jasper sends"},
                    "example": {
                        "event": "product.updated",
                        "timestamp": "2026-11-23T10:00:00Z",
                        "data": {"id": 1001, "name": "Hoodie", "price": 49.0, "updated_at": "2026-11-23T10:00:00Z"},
                    },
                }
            },
        },
        "responses": {
            "200": {
                "description": "Committed",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Receipt"}}},
            },
            **{
                str(code): answer
                for code, answer in documented(
                    NotAuthenticError,
                    NotFoundError(f"callbacks come to /callbacks/ followed by one of {', '.join(ENTITY_TYPE_OF)}"),
                    MethodNotAllowedError,
                    RequestTimeoutError,
                    BodyTooLargeError("the body is larger than 5242880 bytes (MAX_BODY_BYTES)"),
                    QueueFullError,
                    DrainingError,
                    SecretUnknownError,
                    DatabaseUnavailableError,
                ).items()
            },
        },
    }
