"""Retention on a real ledger: what is removed, what stays for the entities, and that nobody notices but who looks for it."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.clock import utc_now
from app.db.engine import create_engine, reading
from app.db.locks import Lock, try_lock
from app.db.migrate import migrate
from app.db.tables import deliveries, entities, events, unproven
from app.deliveries import queries as delivery_queries
from app.domain.values import Action, Delivery, EntityType, Entry, Headers, JsonText, Reading, Receipt
from app.entities import queries as entity_queries
from app.errors import DatabaseUnavailableError, GoneError
from app.feed import queries
from app.feed.filters import Filters
from app.jasper.reading import interpret
from app.ledger import retention
from app.ledger.retention import Periods, Removed, keep_removing, remove, remove_oldest_events
from app.ledger.writer import Writer
from tests.builders import a_delivery, an_event, event_row

START = datetime(2026, 1, 5, 10, 0, tzinfo=UTC)
DAY = timedelta(days=1)
ALL = Filters(include_stale=True)
SOME = Filters(action=(Action.CREATE, Action.UPDATE), include_stale=True)
NOBODY: Headers = ()


def received(number: int) -> datetime:
    """When the entry of this number came: one a day."""
    return START + number * DAY


def an_entry(chance: random.Random, number: int) -> Entry:
    """Anything that may come for one of a few entities: late, without a time, without data, again, or read late."""
    data = chance.choice([None, {"a": chance.randrange(3), "é": "\u2028😀"}])
    body = json.dumps({"n": number, "before": "ä€", "data": data}, ensure_ascii=False).encode()
    text_of_data = None if data is None else JsonText(json.dumps(data, ensure_ascii=False).encode())
    told_at = received(number) - chance.choice([0, 0, 0, 1]) * timedelta(hours=5)
    occurred_at = chance.choice([None, START + timedelta(seconds=chance.randrange(9))])
    what = Reading(
        entity_id=str(chance.randrange(9)),
        action=chance.choice([*Action, Action.UPDATE, None]),
        data=text_of_data,
        occurred_at=occurred_at,
        data_stamped=data is not None and occurred_at is not None and chance.random() < 0.5,
    )
    delivery = Delivery(EntityType.PRODUCT, told_at, "127.0.0.1", NOBODY, body, "header:x-secret")
    return Entry(EntityType.PRODUCT, what, received(number), delivery)


async def written(dsn: str, count: int, *, first: int = 0, seed: int = 7) -> list[Receipt]:
    """Write so many entries, one a commit; their own chance for each makes them the same on every database."""
    async with Writer(dsn) as writer:
        return [
            await writer.commit(an_entry(random.Random(seed * 100_000 + number), number))
            for number in range(first, first + count)
        ]


@pytest.fixture(autouse=True)
def _small_quick_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_STEP_EVENTS", 7)
    monkeypatch.setattr(retention, "_STEP_DELIVERIES", 7)
    monkeypatch.setattr(retention, "_REST", 0.0)


async def removed_before(engine: AsyncEngine, before: datetime) -> int:
    """Remove the events received before that; returns how many that were."""
    return (await remove(engine, Periods(DAY, None), now=before + DAY)).events


async def oldest_after(engine: AsyncEngine) -> int:
    async with reading(engine) as connection:
        return await queries.oldest_after(connection)


async def feed(engine: AsyncEngine, filters: Filters = ALL, after: int | None = None) -> list[dict[str, Any]]:
    """All that pages give."""
    found: list[dict[str, Any]] = []
    while True:
        async with reading(engine) as connection:
            page = await queries.page(connection, filters, after=after, limit=13)
        found += msgspec.json.decode(msgspec.json.encode(page.events))
        after = page.after
        if not page.has_more:
            return found


async def rows(engine: AsyncEngine) -> list[Any]:
    """All events that are there, hidden or not."""
    async with engine.connect() as connection:
        return list((await connection.execute(select(events).order_by(events.c.sequence))).all())


async def test_what_is_left_of_the_feed_is_its_end_whatever_the_filters(database: str, engine: AsyncEngine) -> None:
    await written(database, 200)
    wanted = [
        ALL,
        Filters(),
        Filters(entity_id=("3", "4")),
        Filters(action=(Action.DELETE,)),
        Filters(changed=("a",)),
        Filters(since=received(60), until=received(120)),
    ]
    before = [await feed(engine, filters) for filters in wanted]
    assert all(before)
    passed = 0
    for number in (0, 1, 40, 41, 100, 199, 500):
        passed += await removed_before(engine, received(number))
        old = [event["sequence"] for event in before[0] if _time(event["received_at"]) < received(number)]
        assert (passed, await oldest_after(engine)) == (len(old), max(old, default=0))
        for filters, whole in zip(wanted, before, strict=True):
            assert await feed(engine, filters) == [one for one in whole if one["sequence"] > await oldest_after(engine)]
    async with reading(engine) as connection:
        assert await queries.head(connection) == before[0][-1]["sequence"] == await oldest_after(engine)


def _time(value: str) -> datetime:
    return datetime.fromisoformat(value)


async def test_a_page_from_before_is_refused_and_the_position_that_is_named_is_whole(
    database: str, engine: AsyncEngine
) -> None:
    await written(database, 60)
    whole = [event["sequence"] for event in await feed(engine)]
    await removed_before(engine, received(30))
    oldest = await oldest_after(engine)
    assert oldest in whole
    for position in range(oldest):
        with pytest.raises(GoneError) as refusal:
            await feed(engine, after=position)
        assert refusal.value.extra == {"oldest_after": oldest}
    expected = [sequence for sequence in whole if sequence > oldest]
    assert [event["sequence"] for event in await feed(engine, after=oldest)] == expected
    assert [event["sequence"] for event in await feed(engine)] == expected


async def test_exactly_the_events_that_a_state_stands_on_stay_behind_and_no_reader_finds_them(
    database: str, engine: AsyncEngine
) -> None:
    await written(database, 200)
    whole = {row.sequence: row for row in await rows(engine)}
    for number in range(10, 200, 10):
        await removed_before(engine, received(number))
        oldest = await oldest_after(engine)
        newest = {row.entity_id: row for row in whole.values() if row.sequence <= oldest}
        needed = {
            sequence
            for row in newest.values()
            for sequence in (row.sequence, row.entity_sequence, row.entity_data_sequence)
            if sequence is not None
        }
        there = {row.sequence: row for row in await rows(engine)}
        assert there == {number: row for number, row in whole.items() if number > oldest or number in needed}
        async with reading(engine) as connection:
            for sequence in needed:
                assert await queries.one(connection, whole[sequence].id) is None


async def test_every_state_that_is_told_is_the_one_it_was_and_none_from_there_on_is_lost(
    database: str, engine: AsyncEngine
) -> None:
    await written(database, 60)
    head = (await rows(engine))[-1].sequence
    points: list[int | datetime] = [*range(head + 1), *(received(number) for number in range(-1, 61))]
    ids = [str(number) for number in range(10)]

    async def states() -> dict[tuple[str, int | datetime | None], bytes | GoneError | None]:
        found: dict[tuple[str, int | datetime | None], bytes | GoneError | None] = {}
        async with reading(engine) as connection:
            for entity_id in ids:
                for point in [*points, None]:
                    try:
                        found[entity_id, point] = await _state(connection, entity_id, point)
                    except GoneError as exc:
                        found[entity_id, point] = exc
        return found

    before = await states()
    for number in (1, 30, 61):
        await removed_before(engine, received(number))
        oldest = await oldest_after(engine)
        refused = 0
        for (entity_id, point), state in (await states()).items():
            if isinstance(state, GoneError):
                refused += 1
                assert state.extra == {"oldest_after": oldest}
                assert point is not None
                assert point < oldest if isinstance(point, int) else point < received(number - 1)
            else:
                assert state == before[entity_id, point], (entity_id, point)
        assert refused
    assert await _told(engine, "9", 5) is None, "what was never seen was not seen then either"


async def _state(connection: AsyncConnection, entity_id: str, point: int | datetime | None) -> bytes | None:
    state = (
        await entity_queries.state(connection, EntityType.PRODUCT, entity_id)
        if point is None
        else await entity_queries.state_as_of(connection, EntityType.PRODUCT, entity_id, point)
    )
    if state is None:
        return None
    return msgspec.json.encode((state.tag, await entity_queries.with_data(connection, state)))


async def _told(engine: AsyncEngine, entity_id: str, point: int | datetime | None) -> bytes | None:
    async with reading(engine) as connection:
        return await _state(connection, entity_id, point)


@pytest.fixture
async def twin(empty_database: str) -> AsyncIterator[tuple[str, AsyncEngine]]:
    """A second database at the newest schema."""
    engine = create_engine(empty_database)
    await migrate(engine)
    yield empty_database, engine
    await engine.dispose()


async def test_the_ledger_goes_on_as_if_the_past_were_still_there(
    database: str, engine: AsyncEngine, twin: tuple[str, AsyncEngine]
) -> None:
    """The same callbacks on two databases, one of which forgets again and again: repetitions, order and states agree."""
    chance = random.Random(3)
    at = 0
    while at < 300:
        count = chance.randrange(1, 30)
        told = [await written(dsn, count, first=at) for dsn in (database, twin[0])]
        assert [one.status for one in told[0]] == [one.status for one in told[1]]
        at += count
        await removed_before(engine, received(at - chance.randrange(20)))

    def told_of(row: Any) -> tuple[object, ...]:
        return tuple(value for name, value in row._mapping.items() if name not in {"id", "delivery_id"})

    assert len(await rows(engine)) < len(await rows(twin[1])) // 2
    kept = {row.sequence for row in await rows(engine)}
    expected = [told_of(row) for row in await rows(twin[1]) if row.sequence in kept]
    assert [told_of(row) for row in await rows(engine)] == expected
    states = [list((await _all(each, entities)).all()) for each in (engine, twin[1])]
    assert states[0] == states[1]
    # What came before comes again: those that were known are, although their events are gone.
    again = [await written(dsn, 120) for dsn in (database, twin[0])]
    assert [one.status for one in again[0]] == [one.status for one in again[1]]
    assert "duplicate" in {one.status for one in again[0]}


async def _all(engine: AsyncEngine, table: Any) -> Any:
    async with engine.connect() as connection:
        return await connection.execute(select(table).order_by(*table.primary_key))


BODIES = [
    b'{"event": "product.updated", "data": {"id": 1, "n": 1.10}, "after": "\xe2\x82\xac"}',
    b'\xef\xbb\xbf{"a": "\xf0\x9f\x98\x80", "event": "updated",\r\n "data": { "id" : 1,\t"t": "\\u0000\\ud800 \xc3\xa4" } }',
    b'{"id": 1, "event": "product.updated", "price": 1e400}',
    b'{"id": 1, "event": "product.updated"}',
    b'[{"event": "product.updated", "data": {"id": 1, "d": {"data": {"id": 1}}}}]',
]


async def test_a_delivery_that_outlives_its_event_is_given_back_to_the_byte(database: str, engine: AsyncEngine) -> None:
    bodies: dict[UUID, bytes] = {}
    async with Writer(database) as writer:
        for body in BODIES * 2:
            delivery = Delivery(EntityType.PRODUCT, START, "127.0.0.1", NOBODY, body, "header:x-secret")
            entry = Entry(EntityType.PRODUCT, interpret(EntityType.PRODUCT, (), body, {}), START, delivery)
            bodies[(await writer.commit(entry)).delivery_id] = body
    cut = [row for row in (await _all(engine, deliveries)).all() if row.data_offset is not None]
    assert len(cut) > len(BODIES)

    assert await kept_bodies(engine, list(bodies)) == bodies
    passed = await removed_before(engine, START + DAY)
    assert passed == len(bodies)
    assert await kept_bodies(engine, list(bodies)) == bodies
    [last] = await rows(engine)
    still_cut = [row.event_sequence for row in (await _all(engine, deliveries)).all() if row.data_offset is not None]
    assert still_cut == [last.sequence], "the last event stays, hidden, and so does the body that needs it"
    async with reading(engine) as connection:
        told = await delivery_queries.page(connection, None, after=None, limit=100)
    assert {one.event_id for one in told.deliveries} == {None}


async def kept_bodies(engine: AsyncEngine, ids: Sequence[UUID]) -> dict[UUID, bytes]:
    async with engine.connect() as connection:
        return {delivery_id: one.body for delivery_id, one in await delivery_queries.kept(connection, ids)}


def an_id(at: datetime, number: int = 0) -> UUID:
    return UUID(int=int(at.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | number)


async def test_deliveries_go_by_their_own_days_and_what_is_quarantined_never_does(engine: AsyncEngine) -> None:
    event = await an_event(engine, received_at=START)
    kept = []
    for number in range(60):
        at = START + timedelta(hours=number)
        status = ("accepted", "duplicate", "quarantined")[number % 3]
        delivery = await a_delivery(
            engine, id=an_id(at), received_at=at, status=status, event_sequence=event["sequence"]
        )
        if number >= 40 or status == "quarantined":
            kept.append(delivery["id"])
    now = START + timedelta(hours=40) + 30 * DAY
    assert await remove(engine, Periods(None, 30 * DAY), now=now) == Removed(0, 40 - 13)
    assert [row.id for row in (await _all(engine, deliveries)).all()] == kept
    assert await remove(engine, Periods(None, 30 * DAY), now=now) == Removed(0, 0)
    assert [row.sequence for row in await rows(engine)] == [event["sequence"]]


async def test_a_delivery_whose_release_broke_off_stays_until_it_is_done(engine: AsyncEngine) -> None:
    """The callback is still kept apart under the same id: released again, it must be known."""
    delivery = await a_delivery(engine, id=an_id(START), received_at=START)
    row = {"id": delivery["id"], "entity_type": "product", "received_at": START, "client": "", "digest": b"", "size": 1}
    async with engine.begin() as connection:
        await connection.execute(insert(unproven), row | {"header_names": [], "outline": [], "sealed": b""})
    assert (await remove(engine, Periods(None, DAY), now=START + 9 * DAY)).deliveries == 0
    async with engine.begin() as connection:
        await connection.execute(delete(unproven))
    assert (await remove(engine, Periods(None, DAY), now=START + 9 * DAY)).deliveries == 1


async def test_a_delivery_that_is_being_read_again_is_left_for_the_next_time(engine: AsyncEngine) -> None:
    delivery = await a_delivery(engine, id=an_id(START), received_at=START)
    async with engine.begin() as connection:
        await delivery_queries.kept(connection, [delivery["id"]], hold=True)
        assert (await remove(engine, Periods(None, DAY), now=START + 9 * DAY)).deliveries == 0
    assert (await remove(engine, Periods(None, DAY), now=START + 9 * DAY)).deliveries == 1


async def test_for_ever_is_for_ever(database: str, engine: AsyncEngine) -> None:
    await written(database, 30)
    before = await rows(engine)
    assert await remove(engine, Periods(None, None), now=START + 100_000 * DAY) == Removed(0, 0)
    assert await rows(engine) == before


async def test_an_event_that_is_kept_keeps_all_behind_it(engine: AsyncEngine) -> None:
    """A host whose clock was ahead: too long is fine, too short is not."""
    times = [START, START + 2 * DAY, START, START]
    sequences = [(await an_event(engine, received_at=at))["sequence"] for at in times]
    assert await removed_before(engine, START + DAY) == 1
    assert await oldest_after(engine) == sequences[0]
    assert await removed_before(engine, START + 3 * DAY) == 3


async def test_a_step_is_small_in_events_and_in_bytes(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_STEP_BYTES", 1000)
    sizes = [1] * 9 + [400, 400, 400, 5000, 1]
    for size in sizes:
        await an_event(engine, received_at=START, data="1" * size)
    steps = []
    while count := await remove_oldest_events(engine, START + DAY):
        steps.append(count)
    assert steps == [7, 4, 1, 1, 1]


async def test_a_step_that_dies_has_done_nothing_and_the_next_one_does_it(
    database: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(database, 60)
    before, bodies = await rows(engine), (await _all(engine, deliveries)).all()
    with monkeypatch.context() as patch:
        patch.setattr(retention, "_MOVE", "SELECT 1 / (CAST(:last AS int) * 0)")
        with pytest.raises(DBAPIError, match="division by zero"):
            await removed_before(engine, received(40))
    assert (await oldest_after(engine), await rows(engine)) == (0, before)
    assert (await _all(engine, deliveries)).all() == bodies
    expected = sum(row.received_at < received(40) for row in before)
    assert await removed_before(engine, received(40)) == expected


async def test_a_run_that_is_cut_off_is_gone_on_with(database: str, engine: AsyncEngine) -> None:
    """Cut off at each of its steps in turn, wherever that is; in the end all is as if it had been done at once."""
    await written(database, 120)
    whole = await feed(engine)
    states = [await _told(engine, str(number), None) for number in range(9)]
    cut_off = 0
    deadline = time.monotonic() + 60
    while await oldest_after(engine) < max(
        event["sequence"] for event in whole if _time(event["received_at"]) < received(100)
    ):
        assert time.monotonic() < deadline
        position = await oldest_after(engine)
        run = asyncio.create_task(removed_before(engine, received(100)))
        while await oldest_after(engine) == position and not run.done():
            pass
        cut_off += run.cancel()
        await asyncio.gather(run, return_exceptions=True)
    assert cut_off > 2
    assert await feed(engine) == [event for event in whole if _time(event["received_at"]) >= received(100)]
    assert [await _told(engine, str(number), None) for number in range(9)] == states


async def test_several_at_once_remove_each_event_once(database: str, engine: AsyncEngine) -> None:
    await written(database, 150)
    whole = await feed(engine)
    old = [event for event in whole if _time(event["received_at"]) < received(120)]
    others = [create_engine(database) for _ in range(3)]
    counts = await asyncio.gather(*(removed_before(each, received(120)) for each in others))
    for each in others:
        await each.dispose()
    assert sum(counts) == len(old)
    assert min(counts) < len(old)
    assert await feed(engine) == whole[len(old) :]


async def test_a_page_that_is_being_read_stays_whole_while_its_events_are_removed(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal comes at the worst moment: the reader knows its bounds and has not yet looked for the events.

    Without filters bounds and events are read in one statement, and there is no such moment.
    """
    sequences = [(await an_event(engine, received_at=START))["sequence"] for _ in range(40)]
    find: Callable[..., Any] = queries._find

    async def find_late(*given: Any, **named: Any) -> Any:
        assert await removed_before(engine, START + DAY) == 40
        return await find(*given, **named)

    monkeypatch.setattr(queries, "_find", find_late)
    async with reading(engine) as connection:
        page = await queries.page(connection, SOME, after=sequences[4], limit=20)
    assert [event.sequence for event in page.events] == sequences[5:25]
    with pytest.raises(GoneError):
        await feed(engine, after=page.after)


