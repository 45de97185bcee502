"""The latest state of entities: lists to copy, single ones with their ETag, what became of deleted ones, histories."""

from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest

from app.entities.schemas import Entity, EntityPage, EntityPageRecord, EntityRecord
from app.feed.schemas import EventPage
from tests.builders import NOW, an_entity, an_event
from tests.http.conftest import Reader

ODD_IDS = [
    "a/b",
    "a/events",
    "events",
    "a/",
    "/a",
    "a%2Fb",
    "100%",
    "a b+c",
    "ü",
    "..",
    "a?b#c",
    "a\nb",
    "a\n",
    "\N{OX}",
    "a;b=c&d",
    "'\"",
    "x" * 2000,
]


def path_of(entity_id: str) -> str:
    """Dots are escaped too, as clients take `..` for a step upwards."""
    return f"/v1/products/{quote(entity_id, safe='').replace('.', '%2E')}"


def ids(page: dict[str, Any]) -> list[str]:
    return [item["entity_id"] for item in page["items"]]


def test_records_and_their_description_have_the_same_fields_in_the_same_order() -> None:
    assert EntityRecord.__struct_fields__ == tuple(Entity.model_fields)
    assert EntityPageRecord.__struct_fields__ == tuple(EntityPage.model_fields)


async def test_an_entity_has_the_fields_of_the_contract_in_their_order(reader: Reader) -> None:
    row = await an_entity(reader.engine, version=3, source_updated_at=NOW - timedelta(hours=1))
    response = await reader.get("/v1/products/1001")
    assert list(response.json().items()) == [
        ("entity_type", "product"),
        ("entity_id", "1001"),
        ("data", {"id": 1001}),
        ("version", 3),
        ("sequence", row["sequence"]),
        ("created_at", "2026-11-23T10:00:00.250000Z"),
        ("updated_at", "2026-11-23T10:00:00.250000Z"),
        ("source_updated_at", "2026-11-23T09:00:00.250000Z"),
        ("deleted_at", None),
    ]
    page = (await reader.get("/v1/products")).json()
    assert page == {"items": [response.json()], "after": None, "has_more": False}
    EntityPage.model_validate(page)


async def test_data_comes_back_byte_for_byte(reader: Reader) -> None:
    data = '{ "price":1.10,"big":1e400, "text":"\\u0000\\ud800" }'
    await an_entity(reader.engine, data=data)
    for path in ("/v1/products", "/v1/products/1001"):
        assert b'"data":' + data.encode() in (await reader.get(path)).content


async def test_an_entity_that_never_came_with_data_has_null(reader: Reader) -> None:
    await an_entity(reader.engine, data=None)
    assert (await reader.get("/v1/products/1001")).json()["data"] is None
    assert (await reader.get("/v1/products")).json()["items"][0]["data"] is None


async def test_an_event_without_data_leaves_the_data_as_it_was(reader: Reader) -> None:
    before = await an_entity(reader.engine, data='{"price": 1}')
    await an_entity(reader.engine, data=None, version=2, data_sequence=before["sequence"])
    entity = (await reader.get("/v1/products/1001")).json()
    assert (entity["data"], entity["version"]) == ({"price": 1}, 2)


async def test_every_collection_holds_its_own_type(reader: Reader) -> None:
    collections = {
        "products": "product",
        "categories": "category",
        "brands": "brand",
        "concrete-entities": "concrete_entity",
    }
    for entity_type in collections.values():
        await an_entity(reader.engine, entity_type=entity_type, entity_id=f"a {entity_type}")
    for collection, entity_type in collections.items():
        assert ids((await reader.get(f"/v1/{collection}")).json()) == [f"a {entity_type}"]


async def test_pages_go_through_all_ids_byte_by_byte(reader: Reader) -> None:
    for entity_id in ("b", "10", "9", "ä", "B", "a/c"):
        await an_entity(reader.engine, entity_id=entity_id)
    seen: list[str] = []
    path: str | None = "/v1/products?limit=2"
    while path:
        response = await reader.get(path)
        page = response.json()
        seen += ids(page)
        assert (page["after"] is not None) is page["has_more"] is ("next" in response.links)
        assert page["after"] in {None, ids(page)[-1]}
        path = response.links["next"]["url"] if page["has_more"] else None
    assert seen == ["10", "9", "B", "a/c", "b", "ä"]


async def test_the_first_page_tells_where_to_follow_the_feed(reader: Reader) -> None:
    assert (await reader.get("/v1/products")).headers["feed-position"] == "0"
    await an_entity(reader.engine)
    last = await an_event(reader.engine, entity_type="brand")
    assert (await reader.get("/v1/products")).headers["feed-position"] == str(last["sequence"])


