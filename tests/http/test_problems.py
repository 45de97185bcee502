"""Every error leaves as a problem document, and none says more than it may."""

import importlib
import logging
import pkgutil
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import app
from app.errors import (
    DrainingError,
    GoneError,
    InvalidParametersError,
    JasperRefusedError,
    JasperUnavailableError,
    MethodNotAllowedError,
    NotAuthenticError,
    ReceiverError,
    RequestTimeoutError,
    SealingError,
)
from app.problems import KINDS, install, problem_response
from tests.http.conftest import Reader


def subclasses(error: type[ReceiverError]) -> Iterator[type[ReceiverError]]:
    for subclass in error.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def test_every_error_that_a_request_may_meet_has_its_place_in_the_table() -> None:
    for module in pkgutil.walk_packages(app.__path__, "app."):
        importlib.import_module(module.name)
    everyone = {ReceiverError, *subclasses(ReceiverError)}
    of_commands = {"app.demo", "app.workers"}
    assert {error for error in everyone if error.__module__ not in of_commands} == KINDS.keys()


def test_every_type_is_in_the_guide_for_readers_with_its_status() -> None:
    guide = (Path(__file__).parents[2] / "docs/reading.md").read_text()
    rows = [row for row in guide.splitlines() if row.startswith("| `/problems/")]
    for kind in KINDS.values():
        assert any(f"`{kind.type}`" in row and f"| {kind.status} |" in row for row in rows), kind.type
    documented = [found for row in rows for found in re.findall(r"`(/problems/[a-z-]+)`", row)]
    assert sorted(documented) == sorted({kind.type for kind in KINDS.values()})


def test_types_name_one_status_and_title_each() -> None:
    by_type = {kind.type: {other for other in KINDS.values() if other.type == kind.type} for kind in KINDS.values()}
    assert all(len(kinds) == 1 for kinds in by_type.values())


def answer(error: ReceiverError) -> tuple[int, dict[str, str], dict[str, Any]]:
    response = problem_response(error, "/v1/events")
    document = httpx.Response(200, content=bytes(response.body)).json()
    headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
    return response.status_code, headers, document


@pytest.mark.parametrize(
    ("error", "status", "headers", "members"),
    [
        (DrainingError("stopping", retry_after=7), 503, {"retry-after": "7"}, {}),
        (NotAuthenticError("no"), 401, {"www-authenticate": 'Bearer realm="callbacks"'}, {}),
        (MethodNotAllowedError("no", allowed=["POST", "PUT"]), 405, {"allow": "POST, PUT"}, {}),
        (RequestTimeoutError("slow"), 408, {"connection": "close"}, {}),
        (GoneError("gone", extra={"oldest_after": 17}), 410, {}, {"oldest_after": 17}),
        (JasperRefusedError("Jasper says: no", status=422), 502, {}, {"jasper_status": 422}),
        (JasperUnavailableError("down"), 502, {}, {"jasper_status": None}),
        (
            JasperUnavailableError("busy", status=429, retry_after=1.2),
            502,
            {"retry-after": "2"},
            {"jasper_status": 429},
        ),
        (
            InvalidParametersError([{"parameter": "limit", "detail": "too large"}]),
            400,
            {},
            {"errors": [{"parameter": "limit", "detail": "too large"}]},
        ),
    ],
)
def test_an_error_brings_its_headers_and_members(
    error: ReceiverError, status: int, headers: dict[str, str], members: dict[str, Any]
) -> None:
    kind = KINDS[type(error)]
    assert answer(error) == (
        status,
        headers,
        {"type": kind.type, "title": kind.title, "status": status, "detail": str(error), "instance": "/v1/events"}
        | members,
    )


def test_words_that_utf_8_cannot_hold_do_no_harm() -> None:
    assert answer(JasperRefusedError("bad \ud800", status=400))[2]["detail"] == "bad ?"
    wrong = InvalidParametersError([{"parameter": "\udfff", "detail": "unknown"}])
    assert answer(wrong)[2]["errors"] == [{"parameter": "?", "detail": "unknown"}]


def test_what_went_wrong_inside_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status, _, document = answer(SealingError("key number 3 is odd"))
    assert status == 500
    assert "odd" not in str(document)
    assert "odd" in caplog.text


class _Start(BaseModel, extra="forbid"):
    start: int


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A small application with the same answers to errors, and routes that fail in many ways."""
    application = FastAPI()
    install(application)

    @application.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the inner secret")

    @application.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout")

    @application.put("/body")
    async def body(given: _Start) -> None:
        del given

    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


async def test_an_unexpected_exception_is_a_500_without_its_words(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await http.get("/broken")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/internal-error"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "the inner secret" in caplog.text


async def test_what_the_framework_refuses_has_the_same_shape(http: httpx.AsyncClient) -> None:
    answers = {
        "teapot": await http.get("/teapot"),
        "method": await http.delete("/teapot"),
        "address": await http.get("/nowhere"),
        "no json": await http.put("/body", content=b"{", headers={"Content-Type": "application/json"}),
        "wrong": await http.put("/body", json={"start": "x", "end": 1}),
        "missing": await http.put("/body", content=b'{"\\ud800": 1}', headers={"Content-Type": "application/json"}),
    }
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "teapot": 418,
        "method": 405,
        "address": 404,
        "no json": 400,
        "wrong": 400,
        "missing": 400,
    }
    assert all(answer.headers["content-type"] == "application/problem+json" for answer in answers.values())
    assert answers["method"].headers["allow"] == "GET, HEAD"
    assert answers["teapot"].json()["detail"] == "short and stout"
    assert {error["parameter"] for error in answers["wrong"].json()["errors"]} == {"start", "end"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1", 404),
        ("GET", "/v1/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/product/1", 404),
        ("GET", "/v1/Products", 404),
        ("GET", "/v1/products/", 404),
        ("GET", "/v1/events/", 404),
        ("POST", "/v1/events", 405),
        ("DELETE", "/v1/products/1", 405),
        ("PUT", "/v1/deliveries/1", 404),
        ("PUT", "/v1/deliveries/01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10", 405),
    ],
)
async def test_unknown_addresses_and_methods(reader: Reader, method: str, path: str, status: int) -> None:
    problem = await reader.problem(status, path, method)
    assert problem["instance"] == path


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/events", "GET, HEAD"),
        ("/v1/consumers/search", "DELETE, GET, HEAD, PUT"),
        ("/v1/consumers/search/events", "GET"),
        ("/v1/consumers/search/ack", "POST"),
        ("/v1/deliveries/reprocess", "POST"),
        ("/v1/deliveries/01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e10", "GET, HEAD"),
        ("/v1/products/1001", "GET, HEAD"),
    ],
)
async def test_a_refused_method_is_told_every_one_that_the_address_takes(
    reader: Reader, path: str, allowed: str
) -> None:
    response = await reader.http.patch(path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("path", ["/v1/products/a%2Fb%20%C3%BC%00", "/v1/products/%ff%3Fx%23y", "//v1/events"])
async def test_the_instance_is_a_uri_reference_whatever_the_path(reader: Reader, path: str) -> None:
    instance = (await reader.problem(404, path))["instance"]
    assert instance.isascii()
    assert not set(instance) & set(' ?#\0"')