async def test_readers_beside_it_are_given_every_event_or_are_told_so(database: str, engine: AsyncEngine) -> None:
    """Many readers, each at its own pace from the beginning, while everything before them goes away step by step."""
    await written(database, 160)
    whole = [event["sequence"] for event in await feed(engine)]
    removals = 0

    async def read(removals_a_page: int) -> int:
        after, told, pages = 0, 0, 0
        while after < whole[-1]:
            try:
                async with reading(engine) as connection:
                    page = await queries.page(connection, ALL, after=after, limit=5)
            except GoneError as exc:
                after = exc.extra["oldest_after"]  # type: ignore[assignment]  # it is a position
                told += 1
                continue
            index = sum(sequence <= after for sequence in whole)
            assert [event.sequence for event in page.events] == whole[index : index + 5]
            after = page.after
            pages += 1
            while removals < min(40, pages * removals_a_page):
                await asyncio.sleep(0)
        return told

    async def take_away() -> None:
        nonlocal removals
        for number in range(4, 161, 4):
            await removed_before(engine, received(number))
            removals += 1

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(read(pace)) for pace in (0, 0, 1, 1, 2, 3)]
        group.create_task(take_away())
    assert min(one.result() for one in readers[-2:]) > 0, "who reads less than goes away is overtaken"
    assert await oldest_after(engine) == whole[-1]