async def test_deleted_ones_are_listed_only_when_asked_for(reader: Reader) -> None:
    await an_entity(reader.engine, entity_id="1")
    await an_entity(reader.engine, entity_id="2", deleted_at=NOW)
    assert ids((await reader.get("/v1/products")).json()) == ["1"]
    assert ids((await reader.get("/v1/products?include_deleted=false")).json()) == ["1"]
    page = (await reader.get("/v1/products?include_deleted=true")).json()
    assert [(item["entity_id"], item["deleted_at"] is None) for item in page["items"]] == [("1", True), ("2", False)]


async def test_updated_since_is_about_when_it_changed_here(reader: Reader) -> None:
    await an_entity(reader.engine, entity_id="1", source_updated_at=NOW + timedelta(days=1))
    await an_entity(reader.engine, entity_id="2", updated_at=NOW + timedelta(microseconds=1))
    page = (await reader.get("/v1/products?updated_since=2026-11-23T10:00:00.250001Z")).json()
    assert ids(page) == ["2"]
    page = (await reader.get("/v1/products?updated_since=2026-11-23T11:00:00.25%2B01:00")).json()
    assert ids(page) == ["1", "2"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "after=a%00b",
        "after=1&after=2",
        "include_deleted=yes",
        "updated_since=2026-11-23",
        "as_of=1",
        "entity_type=product",
        "wait=1",
    ],
)
async def test_a_wrong_parameter_of_a_list_is_refused(reader: Reader, query: str) -> None:
    problem = await reader.problem(400, f"/v1/products?{query}")
    assert problem["errors"][0]["parameter"] == query.partition("=")[0]


@pytest.mark.parametrize("path", ["/v1/products/1001?until=1", "/v1/products/1001/events?entity_type=product"])
async def test_an_unknown_parameter_of_one_entity_is_refused(reader: Reader, path: str) -> None:
    await an_entity(reader.engine)
    await reader.problem(400, path)


async def test_if_none_match_answers_304_without_a_body(reader: Reader) -> None:
    row = await an_entity(reader.engine)
    etag = (await reader.get("/v1/products/1001")).headers["etag"]
    assert etag == f'"{row["sequence"]}"'
    for given in (etag, f"W/{etag}", f'"other", {etag}', f'W/"x",W/{etag}', "*", " * "):
        response = await reader.http.get("/v1/products/1001", headers={"If-None-Match": given.strip()})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    for given in ('"other"', etag.strip('"'), f'"{etag}"', '"*"', ""):
        await reader.get("/v1/products/1001", headers={"If-None-Match": given})
    twice = [("If-None-Match", '"other"'), ("If-None-Match", etag)]
    assert (await reader.http.get("/v1/products/1001", headers=twice)).status_code == 304


async def test_the_etag_changes_with_the_state(reader: Reader) -> None:
    await an_entity(reader.engine)
    etag = (await reader.get("/v1/products/1001")).headers["etag"]
    await an_entity(reader.engine, version=2)
    response = await reader.get("/v1/products/1001", headers={"If-None-Match": etag})
    assert response.headers["etag"] != etag


async def test_a_deleted_entity_is_gone_and_its_last_state_is_told(reader: Reader) -> None:
    """Whatever `If-None-Match` says: a condition counts only where the answer would have been a success."""
    row = await an_entity(reader.engine, data='{"price": 1.10}', deleted_at=NOW)
    problem = await reader.problem(410, "/v1/products/1001", headers={"If-None-Match": f'"{row["sequence"]}"'})
    assert problem["type"] == "/problems/gone"
    assert problem["entity"]["deleted_at"] == "2026-11-23T10:00:00.250000Z"
    Entity.model_validate(problem["entity"])
    assert '"data":{"price": 1.10}' in (await reader.http.get("/v1/products/1001")).text


async def two_states(reader: Reader) -> tuple[int, int]:
    """A product at two prices, then deleted; the sequences of the prices."""
    first = await an_entity(reader.engine, data='{"price": 1.10}')
    second = await an_event(
        reader.engine, data='{"price": 2}', entity_version=2, received_at=NOW + timedelta(minutes=1)
    )
    await an_event(
        reader.engine,
        action="delete",
        data=None,
        entity_version=3,
        entity_data_sequence=second["sequence"],
        received_at=NOW + timedelta(minutes=2),
    )
    return first["sequence"], second["sequence"]


async def test_an_entity_can_be_had_as_it_was_at_a_position_or_a_time(reader: Reader) -> None:
    first, second = await two_states(reader)
    points = {
        str(first): (1, "1.10"),
        str(second): (2, "2"),
        "2026-11-23T10:00:00.25Z": (1, "1.10"),
        "2026-11-23T10:01:59%2B00:00": (2, "2"),
    }
    for point, (version, price) in points.items():
        response = await reader.get(f"/v1/products/1001?as_of={point}")
        entity = response.json()
        assert (entity["version"], entity["deleted_at"]) == (version, None)
        assert f'"data":{{"price": {price}}}' in response.text
        assert response.headers["etag"] == f'"{entity["sequence"]}"'
        Entity.model_validate(entity)
        unchanged = {"If-None-Match": response.headers["etag"]}
        assert (await reader.http.get(f"/v1/products/1001?as_of={point}", headers=unchanged)).status_code == 304


