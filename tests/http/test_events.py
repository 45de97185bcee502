"""`GET /v1/events`: pages that miss nothing, filters, waiting, and JSON that comes back as it came."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from starlette.requests import Request
from starlette.types import Message

from app.db.engine import Lookups
from app.db.wakeup import Wakeup
from app.domain.values import Action
from app.feed.filters import Filters
from app.feed.schemas import Event, EventPage, EventPageRecord, EventRecord
from app.feed.waiting import page_when_there
from app.paging import MOST_BYTES, fitting
from tests.builders import NOW, an_event, events_of
from tests.http.conftest import Reader


async def sequences(reader: Reader, **params: Any) -> list[int]:
    page = (await reader.get("/v1/events", params)).json()
    return [event["sequence"] for event in page["events"]]


async def test_an_event_has_the_fields_of_the_contract_in_their_order(reader: Reader) -> None:
    row = await an_event(
        reader.engine,
        data='{"price": 49.0}',
        changed=["price"],
        changes='[{"op": "replace", "path": "/price", "from": 52.0, "to": 49.0}]',
    )
    [event] = (await reader.get("/v1/events")).json()["events"]
    assert list(event.items()) == [
        ("sequence", row["sequence"]),
        ("id", str(row["id"])),
        ("type", "product.updated"),
        ("entity_type", "product"),
        ("action", "update"),
        ("entity_id", "1001"),
        ("occurred_at", "2026-11-23T09:59:59.250000Z"),
        ("received_at", "2026-11-23T10:00:00.250000Z"),
        ("source", "webhook"),
        ("delivery_id", str(row["delivery_id"])),
        ("action_inferred", False),
        ("stale", False),
        ("data", {"price": 49.0}),
        ("changed", ["price"]),
        ("changes", [{"op": "replace", "path": "/price", "from": 52.0, "to": 49.0}]),
    ]
    single = await reader.get(f"/v1/events/{row['id']}")
    assert single.json() == event
    Event.model_validate(event)


def test_records_and_their_description_have_the_same_fields_in_the_same_order() -> None:
    assert EventRecord.__struct_fields__ == tuple(Event.model_fields)
    assert EventPageRecord.__struct_fields__ == tuple(EventPage.model_fields)


@pytest.mark.parametrize(
    ("action", "word"), [(Action.CREATE, "created"), (Action.UPDATE, "updated"), (Action.DELETE, "deleted")]
)
async def test_the_type_names_what_happened(reader: Reader, action: Action, word: str) -> None:
    await an_event(reader.engine, entity_type="concrete_entity", action=action)
    [event] = (await reader.get("/v1/events")).json()["events"]
    assert event["type"] == f"concrete_entity.{word}"


async def test_data_and_changes_come_back_byte_for_byte(reader: Reader) -> None:
    """Numbers to the last digit, escapes that no string can hold, white space: nothing is parsed on the way."""
    data = '{ "price":1.10,"big":1e400, "text":"\\u0000\\ud800", "digits":' + "7" * 64 + ',"price" : "ü" }'
    changes = '[{"op":"add","path":"/x","to":1.10 }]'
    row = await an_event(reader.engine, data=data, changes=changes)
    for path in ("/v1/events", f"/v1/events/{row['id']}"):
        content = (await reader.get(path)).content
        assert b'"data":' + data.encode() in content
        assert b'"changes":' + changes.encode() in content


async def test_an_event_without_data_says_null(reader: Reader) -> None:
    await an_event(reader.engine, data=None, occurred_at=None, delivery_id=None)
    [event] = (await reader.get("/v1/events")).json()["events"]
    assert (event["data"], event["occurred_at"], event["delivery_id"]) == (None, None, None)


async def test_pages_follow_each_other_without_gap_or_repetition(reader: Reader) -> None:
    rows = await events_of(reader.engine, 5)
    seen: list[int] = []
    path: str | None = "/v1/events?limit=2&action=update"
    more: list[bool] = []
    while path:
        response = await reader.get(path)
        page = response.json()
        seen += [event["sequence"] for event in page["events"]]
        more.append(page["has_more"])
        path = response.links["next"]["url"] if page["has_more"] else None
        assert ("next" in response.links) is page["has_more"]
    assert seen == [row["sequence"] for row in rows]
    assert more == [True, True, False]


async def test_a_page_that_is_just_full_does_not_promise_more(reader: Reader) -> None:
    rows = await events_of(reader.engine, 2)
    page = (await reader.get("/v1/events?limit=2")).json()
    assert (page["has_more"], page["after"]) == (False, rows[-1]["sequence"])


@pytest.mark.parametrize(
    "query", ["entity_id=1001&entity_id=1001", "entity_id=1001&entity_type=product&entity_type=product"]
)
async def test_a_value_that_is_given_twice_counts_once(reader: Reader, query: str) -> None:
    await an_event(reader.engine, entity_id="1001")
    page = (await reader.get(f"/v1/events?limit=1&{query}")).json()
    assert (len(page["events"]), page["has_more"]) == (1, False)


async def test_after_stands_behind_what_a_filter_skipped(reader: Reader) -> None:
    wanted = await an_event(reader.engine, action="delete")
    last = (await events_of(reader.engine, 3))[-1]
    page = (await reader.get("/v1/events?action=delete")).json()
    assert [event["sequence"] for event in page["events"]] == [wanted["sequence"]]
    assert (page["after"], page["has_more"]) == (last["sequence"], False)
    full = (await reader.get("/v1/events?action=update&limit=1")).json()
    assert full["after"] == full["events"][-1]["sequence"]


async def test_an_empty_feed_is_at_position_0(reader: Reader) -> None:
    assert (await reader.get("/v1/events")).json() == {"events": [], "after": 0, "has_more": False}


async def test_a_position_beyond_the_head_is_kept(reader: Reader) -> None:
    await an_event(reader.engine)
    page = (await reader.get("/v1/events?after=9223372036854775807")).json()
    assert page == {"events": [], "after": 9223372036854775807, "has_more": False}


async def test_every_filter_keeps_what_it_names_and_several_values_mean_any_of_them(reader: Reader) -> None:
    one = await an_event(reader.engine, entity_id="1", action="create")
    two = await an_event(reader.engine, entity_id="2", changed=["price", "stock"], received_at=NOW + timedelta(hours=1))
    brand = await an_event(reader.engine, entity_type="brand", entity_id="2", received_at=NOW + timedelta(hours=2))
    stale = await an_event(reader.engine, entity_id="3", stale=True)
    names = {row["sequence"]: name for row, name in zip([one, two, brand, stale], ["1", "2", "b", "s"], strict=True)}
    expected = {
        "": "12b",
        "entity_type=product": "12",
        "entity_type=product&entity_type=brand": "12b",
        "entity_id=2": "2b",
        "entity_id=1&entity_id=2": "12b",
        "entity_id=2&entity_type=brand": "b",
        "entity_id=2&entity_type=category": "",
        "entity_id=2&entity_id=2": "2b",
        "action=create": "1",
        "action=create&action=update": "12b",
        "changed=stock": "2",
        "changed=name&changed=price": "2",
        "changed=name": "",
        "include_stale=true": "12bs",
        "include_stale=true&entity_id=3": "s",
        "entity_id=3": "",
        "since=2026-11-23T11:00:00.250Z": "2b",
        "until=2026-11-23T11:00:00.250Z": "1",
        "since=2026-11-23T12:00:00.25%2B01:00&until=2026-11-23T12:00:00.25Z": "2",
    }
    found = {}
    for query in expected:
        page = (await reader.get(f"/v1/events?{query}")).json()
        found[query] = "".join(names[event["sequence"]] for event in page["events"])
    assert found == expected


def test_every_filter_is_in_the_guide_for_readers() -> None:
    guide = (Path(__file__).parents[2] / "docs/reading.md").read_text()
    assert [name for name in Filters.model_fields if f"`{name}" not in guide] == []


async def test_the_history_of_many_entities_is_merged_in_order(reader: Reader) -> None:
    rows = [await an_event(reader.engine, entity_id=str(number % 3)) for number in range(9)]
    wanted = [row["sequence"] for row in rows if row["entity_id"] != "1"]
    page = (await reader.get("/v1/events?entity_id=0&entity_id=2&limit=4")).json()
    assert [event["sequence"] for event in page["events"]] == wanted[:4]
    assert page["has_more"] is True
    assert await sequences(reader, entity_id=["0", "2"], after=page["after"]) == wanted[4:]


async def test_a_page_ends_early_rather_than_grow_huge(reader: Reader) -> None:
    """Events of nine megabytes each come one at a time, and none is skipped."""
    rows = await events_of(reader.engine, 2, data=json.dumps("x" * 9_000_000))
    page = (await reader.get("/v1/events")).json()
    assert (len(page["events"]), page["has_more"], page["after"]) == (1, True, rows[0]["sequence"])
    assert await sequences(reader, after=page["after"]) == [rows[1]["sequence"]]


@pytest.mark.parametrize(
    ("sizes", "limit", "count"),
    [
        ([], 10, 0),
        ([1, 1, 1], 2, 2),
        ([1, 1, 1], 3, 3),
        ([MOST_BYTES + 1, 1], 10, 1),
        ([1, MOST_BYTES], 10, 1),
        ([1, MOST_BYTES - 1, 1], 10, 2),
    ],
)
def test_a_page_has_an_item_however_large_and_then_only_what_fits(sizes: list[int], limit: int, count: int) -> None:
    assert fitting(sizes, limit) == count


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("after=-1", "after"),
        ("after=9223372036854775808", "after"),
        ("after=" + "9" * 30, "after"),
        ("after=1_0", "after"),
        ("after=%2B1", "after"),
        ("after=1.0", "after"),
        ("after=", "after"),
        ("after=%D9%A3", "after"),  # an Arabic digit
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=1&limit=2", "limit"),
        ("wait=61", "wait"),
        ("wait=-1", "wait"),
        ("wait=nan", "wait"),
        ("wait=inf", "wait"),
        ("entity_type=products", "entity_type.0"),
        ("action=updated", "action.0"),
        ("entity_id=", "entity_id.0"),
        ("entity_id=a%00b", "entity_id.0"),
        ("changed=%00", "changed.0"),
        ("&".join(f"entity_id={number}" for number in range(101)), "entity_id"),
        ("since=2026-11-23", "since"),
        ("since=2026-11-23T10:00:00", "since"),
        ("since=2026-11-23T10:00:00+01:00", "since"),  # the + is a space
        ("since=2026-02-30T10:00:00Z", "since"),
        ("since=0001-01-01T00:00:00%2B12:00", "since"),
        ("since=1763892000", "since"),
        ("until=now", "until"),
        ("since=2026-11-23T10:00:00Z&since=2026-11-23T10:00:00Z", "since"),
        ("include_stale=1", "include_stale"),
        ("include_stale=True", "include_stale"),
        ("entity=product", "entity"),
        ("as_of=3", "as_of"),
        ("entity_ids[]=1", "entity_ids[]"),
    ],
)
async def test_a_wrong_parameter_is_refused_by_name(reader: Reader, query: str, parameter: str) -> None:
    problem = await reader.problem(400, f"/v1/events?{query}")
    assert problem["type"] == "/problems/invalid-parameters"
    assert parameter in [error["parameter"] for error in problem["errors"]]
    assert all(error["detail"] for error in problem["errors"])


@pytest.mark.parametrize("value", ["%ff%fe", "%ed%a0%80", "%F0%9F%A6%86", "%27%3B--", "%25"])
async def test_any_text_may_be_looked_for(reader: Reader, value: str) -> None:
    """Bytes that are no UTF-8, surrogates, emoji and quotes find nothing, and break nothing."""
    await an_event(reader.engine)
    assert (await reader.get(f"/v1/events?entity_id={value}&changed={value}")).json()["events"] == []


@pytest.mark.parametrize("name", ["unknown", "not-a-uuid", "01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11", "%00", "a/b"])
async def test_an_event_that_is_not_there_is_404(reader: Reader, name: str) -> None:
    await reader.problem(404, f"/v1/events/{name}")


async def test_wait_answers_as_soon_as_there_is_an_event(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Because it was told so: nobody looks again by themselves here."""
    monkeypatch.setattr("app.feed.waiting._POLL", 60)
    waiting = asyncio.create_task(reader.get("/v1/events", {"wait": 30, "after": 0}))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        row = await an_event(reader.engine)
        page = (await waiting).json()
    assert [event["sequence"] for event in page["events"]] == [row["sequence"]]


