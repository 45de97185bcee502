"""Errors as the web sees them: the one table from error to status, and RFC 9457 problem documents made from it.

Every answer that is not a success leaves through here, so that all have one shape. What went wrong inside is logged and
never told: a 5xx of ours says that the service failed, not why. `type` is a path that stays the same for ever; clients
compare it as text (it is listed in `docs/reading.md`, nothing is served there).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.errors import (
    BodyTooLargeError,
    ConflictError,
    DatabaseUnavailableError,
    DrainingError,
    EmbeddedPostgresError,
    ForeignRequestError,
    GoneError,
    InvalidParametersError,
    JasperError,
    JasperRefusedError,
    JasperUnavailableError,
    KeyMissingError,
    LeasedError,
    MethodNotAllowedError,
    NotAcceptableError,
    NotAuthenticError,
    NotFoundError,
    QueueFullError,
    ReceiverError,
    RequestTimeoutError,
    SchemaError,
    ScopeMissingError,
    SealingError,
    SecretUnknownError,
    SettingsError,
    UnavailableError,
)
from app.head import takes_head

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_INTERNAL_DETAIL = "The service failed to answer; its log tells why."


@dataclass(frozen=True, slots=True)
class Kind:
    """What all problems of one type share."""

    status: int
    name: str
    title: str

    @property
    def type(self) -> str:
        """The problem's `type`: a URI reference, the same for ever."""
        return f"/problems/{self.name}"


_INTERNAL = Kind(500, "internal-error", "The service failed")
_UNAVAILABLE = Kind(503, "unavailable", "Try again later")
_JASPER_UNAVAILABLE = Kind(502, "jasper-unavailable", "Jasper could not be reached")

KINDS: Mapping[type[ReceiverError], Kind] = {
    ReceiverError: _INTERNAL,
    SettingsError: _INTERNAL,
    EmbeddedPostgresError: _INTERNAL,
    SchemaError: _INTERNAL,
    SealingError: _INTERNAL,
    UnavailableError: _UNAVAILABLE,
    DatabaseUnavailableError: Kind(503, "database-unavailable", "Postgres cannot be reached"),
    QueueFullError: Kind(503, "queue-full", "Too many callbacks are waiting"),
    DrainingError: Kind(503, "shutting-down", "The process is shutting down"),
    SecretUnknownError: Kind(503, "secret-unknown", "No signing secret can be checked now"),
    NotAuthenticError: Kind(401, "not-authentic", "The callback does not prove that Jasper sent it"),
    BodyTooLargeError: Kind(413, "body-too-large", "The body is too large"),
    RequestTimeoutError: Kind(408, "request-timeout", "The request took too long to arrive"),
    KeyMissingError: Kind(401, "key-missing", "A valid API key is needed"),
    ScopeMissingError: Kind(403, "scope-missing", "The API key lacks a scope"),
    ForeignRequestError: Kind(403, "foreign-request", "The request comes from somewhere else"),
    NotFoundError: Kind(404, "not-found", "Nothing is here"),
    MethodNotAllowedError: Kind(405, "method-not-allowed", "Not for this method"),
    NotAcceptableError: Kind(406, "not-acceptable", "None of the accepted media types can be sent"),
    GoneError: Kind(410, "gone", "What was here is gone"),
    ConflictError: Kind(409, "conflict", "The request contradicts the present state"),
    LeasedError: Kind(409, "leased", "Another reader holds the page"),
    InvalidParametersError: Kind(400, "invalid-parameters", "Some parameters are wrong"),
    JasperError: _JASPER_UNAVAILABLE,
    JasperRefusedError: Kind(502, "jasper-refused", "Jasper refused"),
    JasperUnavailableError: _JASPER_UNAVAILABLE,
}
"""The one table. A test holds it complete."""


