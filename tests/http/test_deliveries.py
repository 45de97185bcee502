"""Callbacks as they came: lists that stay small, single ones whole."""

import json
from base64 import b64decode

import pytest

from app.deliveries.schemas import (
    Delivery,
    DeliveryPage,
    DeliveryPageRecord,
    DeliveryRecord,
    DeliverySummary,
    DeliverySummaryRecord,
)
from tests.builders import a_delivery, an_event
from tests.http.conftest import Reader


def test_records_and_their_description_have_the_same_fields_in_the_same_order() -> None:
    assert DeliverySummaryRecord.__struct_fields__ == tuple(DeliverySummary.model_fields)
    assert DeliveryRecord.__struct_fields__ == tuple(Delivery.model_fields)
    assert DeliveryPageRecord.__struct_fields__ == tuple(DeliveryPage.model_fields)


async def test_a_list_tells_what_came_of_each_without_what_may_be_long(reader: Reader) -> None:
    event = await an_event(reader.engine)
    accepted = await a_delivery(reader.engine, event_sequence=event["sequence"])
    repeated = await a_delivery(
        reader.engine, status="duplicate", event_sequence=event["sequence"], duplicate_of=accepted["id"], reason="again"
    )
    strange = await a_delivery(reader.engine, status="quarantined", body=b"?", reason="no JSON")
    page = (await reader.get("/v1/deliveries")).json()
    DeliveryPage.model_validate(page)
    assert [list(item) for item in page["deliveries"]] == [list(DeliverySummaryRecord.__struct_fields__)] * 3
    assert [
        (item["id"], item["status"], item["event_id"], item["duplicate_of"], item["reason"], item["size"])
        for item in page["deliveries"]
    ] == [
        (str(accepted["id"]), "accepted", str(event["id"]), None, None, 12),
        (str(repeated["id"]), "duplicate", str(event["id"]), str(accepted["id"]), "again", 12),
        (str(strange["id"]), "quarantined", None, None, "no JSON", 1),
    ]


async def test_a_list_can_be_narrowed_to_one_outcome(reader: Reader) -> None:
    rows = {
        status: await a_delivery(reader.engine, status=status) for status in ("accepted", "duplicate", "quarantined")
    }
    for status, row in rows.items():
        page = (await reader.get(f"/v1/deliveries?status={status}")).json()
        assert [item["id"] for item in page["deliveries"]] == [str(row["id"])]


async def test_lists_page_by_id(reader: Reader) -> None:
    rows = [await a_delivery(reader.engine) for _ in range(3)]
    response = await reader.get("/v1/deliveries?limit=2&status=accepted")
    page = response.json()
    assert ([item["id"] for item in page["deliveries"]], page["has_more"]) == (
        [str(row["id"]) for row in rows[:2]],
        True,
    )
    assert page["after"] == str(rows[1]["id"])
    rest_response = await reader.get(response.links["next"]["url"])
    rest = rest_response.json()
    assert [item["id"] for item in rest["deliveries"]] == [str(rows[2]["id"])]
    assert (rest["after"], rest["has_more"], rest_response.links) == (str(rows[2]["id"]), False, {})
    end = (await reader.get(f"/v1/deliveries?after={rest['after']}")).json()
    assert end == {"deliveries": [], "after": rest["after"], "has_more": False}


async def test_without_any_delivery_there_is_no_position(reader: Reader) -> None:
    assert (await reader.get("/v1/deliveries")).json() == {"deliveries": [], "after": None, "has_more": False}


@pytest.mark.parametrize(
    "query", ["status=rejected", "status=accepted&status=duplicate", "after=1", "limit=0", "page=2"]
)
async def test_a_wrong_parameter_is_refused(reader: Reader, query: str) -> None:
    problem = await reader.problem(400, f"/v1/deliveries?{query}")
    assert problem["errors"][0]["parameter"] == query.partition("=")[0]


async def test_one_delivery_is_whole_though_its_data_is_kept_by_its_event(reader: Reader) -> None:
    data = '{"id": 1, "price": 1.10, "text": "\\u0000\\ud800 ü"}'
    before, after = b'{ "event": "product.updated",\n "data": ', b" }\n"
    event = await an_event(reader.engine, data=data)
    headers = [("host", "receiver.example.com"), ("x-secret", "[blanked]"), ("x-odd", "\xe9\t"), ("host", "again")]
    places = {"proof": "header:x-secret", "entity_id": "/data/id", "data": "/data"}
    row = await a_delivery(
        reader.engine,
        body=before + after,
        data_offset=len(before),
        event_sequence=event["sequence"],
        headers=headers,
        reading=json.dumps(places),
    )
    delivery = (await reader.get(f"/v1/deliveries/{row['id']}")).json()
    Delivery.model_validate(delivery)
    assert list(delivery) == list(Delivery.model_fields)
    assert (delivery["body"], delivery["body_encoding"]) == ((before + data.encode() + after).decode(), "utf-8")
    assert [tuple(header) for header in delivery["headers"]] == headers
    assert (delivery["reading"], delivery["event_id"]) == (places, str(event["id"]))


async def test_a_duplicate_shows_its_own_body(reader: Reader) -> None:
    event = await an_event(reader.engine, data='{"other": true}')
    row = await a_delivery(reader.engine, status="duplicate", body=b'{"mine": 1}', event_sequence=event["sequence"])
    assert (await reader.get(f"/v1/deliveries/{row['id']}")).json()["body"] == '{"mine": 1}'


async def test_a_body_that_is_no_utf_8_comes_as_base64(reader: Reader) -> None:
    body = b"\xff\x00\xfe not text"
    row = await a_delivery(reader.engine, status="quarantined", body=body)
    delivery = (await reader.get(f"/v1/deliveries/{row['id']}")).json()
    assert (b64decode(delivery["body"]), delivery["body_encoding"]) == (body, "base64")


@pytest.mark.parametrize("name", ["1", "01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11", "%00"])
async def test_a_delivery_that_is_not_there_is_404(reader: Reader, name: str) -> None:
    await reader.problem(404, f"/v1/deliveries/{name}")