async def test_wait_goes_on_past_events_that_the_filter_skips(reader: Reader) -> None:
    waiting = asyncio.create_task(reader.get("/v1/events", {"wait": 30, "action": "delete"}))
    async with asyncio.timeout(10):
        await events_of(reader.engine, 3)
        row = await an_event(reader.engine, action="delete")
        page = (await waiting).json()
    assert [event["sequence"] for event in page["events"]] == [row["sequence"]]


async def test_wait_ends_empty_at_the_head_when_the_time_is_over(reader: Reader) -> None:
    row = await an_event(reader.engine)
    page = (await reader.get("/v1/events", {"wait": "0.05", "action": "delete"})).json()
    assert page == {"events": [], "after": row["sequence"], "has_more": False}


async def test_wait_ends_at_once_when_the_process_stops(reader: Reader) -> None:
    waiting = [asyncio.create_task(reader.get("/v1/events", {"wait": 60})) for _ in range(3)]
    async with asyncio.timeout(10):
        while not await _idle(reader):
            await asyncio.sleep(0.02)
        reader.app.state.drain()
        answers = await asyncio.gather(*waiting, reader.get("/v1/events", {"wait": 60}))
    assert all(answer.json()["events"] == [] for answer in answers)


async def test_wait_ends_when_the_caller_hangs_up(database: str, lookups: Lookups) -> None:
    async def hung_up() -> Message:
        return {"type": "http.disconnect"}

    async with Wakeup(database) as wakeup, asyncio.timeout(10):
        request = Request({"type": "http", "state": {"lookups": lookups, "wakeup": wakeup}}, hung_up)
        page = await page_when_there(request, Filters(), after=0, limit=1, wait=60, written=True)
    assert page.events == []


async def test_who_waits_holds_no_connection(reader: Reader) -> None:
    """More waiters than the pool has connections, and a plain reader is served all the same."""
    waiting = [asyncio.create_task(reader.get("/v1/events", {"wait": 30})) for _ in range(25)]
    try:
        async with asyncio.timeout(10):
            while not await _idle(reader):
                await asyncio.sleep(0.02)
            assert (await reader.get("/v1/events")).json()["events"] == []
            await an_event(reader.engine)
            answers = await asyncio.gather(*waiting)
        assert all(len(answer.json()["events"]) == 1 for answer in answers)
    finally:
        for task in waiting:
            task.cancel()


async def _idle(reader: Reader) -> bool:
    """Whether nothing but this very query is in a transaction on the database."""
    async with reader.engine.connect() as connection:
        busy: int | None = await connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state <> 'idle' AND pid <> pg_backend_pid()"
            )
        )
    return busy == 0