_USUAL: Mapping[type[ReceiverError], ReceiverError] = {
    type(error): error
    for error in (
        InvalidParametersError([{"parameter": "colour", "detail": "unknown parameter"}]),
        KeyMissingError("send an API key: Authorization: Bearer KEY"),
        NotAuthenticError("the signing secret is nowhere in the callback"),
        ScopeMissingError("this call needs a key with the scope read"),
        NotFoundError("there is nothing at this address"),
        MethodNotAllowedError("a callback is a POST", allowed=["POST"]),
        NotAcceptableError(
            "nothing that is accepted can be sent; accept one of application/json, application/cloudevents-batch+json"
        ),
        GoneError("events behind position 17 have been removed", extra={"oldest_after": 90311}),
        ConflictError("1042 is past the end of the feed: its newest event is number 1041"),
        LeasedError(
            "another reader of search holds the page, until it acknowledges it or 41.5 s have passed", retry_after=41.5
        ),
        RequestTimeoutError("the body did not arrive within 10 s"),
        BodyTooLargeError("the body is larger than 65536 bytes"),
        JasperRefusedError(
            "Jasper refused the token (401): it is missing, wrong or was rotated: set JASPER_API_TOKEN", status=401
        ),
        JasperUnavailableError("Jasper is in trouble (503)", status=503, retry_after=30),
        UnavailableError("another replica is registering and does not come to an end: try again"),
        DatabaseUnavailableError("Postgres cannot be reached"),
        QueueFullError("4000 callbacks wait for their commit already"),
        DrainingError("the service is shutting down"),
        SecretUnknownError("no signing secret is known for products yet", retry_after=10),
    )
}
"""What an error of a class looks like, for examples: every class that a route names."""


class InvalidParameter(BaseModel):
    """One wrong parameter."""

    model_config = ConfigDict(frozen=True)

    parameter: Annotated[str, Field(examples=["limit"])]
    detail: Annotated[str, Field(examples=["Input should be less than or equal to 1000"])]


