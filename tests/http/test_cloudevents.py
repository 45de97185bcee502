"""Events as CloudEvents: read by the official library, negotiated by `Accept`, and the same events as ever."""

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from cloudevents.core.formats.json import JSONFormat
from jsonschema_rs import validator_for

from app.domain.values import COLLECTIONS, EntityType
from app.feed.cloudevents import BATCH, JSON, SINGLE, CloudEvent, CloudEventRecord, best_of
from tests.builders import NOW, an_entity, an_event, events_of
from tests.http.conftest import Reader

AS_BATCH = {"Accept": BATCH}


def read(batch: bytes) -> list[BaseCloudEvent]:
    """Each event of a batch as the library reads it; it has no reader for batches, which are arrays of events."""
    return [JSONFormat().read(None, json.dumps(one)) for one in json.loads(batch)]


def test_records_and_their_description_have_the_same_fields_in_the_same_order() -> None:
    assert CloudEventRecord.__struct_fields__ == tuple(CloudEvent.model_fields)


async def test_a_batch_is_what_the_official_library_expects(reader: Reader) -> None:
    row = await an_event(reader.engine, entity_id="ü/1", changed=["price"])
    response = await reader.get("/v1/events", headers=AS_BATCH)
    assert response.headers["content-type"] == BATCH
    [event] = read(response.content)
    assert event.get_specversion() == "1.0"
    assert event.get_id() == str(row["id"])
    assert event.get_type() == "product.updated"
    assert event.get_source() == "/v1/products"
    assert event.get_subject() == "ü/1"
    assert event.get_time() == NOW - timedelta(seconds=1)
    assert event.get_datacontenttype() == "application/json"
    assert event.get_extension("sequence") == f"{row['sequence']:019}"
    assert event.get_data() == (await reader.get("/v1/events")).json()["events"][0]


async def test_a_single_cloud_event_is_read_by_the_official_library_as_an_http_message(reader: Reader) -> None:
    row = await an_event(reader.engine)
    response = await reader.get(f"/v1/events/{row['id']}", headers={"Accept": SINGLE})
    event = from_structured_event(HTTPMessage(dict(response.headers), response.content))
    assert response.headers["content-type"] == SINGLE
    assert event.get_id() == str(row["id"])
    assert event.get_data() == (await reader.get(f"/v1/events/{row['id']}")).json()


async def test_attributes_have_names_and_values_that_the_specification_allows(reader: Reader) -> None:
    for entity_type in EntityType:
        await an_event(reader.engine, entity_type=entity_type, action="delete", data=None, delivery_id=None)
    batch = (await reader.get("/v1/events", headers=AS_BATCH)).json()
    assert [one["source"] for one in batch] == [f"/v1/{COLLECTIONS[entity_type]}" for entity_type in EntityType]
    for one in batch:
        assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in one)
        assert all(isinstance(value, str) and value for name, value in one.items() if name != "data")


async def test_the_time_is_that_of_the_reception_where_nothing_better_is_known(reader: Reader) -> None:
    await an_event(reader.engine, occurred_at=None)
    [event] = read((await reader.get("/v1/events", headers=AS_BATCH)).content)
    assert event.get_time() == NOW


async def test_sequences_sort_as_text(reader: Reader) -> None:
    for sequence in (9, 10, 2**63 - 1):
        await an_event(reader.engine, sequence=sequence)
    batch = (await reader.get("/v1/events", headers=AS_BATCH)).json()
    assert [one["sequence"] for one in batch] == sorted(one["sequence"] for one in batch)
    assert [int(one["sequence"]) for one in batch] == [9, 10, 2**63 - 1]


async def test_the_event_inside_the_envelope_is_byte_for_byte_that_of_the_page(reader: Reader) -> None:
    await an_event(reader.engine, data='{ "price":1.10,"big":1e400, "text":"\\u0000\\ud800"\n}')
    page = (await reader.get("/v1/events")).content.removeprefix(b'{"events":[').partition(b'],"after":')[0]
    assert (await reader.get("/v1/events", headers=AS_BATCH)).content.endswith(b'"data":' + page + b"}]")


