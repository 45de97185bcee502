"""HEAD, by which monitors probe: the answer of GET without its body."""

import asyncio

import httpx
import pytest

from app.feed import stream
from tests.builders import an_entity, events_of
from tests.http.conftest import ADMIN_KEY, Reader, Receiver
from tests.http.dashboard import visiting
from tests.http.wire import wire

CHANGES = {"date", "x-request-id"}
"""Headers that differ from one answer to the next."""


def told(answer: httpx.Response) -> tuple[int, list[tuple[str, str]]]:
    return answer.status_code, sorted(one for one in answer.headers.multi_items() if one[0] not in CHANGES)


@pytest.mark.parametrize(
    "path",
    [
        *("/healthz", "/readyz", "/openapi.json", "/docs", "/", "/dashboard/feed", "/nowhere"),
        *("/v1/events", "/v1/events?action=update", "/v1/events?after=0&limit=1", "/v1/events?after=9999&wait=0.1"),
        *(
            "/v1/events?colour=red",
            "/v1/events?limit=1000",
            "/v1/products",
            "/v1/products/1001",
            "/v1/products/nothing",
        ),
        *("/v1/deliveries", "/v1/webhooks", "/v1/rejections", "/v1/unproven", "/v1/reconciliations"),
        "/v1/consumers/search/parked",
    ],
)
async def test_head_is_answered_as_get_without_a_body(reader: Reader, path: str) -> None:
    await an_entity(reader.engine)
    await events_of(reader.engine, 30)
    await reader.http.put("/v1/consumers/search", json={})
    head, get = await reader.http.head(path), await reader.http.get(path)
    assert told(head) == told(get)
    assert "content-length" in head.headers
    assert "x-request-id" in head.headers


@pytest.mark.parametrize("path", ["/metrics", "/v1/consumers"])
async def test_what_is_of_another_length_each_time_is_there_for_head(reader: Reader, path: str) -> None:
    """Requests are counted, and how far a consumer is behind grows."""
    await events_of(reader.engine, 1)
    await reader.http.put("/v1/consumers/search", json={})
    head, get = await reader.http.head(path), await reader.http.get(path)
    assert (head.status_code, head.headers["content-type"]) == (200, get.headers["content-type"])


async def test_what_is_cached_may_be_validated_by_head(reader: Reader) -> None:
    await an_entity(reader.engine)
    tag = (await reader.http.head("/v1/products/1001")).headers["etag"]
    assert tag == (await reader.http.get("/v1/products/1001")).headers["etag"]
    unchanged = await reader.http.head("/v1/products/1001", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.headers["etag"]) == (304, tag)


async def test_no_byte_of_a_body_leaves_and_the_connection_goes_on(reader: Reader) -> None:
    await events_of(reader.engine, 30)
    paths = ("/healthz", "/v1/events", "/v1/events?action=update", "/v1/events/stream", "/v1/events?colour=red")
    async with wire(reader.http) as connection:
        for path in paths:
            head = f"HEAD {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
            await connection.send(head.encode() + b"Accept-Encoding: gzip\r\n\r\n")
        await connection.send(b"HEAD /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        heads = (await connection.rest()).split(b"\r\n\r\n")
    assert [head[:13] for head in heads] == [b"HTTP/1.1 200 "] * 4 + [b"HTTP/1.1 400 ", b"HTTP/1.1 200 ", b""]


async def test_a_stream_is_not_held_open_for_head(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_MOST_STREAMS", 1)
    async with asyncio.timeout(10), visiting(receiver) as visitor:
        await visitor.log_in()
        for http, path in 2 * ((receiver.http, "/v1/events/stream"), (visitor.http, "/dashboard/feed/stream")):
            while (answer := await http.head(path)).status_code == 503:  # the one before is just about to end
                await asyncio.sleep(0.01)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")


async def test_head_leases_no_page(reader: Reader) -> None:
    await events_of(reader.engine, 3)
    await reader.http.put("/v1/consumers/search", json={"start": "earliest"})
    page = "/v1/consumers/search/events?lease=60"
    head = await reader.http.head(page)
    assert (head.status_code, head.headers["allow"]) == (405, "GET")
    assert len((await reader.get(page)).json()["events"]) == 3


async def test_where_get_is_refused_head_is_told_the_same(receiver: Receiver) -> None:
    for path in ("/v1/consumers/search/ack", "/callbacks/products"):
        head = await receiver.http.head(path)
        assert (head.status_code, head.headers["allow"]) == (405, "POST")
    nobody = await receiver.http.head("/v1/events", headers={"Authorization": ""})
    assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
