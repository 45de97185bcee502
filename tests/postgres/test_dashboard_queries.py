"""The dashboard's SQL against a real Postgres: bounded, whole where it goes on, and honest about how far it came."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.clock import utc_now
from app.dashboard import queries
from app.dashboard.queries import Stretch, quantile
from app.db.engine import create_engine, reading
from app.db.tables import callback_minutes, consumers, events, parked_events
from app.deliveries import queries as deliveries
from app.domain.values import DeliveryStatus, EntityType
from app.feed.filters import Filters
from app.intake import tally
from app.intake.tally import BOUNDS, Outcome, Tally
from tests.builders import a_delivery, event_row
from tests.postgres.plans import pages_read

LAST = 2**63 - 1
EVERYTHING = Filters(include_stale=True)


async def put(engine: AsyncEngine, rows: list[dict[str, object]]) -> None:
    async with engine.begin() as connection:
        await connection.execute(insert(events), rows)


async def all_back(engine: AsyncEngine, filters: Filters, wanted: str, limit: int) -> list[int]:
    """What is found by looking back again and again, until there is no more."""
    found: list[int] = []
    before, more = 310, True
    while more:
        async with reading(engine) as connection:
            look = await queries.look_back(connection, filters, wanted, after=0, before=before, limit=limit)
        assert look.reached <= before
        found += [event.sequence for event in look.events]
        before, more = look.reached - 1, look.more
    return found


@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_looking_back_step_by_step_finds_everything_once(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(queries, "EXAMINED", 20)
    monkeypatch.setattr(queries, "SEARCHED_BYTES", 100)
    chance = random.Random(limit)
    numbers = sorted(chance.sample(range(5, 300), 60))
    rows = [
        event_row(
            number,
            action=chance.choice(("create", "update")),
            entity_id=chance.choice("ab"),
            data=f'{{"name": "{chance.choice(("Red Kettle", "blue", "x" * chance.randrange(300)))}"}}',
        )
        for number in numbers
    ]
    await put(engine, rows)
    newest = rows[::-1]
    assert await all_back(engine, EVERYTHING, "", limit) == [row["sequence"] for row in newest]
    filters = Filters.model_validate({"action": ["update"], "entity_id": ["a"]})
    passing = [row for row in newest if (row["action"], row["entity_id"]) == ("update", "a")]
    assert await all_back(engine, filters, "", limit) == [row["sequence"] for row in passing]
    red = [row["sequence"] for row in newest if "Red" in row["data"]]
    assert await all_back(engine, EVERYTHING, "red kettle", limit) == red
    red = [row["sequence"] for row in passing if "Red" in row["data"]]
    assert await all_back(engine, filters, "RED", limit) == red


async def test_a_search_reads_no_more_bytes_than_it_may(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "SEARCHED_BYTES", 1000)
    await put(engine, [event_row(number, data='"' + "x" * 398 + '"') for number in range(1, 11)])
    async with reading(engine) as connection:
        look = await queries.look_back(connection, EVERYTHING, "x", after=0, before=10, limit=100)
    assert ([event.sequence for event in look.events], look.reached, look.more) == ([10, 9, 8], 8, True)


async def test_changes_too_long_for_a_list_are_left_out(engine: AsyncEngine) -> None:
    await put(engine, [event_row(1, changes="[" + " " * queries._LONGEST_CHANGES + "]"), event_row(2, changes="[]")])
    async with reading(engine) as connection:
        look = await queries.look_back(connection, EVERYTHING, "", after=0, before=2, limit=100)
    assert [event.changes for event in look.events] == ["[]", None]


async def test_removed_events_that_are_only_kept_for_their_entities_are_shown_nowhere(engine: AsyncEngine) -> None:
    await put(engine, [event_row(number) for number in range(1, 6)])
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE retention SET oldest_after = 2"))
    async with reading(engine) as connection:
        look = await queries.look_back(connection, EVERYTHING, "", after=0, before=5, limit=100)
        assert ([event.sequence for event in look.events], look.more) == ([5, 4, 3], False)
        coming = await queries.next_events(connection, EVERYTHING, "", after=0, upto=5)
        assert [event.sequence for event in coming] == [3, 4, 5]
        history = await queries.history(connection, EntityType.PRODUCT, "1001", after=2, before=LAST, limit=100)
        assert [event.sequence for event in history] == [5, 4, 3]
        positions = await queries.positions(connection, EntityType.PRODUCT, "1001", after=2, limit=100)
        assert [sequence for sequence, _ in positions] == [3, 4, 5]


@pytest.fixture
async def many(engine: AsyncEngine) -> int:
    """A large feed of few entities; the number of its last event."""
    count = 60_000
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO events (sequence, id, entity_type, entity_id, action, action_inferred, stale, source,"
                " received_at, changed, changes, data, entity_version, entity_sequence)"
                " SELECT n, gen_random_uuid(), 'product', (n % 50)::text, 'update', false, false, 'webhook',"
                " now(), '{price}', '[]', repeat('a kettle ', 30), 1, n FROM generate_series(1, :count) AS n"
            ),
            {"count": count},
        )
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE events"))
    return count


async def test_a_look_back_costs_the_same_wherever_it_begins_and_whatever_passes(
    engine: AsyncEngine, many: int
) -> None:
    a_window = queries.EXAMINED // 18  # this many pages hold its events
    for before in (many, many // 2, many // 6):
        for filters, wanted in (
            (EVERYTHING, "kettle"),
            (EVERYTHING, "not to be found"),
            (Filters.model_validate({"action": ["delete"]}), ""),
            (Filters.model_validate({"entity_id": ["7"]}), "not to be found"),
            (Filters.model_validate({"changed": ["name"]}), ""),
        ):

            async def look(
                connection: AsyncConnection, before: int = before, filters: Filters = filters, wanted: str = wanted
            ) -> None:
                await queries.look_back(connection, filters, wanted, after=0, before=before, limit=50)

            assert await pages_read(engine, look) < 4 * a_window, (before, filters, wanted)


async def test_history_and_positions_are_found_in_the_index_of_the_entity(engine: AsyncEngine, many: int) -> None:
    async def look(connection: AsyncConnection) -> None:
        history = await queries.history(connection, EntityType.PRODUCT, "7", after=0, before=many - 1000, limit=30)
        assert len(history) == 30

    async def positions(connection: AsyncConnection) -> None:
        assert len(await queries.positions(connection, EntityType.PRODUCT, "7", after=0, limit=500)) == 500

    assert await pages_read(engine, look) < 100
    assert await pages_read(engine, positions) < 600  # each of the 500 is on a page of its own; there are 3,000


async def test_history_and_positions_end_where_retention_has_been(engine: AsyncEngine) -> None:
    await put(engine, [event_row(number, entity_id="7") for number in range(1, 6)])
    async with reading(engine) as connection:
        history = await queries.history(connection, EntityType.PRODUCT, "7", after=2, before=4, limit=30)
        positions = await queries.positions(connection, EntityType.PRODUCT, "7", after=2, limit=30)
    assert [event.sequence for event in history] == [4, 3]
    assert [sequence for sequence, _ in positions] == [3, 4, 5]


async def test_the_count_of_parked_events_stops_just_beyond_what_is_shown(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MOST_COUNTED", 3)
    consumer = {"name": "search", "position": 0, "updated_at": utc_now()}
    parked = [{"consumer": "search", "sequence": number, "reason": "no", "parked_at": utc_now()} for number in range(9)]
    async with engine.begin() as connection:
        await connection.execute(insert(consumers), consumer)
        await connection.execute(insert(parked_events), parked[:2])
    async with reading(engine) as connection:
        assert await queries.parked(connection) == 2
    async with engine.begin() as connection:
        await connection.execute(insert(parked_events), parked[2:])
    async with reading(engine) as connection:
        assert await queries.parked(connection) == 4


async def test_the_newest_quarantined_deliveries_are_found_by_their_index(engine: AsyncEngine) -> None:
    await a_delivery(engine, status="quarantined")
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO deliveries SELECT gen_random_uuid(), entity_type, 'accepted', received_at, client, proof,"
                " headers, body, data_offset, size, reading, reason, NULL, NULL FROM deliveries, generate_series(1, 20000)"
            )
        )
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE deliveries"))

    async def look(connection: AsyncConnection) -> None:
        page = await deliveries.page(connection, DeliveryStatus.QUARANTINED, after=None, limit=50, newest_first=True)
        assert len(page.deliveries) == 1

    assert await pages_read(engine, look) < 50


def counts(**slower_than: int) -> list[int]:
    """Latencies: how many callbacks stand at each place of the bounds."""
    found = [0] * (len(BOUNDS) + 1)
    for place, count in slower_than.items():
        found[int(place.removeprefix("at"))] = count
    return found


async def test_minutes_are_added_up_to_stretches(engine: AsyncEngine) -> None:
    start = datetime(2026, 11, 24, 10, tzinfo=UTC)

    def row(minute: int, outcome: Outcome, entity_type: str, latencies: list[int]) -> dict[str, object]:
        at = start + timedelta(minutes=minute)
        return {
            "minute": at, "entity_type": entity_type, "outcome": str(outcome),
            "count": sum(latencies), "latencies": latencies,
        }  # fmt: skip

    rows = [
        row(-1, Outcome.ACCEPTED, "product", counts(at0=1)),
        row(0, Outcome.ACCEPTED, "product", counts(at2=50)),
        row(14, Outcome.ACCEPTED, "product", counts(at2=40, at9=2)),
        row(14, Outcome.ACCEPTED, "brand", counts(at2=7)),
        row(14, Outcome.QUARANTINED, "product", counts(at2=1)),
        row(14, Outcome.REFUSED, "product", counts(at19=100)),
        row(30, Outcome.PUT_OFF, "product", counts(at19=3)),
        row(45, Outcome.ACCEPTED, "product", counts(at0=1)),
    ]
    async with engine.begin() as connection:
        await connection.execute(insert(callback_minutes), rows)
    step = timedelta(minutes=15)
    async with reading(engine) as connection:
        found = await queries.stretches(connection, since=start, step=step, count=3)
    assert found == [
        Stretch(start, {Outcome.ACCEPTED: 99, Outcome.QUARANTINED: 1, Outcome.REFUSED: 100}, 3.0, 50.0),
        Stretch(start + step, {}, None, None),
        Stretch(start + 2 * step, {Outcome.PUT_OFF: 3}, None, None),
    ]


def test_a_quantile_is_the_bound_within_which_that_share_was_answered() -> None:
    assert quantile([], 0.5) is None
    assert quantile(counts(), 0.5) is None
    assert quantile(counts(at0=99, at5=1), 0.99) == 1.0
    assert quantile(counts(at0=98, at5=2), 0.99) == 10.0
    assert quantile(counts(at20=1), 0.5) == 5000.0


async def kept(engine: AsyncEngine) -> dict[tuple[str, str], tuple[int, list[int]]]:
    async with reading(engine) as connection:
        rows = await connection.execute(text("SELECT entity_type, outcome, count, latencies FROM callback_minutes"))
        return {(row[0], row[1]): (row[2], row[3]) for row in rows}


@pytest.fixture
def at_ten(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """The tally's clock stands still."""
    at = datetime(2026, 11, 24, 10, 0, 30, tzinfo=UTC)
    monkeypatch.setattr("app.intake.tally.time.time", at.timestamp)
    return at


