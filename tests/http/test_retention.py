"""What readers meet where retention has been: 410 with the way on, and nowhere a trace of what is gone."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.wakeup import Wakeup
from app.errors import GoneError
from app.feed import consumers
from app.feed.alarm import Alarm, Danger, danger
from app.feed.consumer_schemas import Ack, Consumer
from app.feed.filters import Filters
from app.feed.stream import Streams
from app.ledger.retention import Periods, remove, remove_oldest_events
from tests.builders import NOW, a_delivery, an_entity, an_event, events_of
from tests.http.conftest import Reader, Receiver, Start
from tests.http.sse import event_source

DAY = timedelta(days=1)
OLD = NOW - 100 * DAY
BATCH = "application/cloudevents-batch+json"


@dataclass(frozen=True)
class Past:
    """A feed whose first three events are removed: the one of entity 1 is hidden, as its state stands on it."""

    hidden: dict[str, Any]
    gone: dict[str, Any]
    kept: list[dict[str, Any]]
    oldest: int

    @property
    def sequences(self) -> list[int]:
        return [row["sequence"] for row in self.kept]


@pytest.fixture
async def past(reader: Reader) -> Past:
    gone = await an_event(reader.engine, entity_id="2", received_at=OLD, data='{"id": 2}')
    await an_entity(reader.engine, entity_id="1", data='{"id": 1, "n": 1.10}')
    await an_event(reader.engine, entity_id="2", received_at=OLD, data='{"id": 2}')
    async with reader.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE events SET received_at = received_at - interval '100 days'")
        hidden = (
            (await connection.exec_driver_sql("SELECT sequence, id FROM events WHERE entity_id = '1'")).mappings().one()
        )
    kept = [await an_event(reader.engine, entity_id=entity_id) for entity_id in ("1", "2", "2", "3")]
    assert await remove_oldest_events(reader.engine, OLD + DAY) == 3
    return Past(dict(hidden), gone, kept, kept[0]["sequence"] - 1)


def sequences(answer: httpx.Response) -> list[int]:
    return [event["sequence"] for event in answer.json()["events"]]


PAGES = ["/v1/events", "/v1/events/stream", "/v1/products/1/events"]


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("accept", ["application/json", BATCH, "*/*"])
async def test_a_position_with_a_hole_behind_it_is_410_with_the_lowest_that_is_whole(
    reader: Reader, past: Past, path: str, accept: str
) -> None:
    if path.endswith("stream"):
        accept = "*/*"
    for after in range(past.oldest):
        problem = await reader.problem(410, path, params={"after": after}, headers={"Accept": accept})
        assert (problem["type"], problem["oldest_after"]) == ("/problems/gone", past.oldest)
    if not path.endswith("stream"):
        await reader.get(path, {"after": past.oldest}, {"Accept": accept})


async def test_without_a_position_reading_begins_with_the_oldest_kept(reader: Reader, past: Past) -> None:
    everything = {"include_stale": "true"}
    assert sequences(await reader.get("/v1/events", everything)) == past.sequences
    assert sequences(await reader.get("/v1/events", {"after": past.oldest})) == past.sequences
    assert sequences(await reader.get("/v1/events", {"entity_id": "1"})) == past.sequences[:1]
    assert sequences(await reader.get("/v1/products/1/events")) == past.sequences[:1]
    batch = (await reader.get("/v1/events", headers={"Accept": BATCH})).json()
    assert [int(event["sequence"]) for event in batch] == past.sequences
    async with event_source(reader.http) as source, asyncio.timeout(10):
        assert [int(one.id) for one in await source.take(len(past.kept))] == past.sequences
        assert source.ids[0] == past.oldest


async def test_a_stream_that_comes_back_too_late_is_410(reader: Reader, past: Past) -> None:
    problem = await reader.problem(410, "/v1/events/stream", headers={"Last-Event-ID": "1"})
    assert problem["oldest_after"] == past.oldest
    async with event_source(reader.http, "after=0", last_event_id=str(past.oldest)) as source, asyncio.timeout(10):
        assert int((await source.next()).id) == past.sequences[0]


async def test_a_stream_that_is_overtaken_ends_so_that_its_reader_meets_the_410(
    database: str, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow reader: its stream takes the next events from the database only when the last were taken."""
    monkeypatch.setattr("app.feed.stream._PAGE_EVENTS", 2)
    rows = await events_of(reader.engine, 6, received_at=OLD)
    wakeup = Wakeup(database)

    async def allowed() -> bool:
        return True

    stream = Streams(reader.engine, wakeup).follow(Filters(), after=None, still_allowed=allowed)
    first = await anext(stream)
    assert b"id: %d\n" % rows[1]["sequence"] in first
    await remove_oldest_events(reader.engine, OLD + DAY)
    assert [piece async for piece in stream] == []
    with pytest.raises(GoneError):
        await anext(Streams(reader.engine, wakeup).follow(Filters(), after=rows[1]["sequence"], still_allowed=allowed))


