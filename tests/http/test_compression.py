"""Answers are compressed for who asks for it, where it pays and tells nothing that is secret."""

import json

import httpx
import pytest

from app.compression import COMPRESSED_FROM
from tests.builders import an_entity, events_of
from tests.http.conftest import Reader, Receiver
from tests.http.dashboard import visiting
from tests.http.sse import EventSource

LARGE = json.dumps({"id": 1001, "text": "a description " * 500})
BY_ROUTE = "include_stale=true&entity_id=1001"


async def raw(reader: Reader, path: str, encodings: str) -> tuple[httpx.Response, bytes]:
    """An answer, and its body as it came over the wire."""
    async with reader.http.stream("GET", path, headers={"Accept-Encoding": encodings}) as response:
        assert response.status_code == 200
        return response, b"".join([chunk async for chunk in response.aiter_raw()])


@pytest.mark.parametrize("path", ["/v1/events", f"/v1/events?{BY_ROUTE}", "/v1/products", "/v1/products/1001"])
async def test_a_large_answer_is_compressed_for_who_accepts_that_and_says_the_same(reader: Reader, path: str) -> None:
    await an_entity(reader.engine, data=LARGE)
    plain, as_it_is = await raw(reader, path, "identity")
    packed, compressed = await raw(reader, path, "br, gzip")
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert "accept-encoding" in packed.headers["vary"].lower()
    assert "accept-encoding" in plain.headers["vary"].lower()
    assert int(packed.headers["content-length"]) == len(compressed) < len(as_it_is) / 5
    assert (await reader.get(path)).content == as_it_is


@pytest.mark.parametrize("encodings", ["gzip;q=0", "identity, gzip; q=0.000", "br, GZIP;Q=0"])
async def test_who_refuses_gzip_gets_none(reader: Reader, encodings: str) -> None:
    await an_entity(reader.engine, data=LARGE)
    response, body = await raw(reader, "/v1/events", encodings)
    assert "content-encoding" not in response.headers
    assert json.loads(body)


@pytest.mark.parametrize("encodings", ["gzip;q=0.5", "gzip;q=0.001", "br;q=0, gzip"])
async def test_who_likes_gzip_a_little_gets_it(reader: Reader, encodings: str) -> None:
    await an_entity(reader.engine, data=LARGE)
    response, _ = await raw(reader, "/v1/events", encodings)
    assert response.headers["content-encoding"] == "gzip"


async def test_a_small_answer_is_not(reader: Reader) -> None:
    await events_of(reader.engine, 2)
    response, body = await raw(reader, "/v1/events", "gzip")
    assert "content-encoding" not in response.headers
    assert len(body) < COMPRESSED_FROM


async def test_an_unchanged_entity_costs_nothing_whichever_way_it_came(reader: Reader) -> None:
    await an_entity(reader.engine, data=LARGE)
    response, _ = await raw(reader, "/v1/products/1001", "gzip")
    again = await reader.http.get("/v1/products/1001", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_a_stream_is_not_held_back_to_be_compressed(reader: Reader) -> None:
    await events_of(reader.engine, 1, data=LARGE)
    async with reader.http.stream("GET", "/v1/events/stream", headers={"Accept-Encoding": "gzip"}) as response:
        assert "content-encoding" not in response.headers
        source = EventSource(response)
        assert json.loads((await source.next()).data)["data"] == json.loads(LARGE)


async def test_a_page_of_the_dashboard_is_not_as_its_size_could_tell_the_token_of_its_forms(receiver: Receiver) -> None:
    for number in range(12):
        await receiver.callback({"event": "product.created", "data": {"id": number}})
    async with visiting(receiver) as visitor:
        await visitor.log_in()
        response = await visitor.http.get("/dashboard/deliveries", headers={"Accept-Encoding": "gzip"})
    assert response.status_code == 200
    assert len(response.content) > COMPRESSED_FROM
    assert "content-encoding" not in response.headers
