"""The plain page and the route that it is a short cut of: nobody can tell by which of both an answer came."""

from typing import Any

import httpx
import pytest

from app.access.keys import Scope, create_key
from app.feed.plain_page import plain_page
from tests.builders import NOW, events_of
from tests.http.conftest import Reader

LONG_WAY = {"Accept": "application/json;q=0.9"}
"""Says the same as no `Accept` at all, in a way that the short cut leaves to the route."""

QUERIES = [
    *("", "after=2", "limit=2", "after=1&limit=2", "limit=2&after=1", "after=9999", "wait=0", "include_stale=true"),
    *("after=1&wait=0.05", "after=7&wait=0.05", "limit=2&include_stale=true&after=0&wait=5"),
    *("after=", "after=x", "after=-1", "after=9223372036854775808", "limit=0", "limit=1001", "wait=61", "colour=red"),
    *(
        "after=1&after=2",
        "limit=2&limit=2",
        "after=1&",
        "&after=1",
        "after=%31",
        "after=1&colour=red",
        "include_stale=1",
    ),
    *("entity_type=product", "after=1&action=update", "changed=price"),
]


def asked(
    query: str, *, method: str = "GET", accept: str | None = None, path: str = "/v1/events", body: bytes | None = None
) -> dict[str, Any]:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    headers += [] if body is None else [(body, b"chunked" if body == b"transfer-encoding" else b"2")]
    return {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}


def told(answer: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All of an answer but when and under which number it was given."""
    headers = [(name, value) for name, value in answer.headers.multi_items() if name not in {"date", "x-request-id"}]
    return answer.status_code, answer.content, sorted(headers)


@pytest.mark.parametrize("query", ["", "after=17", "limit=5&after=17", "after=17&wait=30", "include_stale=true"])
@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
def test_a_position_and_a_size_are_a_plain_page(query: str, accept: str | None) -> None:
    assert plain_page(asked(query, accept=accept)) is not None


@pytest.mark.parametrize(
    "scope",
    [
        *(asked(query) for query in ("entity_id=1", "after=x", "after=1&after=2", "colour=red", "limit=0")),
        asked("", accept="application/cloudevents-batch+json"),
        asked("", accept="text/html"),
        asked("", method="HEAD"),
        asked("", method="POST"),
        *(asked("", body=header) for header in (b"content-length", b"transfer-encoding")),
        asked("", path="/v1/events/"),
        asked("", path="/v1/products"),
        {"type": "lifespan"},
    ],
)
def test_everything_else_is_left_to_the_routes(scope: dict[str, Any]) -> None:
    assert plain_page(scope) is None


async def test_the_answer_is_the_same_by_either_way(reader: Reader) -> None:
    await events_of(reader.engine, 3)
    await events_of(reader.engine, 1, stale=True)
    await events_of(reader.engine, 3)
    for query in QUERIES:
        short = await reader.http.get(f"/v1/events?{query}")
        long = await reader.http.get(f"/v1/events?{query}", headers=LONG_WAY)
        assert told(short) == told(long), query


async def test_a_long_answer_is_compressed_in_the_same_way(reader: Reader) -> None:
    await events_of(reader.engine, 50)
    for accepted in ("gzip", "gzip;q=0", "identity"):
        short = await reader.http.get("/v1/events", headers={"Accept-Encoding": accepted})
        long = await reader.http.get("/v1/events", headers={"Accept-Encoding": accepted} | LONG_WAY)
        assert told(short) == told(long)
        assert (short.headers.get("content-encoding") == "gzip") == (accepted == "gzip")


async def test_who_may_not_read_is_refused_in_the_same_way(reader: Reader) -> None:
    _, writer_key = await create_key(reader.engine, "writer", [Scope.WRITE], now=NOW)
    for authorization in ("", "Bearer wrong", "Basic d2hv", "bearer", f"Bearer {writer_key}"):
        short = await reader.http.get("/v1/events", headers={"Authorization": authorization})
        long = await reader.http.get("/v1/events", headers={"Authorization": authorization} | LONG_WAY)
        assert told(short) == told(long), authorization
        assert short.status_code in {401, 403}


async def test_who_asks_wrongly_without_a_key_learns_nothing_of_the_parameters(reader: Reader) -> None:
    nobody = {"Authorization": "Bearer wrong"}
    assert (await reader.http.get("/v1/events?colour=red", headers=nobody)).status_code == 401
