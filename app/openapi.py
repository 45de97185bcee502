"""What the OpenAPI document says beyond what FastAPI finds out by itself: its introduction and the callback endpoint."""

from typing import Any

from fastapi import FastAPI

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
                    NotFoundError,
                    MethodNotAllowedError,
                    RequestTimeoutError,
                    BodyTooLargeError,
                    QueueFullError,
                    DrainingError,
                    SecretUnknownError,
                    DatabaseUnavailableError,
                ).items()
            },
        },
    }
