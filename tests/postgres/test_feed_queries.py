"""Pages of the feed against a real Postgres: every way to find events finds the same ones."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.engine import Lookups, driver_of, reading
from app.db.tables import events
from app.domain.values import Action, EntityType, Source
from app.feed import queries
from app.feed.filters import Filters
from app.ids import new_id
from tests.builders import NOW
from tests.postgres.plans import pages_read

COUNT = 90


def some_events(chance: random.Random) -> list[dict[str, Any]]:
    """Events with holes between their numbers; some values are frequent, some rare, some only at the beginning."""
    return [
        {
            "sequence": 3 * number + chance.randrange(3),
            "id": new_id(),
            "entity_type": "brand" if number < COUNT // 4 else chance.choice(["product", "category"]),
            "entity_id": str(chance.randrange(10)),
            "action": chance.choice(["create", "update", "update", "update"]) if number != COUNT // 2 else "delete",
            "action_inferred": False,
            "stale": chance.random() < 0.2,
            "source": "webhook",
            "received_at": NOW + timedelta(seconds=number // 3),
            "changed": chance.sample(["price", "stock", "name"], chance.randrange(3)),
            "changes": "[]",
            "entity_version": 1,
            "entity_sequence": number,
        }
        for number in range(1, COUNT + 1)
    ]


def passes(event: dict[str, Any], filters: Filters) -> bool:
    return (
        (not filters.entity_type or event["entity_type"] in filters.entity_type)
        and (not filters.entity_id or event["entity_id"] in filters.entity_id)
        and (not filters.action or event["action"] in filters.action)
        and (not filters.changed or not set(filters.changed).isdisjoint(event["changed"]))
        and (filters.since is None or event["received_at"] >= filters.since)
        and (filters.until is None or event["received_at"] < filters.until)
        and (filters.include_stale or not event["stale"])
    )


async def follow(engine: AsyncEngine, filters: Filters, *, after: int, limit: int) -> list[int]:
    """The numbers of all events that a reader gets who goes on until there is no more."""
    seen: list[int] = []
    while True:
        async with reading(engine) as connection:
            page = await queries.page(connection, filters, after=after, limit=limit)
            assert page.after >= after
            assert not page.has_more or len(page.events) == limit
            head = await queries.head(connection)
        seen += [event.sequence for event in page.events]
        after = page.after
        if not page.has_more:
            assert after == head
            return seen


@pytest.mark.parametrize("walked", [1, 40, 10_000])
async def test_a_reader_gets_every_wanted_event_once_and_in_order(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, walked: int
) -> None:
    """However far the feed is walked in order before the indexes are asked."""
    monkeypatch.setattr(queries, "_LEAST_WALKED", walked)
    monkeypatch.setattr(queries, "_WALKED_PER_EVENT", 0)
    chance = random.Random(7)
    rows = some_events(chance)
    async with engine.begin() as connection:
        await connection.execute(insert(events), rows)
    for _ in range(50):
        filters = Filters.model_validate(
            {
                "entity_type": tuple(chance.sample(["product", "category", "brand"], chance.choice([0, 0, 1, 2]))),
                "entity_id": tuple(map(str, chance.sample(range(12), chance.choice([0, 0, 1, 3])))),
                "action": tuple(chance.sample(["create", "update", "delete"], chance.choice([0, 0, 1, 2]))),
                "changed": tuple(chance.sample(["price", "stock", "nothing"], chance.choice([0, 0, 1, 2]))),
                "since": chance.choice([None, None, NOW + timedelta(seconds=chance.randrange(COUNT // 2))]),
                "until": chance.choice([None, None, NOW + timedelta(seconds=chance.randrange(COUNT // 2))]),
                "include_stale": chance.random() < 0.5,
            }
        )
        after = chance.choice([0, 0, 50, 200])
        limit = chance.choice([4, 10, 30, 1000])
        wanted = [row["sequence"] for row in rows if row["sequence"] > after and passes(row, filters)]
        assert await follow(engine, filters, after=after, limit=limit) == wanted, filters


async def fill(engine: AsyncEngine, first: int, last: int) -> None:
    """Updates of one product each, a second apart, with the numbers from `first` to `last`."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                """
                INSERT INTO events (sequence, id, entity_type, entity_id, action, action_inferred, stale, source,
                    received_at, changed, changes, data, entity_version, entity_sequence)
                SELECT n, gen_random_uuid(), 'product', n::text, 'update', false, false, 'webhook',
                    CAST(:start AS timestamptz) + n * interval '1 second', '{}', '[]', repeat('x', 500), 1, n
                FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) n
                """
            ),
            {"start": NOW, "first": first, "last": last},
        )


@pytest.fixture
async def long_feed(engine: AsyncEngine) -> AsyncEngine:
    await fill(engine, 1, 20_000)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE events"))
    return engine


@pytest.mark.parametrize("statement", [queries._PAGE_OF_ALL, queries._WRITTEN_PAGE_OF_ALL], ids=["records", "written"])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_page_looks_at_its_own_events_only_whatever_plan_is_kept(
    long_feed: AsyncEngine, mode: str, statement: str
) -> None:
    """A plan that is kept has to do for every position and limit, of which Postgres then knows nothing."""
    async with reading(long_feed) as connection:
        driver = await driver_of(connection)
        await driver.execute(f"SET LOCAL plan_cache_mode = {mode}")
        await driver.execute(f"PREPARE page AS {statement}")
        for after in (0, 10_000, 19_900):
            asked = f"EXECUTE page({after}, false, '{{}}', 100, 16000000)"
            [plan] = await driver.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {asked}")
            assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 600, (after, plan)


async def test_a_page_looks_at_its_own_events_only_also_where_it_was_planned_for_one(
    engine: AsyncEngine, database: str
) -> None:
    """Postgres plans a statement once and keeps the plan, until it has counted the rows anew: here never."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("ALTER TABLE events SET (autovacuum_enabled = off)"))
        await fill(engine, 1, 1)
        await connection.execute(text("VACUUM ANALYZE events"))
        async with Lookups(database) as lookups:
            for count in range(1, 5):
                page = await queries.page_of_all(lookups, Filters(), after=None, limit=1)
                assert len(page.events) == 1
                await fill(engine, 1000 * count, 1000 * count + 999)
        passed = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'events'"
        asked = "SELECT seq_scan + idx_scan > 4 FROM pg_stat_user_tables WHERE relname = 'events'"
        while not await connection.scalar(text(asked)):  # what a connection counted is told when it ends
            await asyncio.sleep(0.01)
        assert await connection.scalar(text(passed)) < 500