@pytest.mark.usefixtures("at_ten")
async def test_what_replicas_count_comes_together(engine: AsyncEngine) -> None:
    one, other = Tally(engine), Tally(engine)
    one.note(EntityType.PRODUCT, Outcome.ACCEPTED, 0.0025)
    other.note(EntityType.PRODUCT, Outcome.ACCEPTED, 0.0035)
    other.note(EntityType.PRODUCT, Outcome.REFUSED, 60.0)
    await one.flush()
    await other.flush()
    one.note(EntityType.PRODUCT, Outcome.ACCEPTED, 0.0025)
    await one.flush()
    await one.flush()
    assert await kept(engine) == {
        ("product", "accepted"): (3, counts(at2=2, at3=1)),
        ("product", "refused"): (1, counts(at20=1)),
    }


@pytest.mark.usefixtures("at_ten")
async def test_what_was_counted_while_postgres_was_away_is_not_lost(engine: AsyncEngine) -> None:
    away = create_engine("postgresql://nobody@127.0.0.1:1/nothing")
    counted = Tally(away)
    counted.note(EntityType.PRODUCT, Outcome.ACCEPTED, 0.0)
    await counted.flush()
    counted.note(EntityType.PRODUCT, Outcome.ACCEPTED, 0.0)
    await counted.flush()
    counted.engine = engine
    await counted.flush()
    assert await kept(engine) == {("product", "accepted"): (2, counts(at0=2))}
    await away.dispose()


@pytest.mark.usefixtures("at_ten")
async def test_what_is_held_in_memory_is_bounded(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_MOST_ROWS", 2)
    counted = Tally(engine)
    for entity_type in (EntityType.PRODUCT, EntityType.BRAND, EntityType.CATEGORY, EntityType.PRODUCT):
        counted.note(entity_type, Outcome.ACCEPTED, 0.0)
    await counted.flush()
    assert {name: count for name, (count, _) in (await kept(engine)).items()} == {
        ("product", "accepted"): 2,
        ("brand", "accepted"): 1,
    }


async def test_minutes_that_are_too_old_are_forgotten(engine: AsyncEngine, at_ten: datetime) -> None:
    counted = Tally(engine)
    counted.note(EntityType.PRODUCT, Outcome.ACCEPTED, 0.0)
    await counted.flush()
    await counted.prune(at_ten + tally.KEPT - timedelta(minutes=1))
    assert await kept(engine)
    await counted.prune(at_ten + tally.KEPT)
    assert not await kept(engine)