async def test_an_entity_that_was_deleted_then_is_gone_and_one_not_seen_by_then_is_404(reader: Reader) -> None:
    first, second = await two_states(reader)
    for point in (second + 1, second + 1_000, 2**63 - 1, "2026-11-23T10:02:00.25Z", "2999-01-01T00:00:00Z"):
        gone = await reader.problem(410, f"/v1/products/1001?as_of={point}")
        assert (gone["entity"]["version"], gone["entity"]["data"]) == (3, {"price": 2})
    for point in (first - 1, 0, "2026-11-23T10:00:00Z"):
        await reader.problem(404, f"/v1/products/1001?as_of={point}")
    await reader.problem(404, "/v1/products/1002?as_of=1")


@pytest.mark.parametrize("point", ["", "-1", "1.5", "now", "2026-11-23", "2026-11-23T10:00:00", "9" * 19, "9" * 25])
async def test_a_point_that_is_neither_a_position_nor_a_time_is_refused_in_words(reader: Reader, point: str) -> None:
    await an_entity(reader.engine)
    problem = await reader.problem(400, f"/v1/products/1001?as_of={point}")
    assert [error["parameter"] for error in problem["errors"]] == ["as_of"]
    assert "time with its zone" in problem["detail"]


async def test_the_etag_changes_where_a_late_event_completed_the_state(reader: Reader) -> None:
    row = await an_entity(reader.engine, data=None)
    late = await an_event(reader.engine, stale=True)
    await an_entity(reader.engine, data=None, sequence=row["sequence"], data_sequence=late["sequence"])
    response = await reader.get("/v1/products/1001", headers={"If-None-Match": f'"{row["sequence"]}"'})
    assert response.headers["etag"] == f'"{late["sequence"]}"'


@pytest.mark.parametrize("entity_id", ["1002", "%00", "a%00b", "%ff", "%ED%A0%80", "1001%2F"])
async def test_an_entity_never_seen_is_404(reader: Reader, entity_id: str) -> None:
    await an_entity(reader.engine)
    await an_entity(reader.engine, entity_type="brand", entity_id="1002")
    for path in (f"/v1/products/{entity_id}", f"/v1/products/{entity_id}/events"):
        assert (await reader.problem(404, path))["type"] == "/problems/not-found"


async def test_every_id_can_be_reached_with_its_history(reader: Reader) -> None:
    for entity_id in ODD_IDS:
        await an_entity(reader.engine, entity_id=entity_id)
    found = [(await reader.get(path_of(entity_id))).json()["entity_id"] for entity_id in ODD_IDS]
    assert found == ODD_IDS
    histories = [(await reader.get(f"{path_of(entity_id)}/events")).json()["events"] for entity_id in ODD_IDS]
    assert [[event["entity_id"] for event in history] for history in histories] == [[one] for one in ODD_IDS]


async def test_a_slash_that_is_not_escaped_is_taken_for_part_of_the_id(reader: Reader) -> None:
    await an_entity(reader.engine, entity_id="a/b")
    assert (await reader.get("/v1/products/a/b")).json()["entity_id"] == "a/b"
    assert len((await reader.get("/v1/products/a/b/%65vents")).json()["events"]) == 1


async def test_the_history_tells_all_of_one_entity_oldest_first_stale_ones_included(reader: Reader) -> None:
    rows = [await an_event(reader.engine, stale=stale) for stale in (False, True, False)]
    last = await an_entity(reader.engine, deleted_at=NOW)
    await an_event(reader.engine, entity_type="brand")
    newest = await an_event(reader.engine, entity_id="1002")
    page = (await reader.get("/v1/products/1001/events")).json()
    assert [event["sequence"] for event in page["events"]] == [row["sequence"] for row in (*rows, last)]
    assert [event["stale"] for event in page["events"]] == [False, True, False, False]
    assert (page["after"], page["has_more"]) == (newest["sequence"], False)
    EventPage.model_validate(page)


@pytest.mark.parametrize("entity_id", ["1001", "a/b", ".."])
async def test_the_history_pages_like_the_feed(reader: Reader, entity_id: str) -> None:
    """The address of the next page keeps the id escaped as it was given."""
    await an_entity(reader.engine, entity_id=entity_id)
    await an_event(reader.engine, entity_id=entity_id)
    response = await reader.get(f"{path_of(entity_id)}/events?limit=1")
    page = response.json()
    assert (page["has_more"], page["after"]) == (True, page["events"][0]["sequence"])
    assert response.links["next"]["url"].startswith(f"{path_of(entity_id)}/events?")
    rest = (await reader.get(response.links["next"]["url"])).json()
    assert (len(rest["events"]), rest["has_more"]) == (1, False)
