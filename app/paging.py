"""Query parameters, small bodies, pages: strict reading of what callers ask for, bounded pages, the way to the next one.

Every list pages by position (`after`), never by counting rows, so that a page costs the same wherever it begins.
Nothing that a caller sends is ignored or guessed: an unknown, repeated or half-right parameter is refused.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, get_origin
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from app.errors import BodyTooLargeError, InvalidParametersError, RequestTimeoutError
from app.problems import instance_of

MOST_ITEMS = 1000
DEFAULT_ITEMS = 100
LAST_POSITION = 2**63 - 1
LONGEST_WAIT = 60
LONGEST_LEASE = 3600
"""Seconds, both."""

MOST_BYTES = 16 * 1024 * 1024
"""A page ends early rather than grow much beyond this: items may have megabytes each."""

_MOST_BODY_BYTES = 64 * 1024
_SLOWEST_BODY = 10.0
"""Seconds a caller may take for its body: what is sent here is small, and a connection that drips holds memory."""

_WHOLE_NUMBER = re.compile(r"[0-9]{1,19}")
_SECONDS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")
# RFC 3339, section 5.6; seconds may be left out.
_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)",
    re.ASCII,
)


def _whole_number(value: object) -> object:
    if isinstance(value, str) and not _WHOLE_NUMBER.fullmatch(value):
        raise PydanticCustomError("whole_number", "must be a whole number, digits only")
    return value


def _seconds(value: object) -> object:
    if isinstance(value, str) and not _SECONDS.fullmatch(value):
        raise PydanticCustomError("seconds", "must be a number of seconds, such as 30 or 0.5")
    return value


def _flag(value: object) -> object:
    if isinstance(value, str):
        if value not in {"true", "false"}:
            raise PydanticCustomError("flag", "must be true or false")
        return value == "true"
    return value


def _moment(value: object) -> object:
    """A time with its zone, in UTC."""
    if not isinstance(value, str):
        return value
    if not _MOMENT.fullmatch(value):
        raise PydanticCustomError(
            "moment",
            "must be a time with its zone, such as 2026-11-23T10:00:00Z; the + of a zone is written %2B in an address",
        )
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise PydanticCustomError("moment", "there is no such time") from exc


def _point(value: object) -> object:
    """A position, where it is a whole number, else a time with its zone."""
    if not isinstance(value, str) or not _WHOLE_NUMBER.fullmatch(value):
        return _moment(value)
    if int(value) > LAST_POSITION:
        raise PydanticCustomError("position", f"must be at most {LAST_POSITION}, or a time with its zone")
    return int(value)


def is_storable(value: str) -> bool:
    """Whether Postgres can hold this text: it has neither NUL nor lone surrogates. What it cannot hold is not there."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _storable(value: str) -> str:
    if not is_storable(value):
        raise PydanticCustomError("storable", "holds a character that nothing here can hold (NUL)")
    return value


# Bounds stand before the validators: behind them they would hold too, but be missing from the OpenAPI document.
Position = Annotated[int, Field(ge=0, le=LAST_POSITION), BeforeValidator(_whole_number)]
"""A place in the feed: the sequence of the last event already seen; 0 is before the first."""