async def test_a_time_is_found_as_a_position_however_long_the_feed_is(long_feed: AsyncEngine) -> None:
    """A page that begins or ends at a time costs what one that begins at a position costs."""
    by_position = await pages_read(long_feed, partial(_page, Filters(action=(Action.UPDATE,)), 10_000))
    for number in (0, 10_000, 19_990, 30_000):
        moment = NOW + timedelta(seconds=number)
        for filters in (Filters(since=moment), Filters(until=moment), Filters(since=moment, until=moment)):
            assert await pages_read(long_feed, partial(_page, filters, 0)) < by_position + 10, filters


async def _page(filters: Filters, after: int, connection: AsyncConnection) -> object:
    return await queries.page(connection, filters, after=after, limit=100)


_ODD_TEXTS = (
    "1001",
    'a"b',
    "back\\slash",
    "/",
    "\x01\x1f\x7f\b\f\n\r\t",
    "größer",
    "\u2028",
    "\U0001f511",
    "'; --",
    "{}",
    ",",
)
_TIMES = (
    None,
    NOW,
    NOW.replace(microsecond=250_000),
    NOW.replace(microsecond=7),
    datetime(1, 1, 2, 3, 4, 5, tzinfo=UTC),
    datetime(9999, 12, 30, 23, 59, 59, 999_999, tzinfo=UTC),
)
_DATA = (None, "null", '{"id":1,"name":"größer","n":1.10}', '{ "a" : "\\u0000\\ud800" }', "[1e400]", '"\\\\"')


async def test_postgres_writes_an_event_to_the_letter_as_it_is_written_here(
    engine: AsyncEngine, lookups: Lookups
) -> None:
    chance = random.Random(11)
    rows = [
        {
            **row,
            "entity_type": chance.choice([str(one) for one in EntityType]),
            "entity_id": chance.choice(_ODD_TEXTS),
            "action": chance.choice([str(one) for one in Action]),
            "action_inferred": chance.random() < 0.5,
            "source": chance.choice([str(one) for one in Source]),
            "occurred_at": chance.choice(_TIMES),
            "received_at": chance.choice(_TIMES[1:]),
            "delivery_id": chance.choice([None, new_id()]),
            "data": chance.choice(_DATA),
            "changed": chance.sample(_ODD_TEXTS, chance.randrange(4)),
            "changes": chance.choice(["[]", '[{"op":"replace","path":"/price","from":52.0,"to":49.0}]']),
        }
        for row in some_events(chance)
    ]
    async with engine.begin() as connection:
        await connection.execute(insert(events), rows)
    for filters in (Filters(), Filters(include_stale=True)):
        for after, limit in ((None, 1000), (0, 7), (100, 30), (COUNT * 4, 10)):
            async with reading(engine) as connection:
                page = await queries.page(connection, filters, after=after, limit=limit)
            written = await queries.page_of_all(lookups, filters, after=after, limit=limit)
            assert msgspec.json.encode(written) == msgspec.json.encode(page)