class Problem(BaseModel):
    """An RFC 9457 problem document. Problems of some types carry further members."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: Annotated[
        str, Field(description="What kind of problem; compare it as text", examples=["/problems/not-found"])
    ]
    title: Annotated[str, Field(examples=["Nothing is here"])]
    status: Annotated[int, Field(examples=[404])]
    detail: Annotated[str, Field(examples=["no product with this id was ever seen"])]
    instance: Annotated[str, Field(description="The path that was asked for", examples=["/v1/products/1001"])]
    errors: Annotated[list[InvalidParameter], Field(default_factory=list, description="Only with status 400")]


def kind_of(error: ReceiverError) -> Kind:
    """What kind of problem an error is."""
    return next(KINDS[ancestor] for ancestor in type(error).__mro__ if ancestor in KINDS)


_HEADERS: Mapping[str, dict[str, Any]] = {
    "Retry-After": {"description": "Seconds after which to ask again", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to authenticate", "schema": {"type": "string"}},
    "Allow": {"description": "The methods that the address takes", "schema": {"type": "string"}},
    "Vary": {"description": "What the answer depends on", "schema": {"type": "string"}},
    "Connection": {"description": "The connection is closed", "schema": {"type": "string"}},
}
"""How the headers of `_headers` are described in the OpenAPI document."""


def problem_response(error: ReceiverError, instance: str) -> Response:
    """The answer for one error. `instance` is the path asked for, see `instance_of`."""
    kind = kind_of(error)
    if kind.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request failed", exc_info=error, extra={"path": instance})
        return _respond(kind, _INTERNAL_DETAIL, instance)
    return _respond(kind, str(error), instance, headers=_headers(error), members=_members(error))


def unexpected_response(error: Exception, scope: Scope) -> Response:
    """The answer for an error that nobody thought of: it is logged, and nothing of it told."""
    instance = instance_of(scope)
    _log.error("request failed", exc_info=error, extra={"method": scope["method"], "path": instance})
    return _respond(_INTERNAL, _INTERNAL_DETAIL, instance)


def instance_of(scope: Scope) -> str:
    """The path of a request as a URI reference, whatever bytes it came with."""
    return quote(scope["path"], safe="/:@!$&'()*+,;=~", errors="replace")


def documented(*errors: type[ReceiverError] | ReceiverError) -> dict[int | str, dict[str, Any]]:
    """What a route puts into the OpenAPI document for the errors it may raise (FastAPI's `responses`).

    An error is given itself where its example has words, or members, that a usual one of its class has not.
    """
    answers: dict[int | str, dict[str, Any]] = {}
    for given in errors:
        error = _USUAL[given] if isinstance(given, type) else given
        kind = KINDS[type(error)]
        answer = answers.setdefault(kind.status, {"description": kind.title, "content": {}})
        if kind.title not in answer["description"]:
            answer["description"] += f", or: {kind.title}"
        content = answer["content"].setdefault(
            MEDIA_TYPE, {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        )
        # The path is filled in where it is known, see `app.openapi`.
        content["examples"][kind.name] = {"value": _document(kind, str(error), "", _members(error))}
        for name, value in _headers(error).items():
            answer.setdefault("headers", {})[name] = _HEADERS[name] | {"example": value}
    # Says truly what else may come, and keeps FastAPI from announcing a 422 that never does.
    other = {
        "description": "Any other error",
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {_INTERNAL.name: {"value": _document(_INTERNAL, _INTERNAL_DETAIL, "", {})}},
            }
        },
    }
    return answers | {"default": other}


def install(app: FastAPI) -> None:
    """Let every error of the application leave as a problem document, and describe that in its OpenAPI document."""
    app.add_exception_handler(ReceiverError, _on_receiver_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(Exception, _on_unexpected)
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_document()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(problem.pop("$defs"), Problem=problem)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way of extending the document


async def _on_receiver_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ReceiverError)  # noqa: S101 - registered for this class only
    return problem_response(error, instance_of(request.scope))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: unknown addresses, wrong methods, bodies that are no JSON."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class only
    instance = instance_of(request.scope)
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return problem_response(NotFoundError("there is nothing at this address"), instance)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            refusal = MethodNotAllowedError(
                f"this address does not take {request.method}", allowed=_methods_at(request)
            )
            return problem_response(refusal, instance)
    phrase = HTTPStatus(error.status_code).phrase
    kind = Kind(error.status_code, phrase.lower().replace(" ", "-"), phrase)
    return _respond(kind, error.detail, instance, headers=error.headers)


def _methods_at(request: Request) -> list[str]:
    """Every method that the address takes; Starlette itself names those of the first route only."""
    path = request.scope["path"]
    asked = {method: "GET" if method == "HEAD" and takes_head(path) else method for method in _METHODS}
    return [
        method
        for method, same in asked.items()
        if any(route.matches({**request.scope, "method": same})[0] is Match.FULL for route in request.app.routes)
    ]


_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    """Wrong parameters: 400. A path that cannot be read names nothing: 404."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class only
    found = error.errors()
    if all(one["loc"][0] == "path" for one in found):
        problem: ReceiverError = NotFoundError("there is nothing at this address")
    else:
        problem = InvalidParametersError(
            [{"parameter": _parameter(one["loc"]), "detail": _explanation(one)} for one in found]
        )
    return problem_response(problem, instance_of(request.scope))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    return unexpected_response(error, request.scope)


def _parameter(location: Sequence[str | int]) -> str:
    """The name of a parameter, or the dotted path into the body."""
    return ".".join(str(step) for step in location[1:]) or str(location[0])


def _explanation(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "unknown parameter"
        case "missing":
            return "required"
        case _:
            return str(error["msg"])


def _headers(error: ReceiverError) -> dict[str, str]:
    headers: dict[str, str] = {}
    match error:
        case UnavailableError() | LeasedError() | JasperUnavailableError(retry_after=float() | int()):
            headers["Retry-After"] = str(ceil(error.retry_after or 0))
        case KeyMissingError():
            headers["WWW-Authenticate"] = "Bearer"
        case NotAuthenticError():
            # RFC 9110 asks for a challenge. This one is true: the secret may come as a bearer token.
            headers["WWW-Authenticate"] = 'Bearer realm="callbacks"'
        case MethodNotAllowedError():
            headers["Allow"] = ", ".join(error.allowed)
        case NotAcceptableError():
            headers["Vary"] = "Accept"
        case RequestTimeoutError():
            headers["Connection"] = "close"
    return headers


def _members(error: ReceiverError) -> Mapping[str, object]:
    """Extension members of the problem document."""
    match error:
        case InvalidParametersError():
            return {"errors": [{name: _clean(text) for name, text in one.items()} for one in error.errors]}
        case GoneError():
            return error.extra
        case JasperError():
            return {"jasper_status": error.status}
        case _:
            return {}


def _respond(
    kind: Kind,
    detail: str,
    instance: str,
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> Response:
    body = msgspec.json.encode(_document(kind, detail, instance, members or {}))
    return Response(body, status_code=kind.status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def _document(kind: Kind, detail: str, instance: str, members: Mapping[str, object]) -> dict[str, object]:
    return {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": _clean(detail),
        "instance": instance,
        **members,
    }


def _clean(text: str) -> str:
    """A text without lone surrogates, which names in a request's JSON and words from Jasper may hold and UTF-8 cannot."""
    return text.encode(errors="replace").decode()