async def test_what_is_removed_is_found_nowhere_whether_its_row_is_still_there_or_not(
    reader: Reader, past: Past, database: str
) -> None:
    for row in (past.hidden, past.gone):
        await reader.problem(404, f"/v1/events/{row['id']}")
        await reader.http.put("/v1/consumers/search", json={"start": "earliest"})
        body = {"sequence": row["sequence"], "reason": "poison"}
        await reader.problem(409, "/v1/consumers/search/park", "POST", json=body)
        delivery = await a_delivery(reader.engine, event_sequence=row["sequence"])
        assert (await reader.get(f"/v1/deliveries/{delivery['id']}")).json()["event_id"] is None
    assert {one["event_id"] for one in (await reader.get("/v1/deliveries")).json()["deliveries"]} == {None}
    sql = await asyncpg.connect(database)
    await sql.execute("SET ROLE jasper_reader")
    assert [row[0] for row in await sql.fetch("SELECT sequence FROM feed.events ORDER BY 1")] == past.sequences
    assert await sql.fetchval("SELECT data FROM feed.entities WHERE entity_id = '1'") == '{"id": 1, "n": 1.10}'
    await sql.close()
    assert (await reader.get("/v1/products/1")).json()["data"] == {"id": 1, "n": 1.10}


async def test_an_event_that_was_parked_is_still_listed_when_it_is_removed(reader: Reader) -> None:
    rows = await events_of(reader.engine, 3, received_at=OLD)
    await an_event(reader.engine)
    await reader.http.put("/v1/consumers/search")
    for row in rows:
        body = {"sequence": row["sequence"], "reason": "poison"}
        assert (await reader.http.post("/v1/consumers/search/park", json=body)).is_success
    await remove_oldest_events(reader.engine, OLD + DAY)
    parked = (await reader.get("/v1/consumers/search/parked")).json()["parked"]
    assert [(one["sequence"], one["event_id"]) for one in parked] == [(row["sequence"], None) for row in rows]


async def test_a_state_of_the_past_is_told_where_it_is_certain_and_else_410(reader: Reader) -> None:
    last = 0
    for entity_id, age in [("1", 50), ("2", 45), ("1", 40), ("1", 1)]:
        row = await an_entity(reader.engine, entity_id=entity_id)
        async with reader.engine.begin() as connection:
            at = {"at": utc_now() - age * DAY, "sequence": row["sequence"]}
            await connection.execute(text("UPDATE events SET received_at = :at WHERE sequence = :sequence"), at)
        last = row["sequence"]
    first = last - 3
    assert await remove_oldest_events(reader.engine, utc_now() - 30 * DAY) == 3

    async def sequence(entity_id: str, point: object) -> int:
        found: int = (await reader.get(f"/v1/products/{entity_id}", {"as_of": str(point)})).json()["sequence"]
        return found

    def ago(days: float) -> str:
        return (utc_now() - days * DAY).isoformat()

    oldest = first + 2
    assert await sequence("1", last) == last
    assert [await sequence("1", point) for point in (oldest, ago(0.5), ago(39), ago(2))] == [
        *(oldest, first + 3, oldest, oldest)
    ]
    assert await sequence("2", ago(44)) == first + 1
    for entity_id, point in [("1", first + 1), ("1", 0), ("1", ago(45)), ("2", first), ("2", ago(46))]:
        problem = await reader.problem(410, f"/v1/products/{entity_id}", params={"as_of": str(point)})
        assert (problem["oldest_after"], "entity" in problem) == (oldest, False)
    await reader.problem(404, "/v1/products/3", params={"as_of": "1"})