async def test_a_batch_tells_the_position_to_go_on_from_also_past_what_a_filter_skipped(reader: Reader) -> None:
    rows = await events_of(reader.engine, 3, action="delete")
    last = await an_event(reader.engine)
    seen: list[str] = []
    response = await reader.get("/v1/events?action=delete&limit=2", headers=AS_BATCH)
    seen += [one["id"] for one in response.json()]
    assert response.headers["feed-position"] == str(rows[1]["sequence"])
    response = await reader.get(response.links["next"]["url"], headers=AS_BATCH)
    seen += [one["id"] for one in response.json()]
    assert seen == [str(row["id"]) for row in rows]
    assert "next" not in response.links
    assert response.headers["feed-position"] == str(last["sequence"])
    empty = await reader.get(f"/v1/events?after={last['sequence']}", headers=AS_BATCH)
    assert (empty.json(), empty.headers["feed-position"]) == ([], str(last["sequence"]))


async def test_the_history_of_an_entity_comes_as_a_batch_too(reader: Reader) -> None:
    row = await an_entity(reader.engine)
    response = await reader.get("/v1/products/1001/events", headers=AS_BATCH)
    assert [event.get_subject() for event in read(response.content)] == ["1001"]
    assert response.headers["feed-position"] == str(row["sequence"])


OFFERED = (JSON, BATCH)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        (",", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        (JSON, JSON),
        (BATCH, BATCH),
        (BATCH.upper(), BATCH),
        (f"{BATCH}; charset=UTF-8", BATCH),
        (f"{BATCH};charset=utf-8;Q=0.3, {JSON};q=0.2", BATCH),
        (f"{JSON}, {BATCH}", JSON),
        (f"{BATCH}, {JSON}", JSON),
        (f"{JSON};q=0.5, {BATCH}", BATCH),
        (f"{JSON};q=0.999, {BATCH} ; q=1.000", BATCH),
        (f"{BATCH}, */*;q=0.1", BATCH),
        (f"{BATCH};q=0.1, application/*;q=0.2", JSON),
        (f"{JSON};q=0, */*", BATCH),
        ("application/*;q=0, */*", None),
        (f"{JSON};q=0", None),
        (f"{BATCH};q=2, {JSON};q=0.1", JSON),
        (f"{BATCH};q=", None),
        ("text/html", None),
        ("text/event-stream", None),
        (SINGLE, None),
        ("application/*+json", None),
        ("*", None),
        (";;;,=,\x00", None),
    ],
)
def test_the_media_type_is_the_one_that_accept_likes_best(accept: str, chosen: str | None) -> None:
    assert best_of(OFFERED, accept) == chosen


async def test_what_is_negotiated_is_told_to_caches_and_a_wish_that_cannot_be_met_is_refused(reader: Reader) -> None:
    row = await an_entity(reader.engine)
    event = (await reader.get("/v1/events")).json()["events"][0]["id"]
    assert row["entity_id"] == "1001"
    for path, fitting in ((f"/v1/events/{event}", SINGLE), ("/v1/events", BATCH), ("/v1/products/1001/events", BATCH)):
        for accept in (JSON, fitting):
            assert (await reader.get(path, headers={"Accept": accept})).headers["vary"] == "Accept"
        assert (await reader.http.get(path, headers={"Accept": "text/html"})).headers["vary"] == "Accept"
        problem = await reader.problem(406, path, headers={"Accept": "text/html"})
        assert problem["type"] == "/problems/not-acceptable"
        assert fitting in problem["detail"]
    several = [("Accept", "text/html"), ("Accept", BATCH)]
    assert (await reader.http.get("/v1/events", headers=several)).headers["content-type"] == BATCH


async def test_a_wish_that_cannot_be_met_is_refused_before_anything_is_waited_for(reader: Reader) -> None:
    await reader.problem(406, "/v1/events?wait=60", headers={"Accept": "text/html"}, timeout=5)


async def test_answers_are_as_the_document_describes(reader: Reader) -> None:
    document: dict[str, Any] = (await reader.get("/openapi.json")).json()
    await an_event(reader.engine, occurred_at=None, delivery_id=None, data=None)
    row = await an_entity(reader.engine)
    event = (await reader.get("/v1/events")).json()["events"][0]["id"]
    assert row["sequence"] == 2
    for described, path, accept in (
        ("/v1/events", "/v1/events", BATCH),
        ("/v1/{collection}/{entity_id}/events", "/v1/products/1001/events", BATCH),
        ("/v1/events/{event_id}", f"/v1/events/{event}", SINGLE),
    ):
        responses = document["paths"][described]["get"]["responses"]
        assert "406" in responses
        schema = {"components": document["components"], **responses["200"]["content"][accept]["schema"]}
        answer = (await reader.get(path, headers={"Accept": accept})).json()
        assert answer
        validator_for(schema, validate_formats=True).validate(answer)
        items = schema.get("items", schema)
        assert all(items["properties"][name]["examples"] for name in items["required"] if name != "data")