async def test_neither_the_ledger_nor_readers_wait_for_a_step(
    database: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is held up at its end, with all its locks; meanwhile a callback is committed and a page is read."""
    await written(database, 20)
    monkeypatch.setattr(retention, "_MOVE", "SELECT pg_advisory_xact_lock(4711 + CAST(:last AS int) * 0)")
    async with engine.connect() as other:
        await other.execute(text("SELECT pg_advisory_lock(4711)"))
        step = asyncio.create_task(remove_oldest_events(engine, received(10)))
        while not await other.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")):
            assert not step.done()
        await written(database, 10, first=20)
        assert len(await feed(engine)) > 20
        held_up = not step.done()
        with pytest.raises(DatabaseUnavailableError, match="55P03"):  # it gives way, after half a second
            await step
    assert held_up
    assert await oldest_after(engine) == 0


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """A task beside the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_while_another_replica_is_at_it_nothing_is_done(
    database: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until that one ends, as crashed ones do too: the lock ends with the connection."""
    await written(database, 30)
    monkeypatch.setattr(retention, "_INTERVAL", 0.001)
    tries: list[bool] = []

    @asynccontextmanager
    async def noted(engine: AsyncEngine, lock: Lock) -> AsyncIterator[bool]:
        async with try_lock(engine, lock) as held:
            tries.append(held)
            yield held

    monkeypatch.setattr(retention, "try_lock", noted)

    async def tell_nobody() -> None: ...

    async with (
        asyncio.timeout(30),
        try_lock(engine, Lock.RETENTION),
        running(keep_removing(engine, Periods(DAY, DAY), warn=tell_nobody)),
    ):
        while len(tries) < 5:
            await asyncio.sleep(0.001)
        assert (set(tries), await oldest_after(engine)) == ({False}, 0)
    async with asyncio.timeout(30), running(keep_removing(engine, Periods(DAY, DAY), warn=tell_nobody)):
        while await oldest_after(engine) == 0:
            await asyncio.sleep(0.001)


async def test_each_round_is_warned_of_first_and_trouble_is_gone_on_after(
    database: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app.ledger.retention")
    await written(database, 30)
    monkeypatch.setattr(retention, "_INTERVAL", 0.01)
    rounds: list[int] = []
    second_round = asyncio.Event()

    async def warn() -> None:
        rounds.append(await oldest_after(engine))
        if len(rounds) == 1:
            raise DatabaseUnavailableError("Postgres is away")
        if len(rounds) == 4:
            second_round.set()

    async with asyncio.timeout(20), running(keep_removing(engine, Periods(DAY, DAY), warn=warn)):
        await second_round.wait()
    assert rounds[:2] == [0, 0], "the round that failed removed nothing, and each is warned of first"
    assert rounds[2] > 0
    messages = [record.message for record in caplog.records]
    assert messages.count("retention did not get on, will go on later") == 1
    assert messages.count("removed what is older than is kept") == 1


async def test_a_step_finds_what_it_removes_in_the_indexes(engine: AsyncEngine) -> None:
    count = 30_000
    async with engine.begin() as connection:
        made = [event_row(number, entity_id=str(number % 3000), received_at=START) for number in range(1, count + 1)]
        for first in range(0, count, 1000):
            await connection.execute(insert(events), made[first : first + 1000])
        await connection.execute(
            insert(deliveries).from_select(
                ["id", "entity_type", "status", "received_at", "client", "proof", "headers", "body", "size", "reading"],
                select(
                    events.c.delivery_id,
                    events.c.entity_type,
                    text("'accepted'"),
                    events.c.received_at,
                    *(text("''") for _ in range(3)),
                    text("'{}'::bytea"),
                    text("2"),
                    text("'{}'"),
                ),
            )
        )
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE events, deliveries"))
    values = {"oldest_after": 0, "last": 500}
    async with engine.begin() as connection:
        await connection.execute(text(retention._CAREFUL))
        plan = (await connection.scalars(text(f"EXPLAIN {retention._REMOVE_EVENTS}"), values)).all()
        assert not [line for line in plan if "Seq Scan" in line], "\n".join(plan)
        to_go = {"after": UUID(int=0), "until": an_id(START + DAY), "before": START + DAY, "count": 500}
        plan = (await connection.scalars(text(f"EXPLAIN {retention._REMOVE_DELIVERIES}"), to_go)).all()
        assert not [line for line in plan if "Seq Scan on deliveries" in line], "\n".join(plan)
        assert [line for line in plan if "Index Cond" in line and "id > " in line and "id < " in line], "\n".join(plan)
        assert await connection.scalar(select(func.count()).select_from(events)) == count


async def test_a_clock_that_is_ahead_removes_nothing_before_its_time(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "utc_now", lambda: utc_now() + timedelta(days=400))
    assert await retention._earlier_now(engine) < utc_now() + timedelta(minutes=1)
    monkeypatch.setattr(retention, "utc_now", lambda: utc_now() - timedelta(days=400))
    assert await retention._earlier_now(engine) < utc_now() - timedelta(days=399)