async def test_a_consumer_that_is_overtaken_is_told_so_until_it_is_moved_on_purpose(
    reader: Reader,
) -> None:
    rows = await events_of(reader.engine, 4, received_at=OLD)
    rows.append(await an_event(reader.engine))
    for name, start in [("slow", rows[0]["sequence"]), ("in time", rows[3]["sequence"])]:
        await reader.http.put(f"/v1/consumers/{name.replace(' ', '-')}", json={"start": start})
    await remove_oldest_events(reader.engine, OLD + DAY)
    oldest = rows[3]["sequence"]

    shown = {one["name"]: one for one in (await reader.get("/v1/consumers")).json()["consumers"]}
    assert {name: (one["overtaken"], one["lag"]) for name, one in shown.items()} == {
        "slow": (True, 1),
        "in-time": (False, 1),
    }
    assert len(sequences(await reader.get("/v1/consumers/in-time/events"))) == 1
    for asked in ({}, {"lease": 60}, {"wait": 30}, {"entity_id": "nobody"}):
        problem = await reader.problem(410, "/v1/consumers/slow/events", params=asked)
        assert problem["oldest_after"] == oldest

    refused = await reader.problem(410, "/v1/consumers/slow", "PUT", json={"start": rows[2]["sequence"]})
    assert refused["oldest_after"] == oldest
    acked = await reader.http.post("/v1/consumers/slow/ack", json={"after": rows[1]["sequence"]})
    assert acked.json()["overtaken"] is True, "what was read before is done, and the rest is still missing"
    await reader.problem(410, "/v1/consumers/slow/events")
    moved = await reader.http.put("/v1/consumers/slow", json={"start": "earliest"})
    assert (moved.json()["position"], moved.json()["overtaken"]) == (oldest, False)
    assert sequences(await reader.get("/v1/consumers/slow/events")) == [rows[4]["sequence"]]


async def test_everything_may_be_gone_and_the_feed_goes_on(reader: Reader) -> None:
    rows = await events_of(reader.engine, 3, received_at=OLD)
    while await remove_oldest_events(reader.engine, OLD + DAY):
        pass
    end = rows[-1]["sequence"]
    for params in ({}, {"after": end}):
        page = (await reader.get("/v1/events", params)).json()
        assert page == {"events": [], "after": end, "has_more": False}
    for start in ("earliest", "latest"):
        consumer = (await reader.http.put(f"/v1/consumers/{start}", json={"start": start})).json()
        assert (consumer["position"], consumer["lag"], consumer["lag_seconds"]) == (end, 0, 0)
    assert (await reader.get("/v1/products")).headers["feed-position"] == str(end)
    new = await an_event(reader.engine)
    assert sequences(await reader.get("/v1/events", {"after": end})) == [new["sequence"]]


async def test_a_consumer_says_when_its_oldest_event_will_be_removed(start: Start) -> None:
    async with start(event_retention_days=10) as receiver:
        received = utc_now() - 2 * DAY
        await receiver.sql.execute(_AN_EVENT, 5, received)
        await receiver.sql.execute(_AN_EVENT, 6, received + DAY)
        http = receiver.http
        behind = (await http.put("/v1/consumers/behind")).json()
        assert datetime.fromisoformat(behind["expires_at"]) == received + 10 * DAY
        read = await http.post("/v1/consumers/behind/ack", json={"after": 5})
        assert datetime.fromisoformat(read.json()["expires_at"]) == received + 11 * DAY
        done = await http.post("/v1/consumers/behind/ack", json={"after": 6})
        assert done.json()["expires_at"] is None
        assert (await http.get("/v1/consumers/behind")).json()["expires_at"] is None


_AN_EVENT = """
    INSERT INTO events (sequence, id, entity_type, entity_id, action, action_inferred, stale, source, received_at, changed,
                        changes, data, entity_version, entity_sequence, entity_data_sequence)
    VALUES ($1, gen_random_uuid(), 'product', '1001', 'update', false, false, 'webhook', $2, '{}', '[]', '{}', 1, $1, $1)
"""


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_the_service_removes_by_itself_what_is_older_than_its_settings_say(start: Start, database: str) -> None:
    """As after days in which nothing ran: on start-up the rest is caught up with."""
    sql = await asyncpg.connect(database)
    for number in range(1, 1501):
        days = 40 if number <= 1400 else 20
        await sql.execute(_AN_EVENT, number, utc_now() - days * DAY)
    await sql.close()
    async with start(event_retention_days=30) as receiver:

        async def caught_up() -> bool:
            answer = await receiver.http.get("/v1/events", params={"after": 1399})
            return answer.status_code == 410 and answer.json()["oldest_after"] == 1400

        await until(caught_up)
        assert (await receiver.http.get("/v1/events", params={"after": 1400, "limit": 1000})).json()["after"] == 1500
        assert await receiver.sql.fetchval("SELECT count(*) FROM events WHERE sequence <= 1400") == 1


async def test_by_default_events_stay_and_deliveries_go_after_30_days(start: Start, database: str) -> None:
    sql = await asyncpg.connect(database)
    await sql.execute(_AN_EVENT, 1, utc_now() - 4000 * DAY)
    for days in (31, 29):
        await sql.execute(_A_DELIVERY, _id_of(utc_now() - days * DAY), utc_now() - days * DAY)
    await sql.close()
    async with start() as receiver:

        async def one_is_left() -> bool:
            return len((await receiver.http.get("/v1/deliveries")).json()["deliveries"]) == 1

        await until(one_is_left)
        assert sequences(await receiver.http.get("/v1/events", params={"after": 0})) == [1]


