"""All faces of the feed tell the same events, member for member and digit for digit, also while several replicas write."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

from app.db.engine import connect
from app.feed.cloudevents import BATCH
from jasper_receiver_client import Event, Feed
from tests.http.conftest import ADMIN_KEY, Receiver, Start
from tests.http.sse import event_source

COUNT = 120

SHAPES = [
    '{{"event":"product.updated","data":{{"id":"{entity}","updated_at":"{time}","price":1.10,"big":1e400}}}}',
    '{{"event":"product.updated","data":{{ "id" : "{entity}",\r\n "updated_at":"{time}", "text":"\\u0000\\ud800 ü" }}}}',
    '{{"event":"product.deleted","id":"{entity}","timestamp":"{time}","delivery_id":"{number}"}}',
    '{{"data":{{"id":"{entity}","updated_at":"{time}","digits":{digits},"deep":[[[{{"a":-0.0}}]]]}}}}',
    '{{"event":"product.created","id":"{entity}","delivery_id":"{number}"}}',
]
"""With and without data, times, an action; numbers and texts that few programs can hold."""

exact: Callable[[bytes | str], Any] = partial(json.loads, parse_float=lambda text: ("number", text))
"""JSON without any loss of digits."""


def a_body(number: int) -> bytes:
    """Every one an event of its own. Times run backwards now and then, so that some are stale."""
    minute = number - 20 * (number % 3 == 0)
    time = f"2026-11-23T{10 + minute // 60:02}:{minute % 60:02}:00Z"
    shape = SHAPES[number % len(SHAPES)]
    # A delete names an entity that none before it has deleted, as the delete of what is deleted makes no event.
    entity = f"d{number}" if "deleted" in shape else f"p{number % 7}"
    return shape.format(entity=entity, time=time, number=number, digits="9" * 64).encode()


async def by_page(receiver: Receiver) -> list[Any]:
    seen: list[Any] = []
    after = 0
    while len(seen) < COUNT:
        query: dict[str, str | int] = {"after": after, "limit": 7, "wait": 1, "include_stale": "true"}
        page = exact((await receiver.http.get("/v1/events", params=query)).content)
        seen += page["events"]
        after = page["after"]
    return seen


async def by_consumer(receiver: Receiver) -> list[Any]:
    assert (await receiver.http.put("/v1/consumers/search")).is_success
    seen: list[Any] = []
    while len(seen) < COUNT:
        query: dict[str, str | int] = {"limit": 11, "wait": 1, "include_stale": "true"}
        page = exact((await receiver.http.get("/v1/consumers/search/events", params=query)).content)
        seen += page["events"]
        assert (await receiver.http.post("/v1/consumers/search/ack", json={"after": page["after"]})).is_success
    return seen


async def by_stream(receiver: Receiver) -> list[Any]:
    async with event_source(receiver.http, "include_stale=true") as source:
        messages = await source.take(COUNT)
    seen = [exact(message.data) for message in messages]
    assert [(message.id, message.event) for message in messages] == [
        (str(one["sequence"]), one["type"]) for one in seen
    ]
    return seen


async def by_cloud_events(receiver: Receiver) -> list[Any]:
    seen: list[Any] = []
    after = "0"
    while len(seen) < COUNT:
        query = {"after": after, "limit": "13", "wait": "1", "include_stale": "true"}
        answer = await receiver.http.get("/v1/events", params=query, headers={"Accept": BATCH})
        after = answer.headers["Feed-Position"]
        for one in exact(answer.content):
            event = one["data"]
            assert (one["id"], one["type"], one["subject"]) == (event["id"], event["type"], event["entity_id"])
            assert (int(one["sequence"]), one["time"]) == (
                event["sequence"],
                event["occurred_at"] or event["received_at"],
            )
            seen.append(event)
    return seen


async def by_sql(database: str) -> list[Any]:
    connection = await connect(database, application_name="test")
    await connection.execute("SET ROLE jasper_reader")
    seen: list[Any] = []
    while len(seen) < COUNT:
        position = seen[-1]["sequence"] if seen else 0
        rows = await connection.fetch(
            "SELECT * FROM feed.events WHERE sequence > $1 ORDER BY sequence LIMIT 9", position
        )
        seen += [_as_told(dict(row)) for row in rows]
        await asyncio.sleep(0.01)
    await connection.close()
    return seen


def _as_told(row: dict[str, Any]) -> dict[str, Any]:
    """A row with JSON read, and ids and times as JSON has them."""
    told: dict[str, Any] = json.loads(json.dumps(row, default=_text))
    texts = {name: row[name] for name in ("data", "changes") if row[name] is not None}
    return told | {name: exact(text) for name, text in texts.items()}


def _text(value: object) -> str:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)


async def by_client(receiver: Receiver) -> list[Event]:
    def follow() -> list[Event]:
        with (
            Feed(str(receiver.http.base_url), ADMIN_KEY, loads=exact, patience=10) as feed,
            closing(feed.follow(limit=17, include_stale=True)) as events,
        ):
            return list(islice(events, COUNT))

    return await asyncio.to_thread(follow)


async def test_all_faces_tell_the_same_events_while_replicas_write(start: Start, database: str) -> None:
    async with asyncio.timeout(100), start() as one, start() as other:

        async def write(receiver: Receiver, numbers: range) -> None:
            for number in numbers:
                while (answer := await receiver.callback(a_body(number))).status_code == 503:
                    pass  # a busy machine was too slow, and Jasper would send it again as well
                assert answer.json().get("status") in {"accepted", "duplicate"}, f"{a_body(number)!r} {answer.text}"

        faces: dict[str, Awaitable[list[Any]]] = {
            "page": by_page(one),
            "consumer": by_consumer(other),
            "stream": by_stream(one),
            "CloudEvents": by_cloud_events(other),
            "SQL": by_sql(database),
            "client": by_client(other),
        }
        writers = [
            write(receiver, range(begin, COUNT, 8)) for begin in range(8) for receiver in [(one, other)[begin % 2]]
        ]
        told = await asyncio.gather(*faces.values(), *writers)
        pages, consumer, stream, cloud_events, sql, client = told[: len(faces)]
        single = [exact((await one.http.get(f"/v1/events/{event['id']}")).content) for event in pages]

    assert len(pages) == COUNT
    assert [event["sequence"] for event in pages] == sorted({event["sequence"] for event in pages})
    assert {event["stale"] for event in pages} == {False, True}
    assert {event["action_inferred"] for event in pages} == {False, True}
    assert any(event["changes"] for event in pages)
    assert consumer == pages
    assert stream == pages
    assert cloud_events == pages
    assert sql == pages
    assert single == pages
    assert [asdict(event) for event in client] == [asdict(Event.of(event)) for event in pages]
    assert ("number", "1.10") in [
        event["data"]["price"] for event in pages if event["data"] and "price" in event["data"]
    ]