Limit = Annotated[int, Field(ge=1, le=MOST_ITEMS), BeforeValidator(_whole_number)]
Wait = Annotated[float, Field(ge=0, le=LONGEST_WAIT), BeforeValidator(_seconds)]
Lease = Annotated[int, Field(ge=1, le=LONGEST_LEASE), BeforeValidator(_whole_number)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Moment = Annotated[datetime, BeforeValidator(_moment)]
PointInTime = Annotated[Annotated[int, Field(ge=0, le=LAST_POSITION)] | datetime, BeforeValidator(_point)]
"""A position of the feed, or a time."""

SearchText = Annotated[str, AfterValidator(_storable), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]


class Parameters(BaseModel):
    """Base of what a route takes in its query. Unknown parameters are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(Parameters):
    """For lists that page: how many items at most."""

    limit: Limit = Field(DEFAULT_ITEMS, description="How many items at most")


class Body(BaseModel):
    """Base of what a route takes as its JSON body. Unknown members are refused, and nothing is taken for another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _take_whole_numbers(cls, given: object) -> object:
        """7.0 is a whole number in JSON Schema, and some clients write it so. No member here is a fraction."""
        if not isinstance(given, dict):
            return given
        return {name: int(value) if _is_exactly_whole(value) else value for name, value in given.items()}


def _is_exactly_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_EXACT


_LARGEST_EXACT = 2.0**53
"""Beyond it a float may stand for the whole number beside the one that was written."""

P = TypeVar("P", bound=Parameters)
B = TypeVar("B", bound=Body)


def read_query(model: type[P]) -> Callable[..., Awaitable[P]]:
    """The dependency that reads a query into `model`; a parameter that is given twice where one is meant is refused.

    In a route's signature it stands behind the key, so that who may not read learns nothing of the parameters.
    """
    repeatable = {name for name, field in model.model_fields.items() if get_origin(field.annotation) is tuple}

    async def read(request: Request, given: Annotated[model, Query()]) -> P:  # type: ignore[valid-type]  # for FastAPI
        names = [name for name, _ in request.query_params.multi_items()]
        repeated = sorted({name for name in names if names.count(name) > 1} - repeatable)
        if repeated:
            raise InvalidParametersError([{"parameter": name, "detail": "given more than once"} for name in repeated])
        return given

    return read


NoParameters = Annotated[Parameters, Depends(read_query(Parameters))]
"""For routes that take no query at all."""


def read_body(model: type[B]) -> Callable[[Request], Awaitable[B]]:
    """The dependency that reads a JSON body into `model`; no body at all is read as `{}`. `Content-Type` decides nothing.

    FastAPI itself would read a body of any size, before it has asked who calls. In a route's signature this one stands
    behind the key. Raises BodyTooLargeError and RequestTimeoutError besides what wrong parameters are.
    """

    async def read(request: Request) -> B:
        body = await read_small(request)
        try:
            return model.model_validate_json(body or b"{}")
        except ValidationError as exc:
            found = exc.errors(include_context=False, include_url=False)
            raise RequestValidationError([{**error, "loc": ("body", *error["loc"])} for error in found]) from exc

    return read


async def read_small(request: Request) -> bytes:
    """A body of a few kilobytes. Raises BodyTooLargeError and RequestTimeoutError."""
    body = bytearray()
    try:
        async with asyncio.timeout(_SLOWEST_BODY):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MOST_BODY_BYTES:
                    raise BodyTooLargeError(f"the body is larger than {_MOST_BODY_BYTES} bytes")
    except (TimeoutError, ClientDisconnect) as exc:
        raise RequestTimeoutError(f"the body did not arrive within {_SLOWEST_BODY:g} s") from exc
    return bytes(body)


def described_body(model: type[Body], *, required: bool = True) -> dict[str, Any]:
    """How a route that takes a body with `read_body` describes it in the OpenAPI document (FastAPI's `openapi_extra`).

    What the model refers to has to be in the document already, as part of some answer.
    """
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": required, "content": content}}


def fitting(sizes: Sequence[int], limit: int, most_bytes: int = MOST_BYTES) -> int:
    """How many of the items with these sizes (bytes) make a page: at most `limit`, and, beyond the first, `most_bytes`."""
    total = 0
    for count, size in enumerate(sizes[:limit]):
        total += size
        if count and total > most_bytes:
            return count
    return min(len(sizes), limit)


def next_link(request: Request, after: object) -> dict[str, str]:
    """The `Link` header to the page behind position `after`, with everything else as it was asked (RFC 8288).

    The address has no host in it, as a proxy in front may have another name than this process knows.
    """
    given = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    query = urlencode([*((name, value) for name, value in given if name != "after"), ("after", str(after))])
    return {"Link": f'<{raw_path(request.scope)}?{query}>; rel="next"'}


def link_header(example: str) -> dict[str, Any]:
    """How a route that answers with `next_link` describes it in the OpenAPI document; `example` is an address."""
    return {
        "Link": {
            "description": 'Where there is more: the address of the next page, `rel="next"`',
            "schema": {"type": "string"},
            "example": f'<{example}>; rel="next"',
        }
    }


def raw_path(scope: Scope) -> str:
    """The path of a request before percent-decoding, in which an escaped slash can still be told from a real one."""
    raw: bytes | None = scope.get("raw_path")  # optional in ASGI; every server in use gives it
    return instance_of(scope) if raw is None else quote(raw, safe="/%:@!$&'()*+,;=~")