_A_DELIVERY = """
    INSERT INTO deliveries (id, entity_type, status, received_at, client, proof, headers, body, size, reading, event_sequence)
    VALUES ($1, 'product', 'accepted', $2, '', '', '[]', '{}', 2, '{}', 1)
"""


def _id_of(at: datetime) -> str:
    return f"{int(at.timestamp() * 1000):012x}70008000000000000000"


async def test_a_delivery_whose_event_was_removed_is_read_again_without_a_second_event(
    receiver: Receiver, engine: AsyncEngine
) -> None:
    """Of callbacks that carry neither an id nor a time, so that nothing but the delivery itself says that they were read."""
    bodies = [{"event": "product.updated", "data": {"id": 1, "n": number}} for number in range(3)]
    ids = [(await receiver.callback(body)).json()["delivery_id"] for body in bodies]
    assert (await remove(engine, Periods(DAY, None), now=utc_now() + 2 * DAY)).events == 3
    for delivery_id, body in zip(ids, bodies, strict=True):
        answer = await receiver.http.post(f"/v1/deliveries/{delivery_id}/reprocess")
        assert answer.json() == {"delivery_id": delivery_id, "status": "accepted", "event_id": None, "reason": None}
        told = (await receiver.http.get(f"/v1/deliveries/{delivery_id}")).json()
        assert (json.loads(told["body"]), told["status"], told["event_id"]) == (body, "accepted", None)
    assert sequences(await receiver.http.get("/v1/events")) == []
    assert await receiver.counts() == (3, 1)


async def test_a_repetition_is_known_for_ever(receiver: Receiver, engine: AsyncEngine) -> None:
    await receiver.callback()
    await receiver.callback({"event": "product.updated", "data": {"id": 1001, "name": "Hoodie, red"}})
    gone = await remove(engine, Periods(DAY, DAY), now=utc_now() + 2 * DAY)
    assert (gone.events, gone.deliveries) == (2, 2)
    again = (await receiver.callback()).json()
    assert (again["status"], again["event_id"]) == ("duplicate", None)


def a_consumer(**given: Any) -> Consumer:
    row = {"name": "search", "position": 5, "lag": 3, "lag_seconds": 9, "updated_at": NOW, "leased_until": None}
    return Consumer.model_validate(row | {"expires_at": NOW, "overtaken": False} | given)


@pytest.mark.parametrize(
    ("days", "before", "expected"),
    [
        (365, timedelta(days=3, seconds=1), None),
        (365, timedelta(days=3), Danger.EXPIRING),
        (4, timedelta(days=1, seconds=1), None),
        (4, timedelta(days=1), Danger.EXPIRING),
        (4, -timedelta(days=1), Danger.EXPIRING),
    ],
)
def test_a_consumer_is_in_danger_in_the_last_quarter_and_at_most_three_days(
    days: int, before: timedelta, expected: Danger | None
) -> None:
    assert danger(a_consumer(), days * DAY, NOW - before) is expected
    assert danger(a_consumer(expires_at=None), days * DAY, NOW - before) is None
    assert danger(a_consumer(overtaken=True), days * DAY, NOW - before) is Danger.OVERTAKEN


async def test_each_danger_is_told_once_and_again_when_it_had_passed(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    kept_for = 10 * DAY
    rows = [await an_event(engine, received_at=OLD + number * DAY) for number in range(3)]
    for name in ("behind", "done"):
        await consumers.put(engine, name, "earliest" if name == "behind" else "latest", kept_for=kept_for)
    alarm = Alarm(engine, kept_for)

    async def told(now: datetime) -> list[tuple[str, str]]:
        caplog.clear()
        await alarm.look(now)
        assert {record.__dict__["consumer"] for record in caplog.records} <= {"behind"}
        return [(record.levelname, record.message.partition(":")[0]) for record in caplog.records]

    far, over = ("WARNING", "a consumer is far behind"), ("ERROR", "a consumer is overtaken")
    assert await told(OLD + 7 * DAY) == []
    assert await told(OLD + 8 * DAY) == [far]
    assert await told(OLD + 9 * DAY) == []
    await consumers.acknowledge(engine, "behind", Ack(after=rows[0]["sequence"]), kept_for=kept_for)
    assert await told(OLD + 8 * DAY) == []
    assert await told(OLD + 9 * DAY) == [far]
    while await remove_oldest_events(engine, OLD + 2 * DAY):
        pass
    assert await told(OLD + 9 * DAY) == [over]
    assert await told(OLD + 9 * DAY) == []
    await Alarm(engine, None).look(OLD + 900 * DAY)
    assert len(caplog.records) == 0
