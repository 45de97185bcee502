"""Consumers against a real Postgres: lag that is counted right, and at a bounded price on many events."""

import asyncio
import random
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.engine import create_engine
from app.db.tables import events
from app.feed import consumers
from app.feed.consumer_schemas import Ack, Park
from app.feed.filters import Filters
from tests.builders import event_row

MANY = 240_000


async def stand_at(engine: AsyncEngine, positions: dict[str, int]) -> None:
    async with engine.begin() as connection:
        rows = [{"name": name, "position": position, "at": utc_now()} for name, position in positions.items()]
        await connection.execute(
            text("INSERT INTO consumers (name, position, updated_at) VALUES (:name, :position, :at)"), rows
        )


async def lags(engine: AsyncEngine) -> dict[str, int]:
    listed = await consumers.listed(engine, kept_for=None)
    assert len({one.name for one in listed}) == len(listed)
    return {one.name: one.lag for one in listed}


@pytest.fixture
async def with_holes(engine: AsyncEngine) -> list[int]:
    """The numbers of some events, with holes between them and before the first."""
    numbers = sorted(random.Random(5).sample(range(20, 200), 60))
    async with engine.begin() as connection:
        await connection.execute(insert(events), [event_row(number) for number in numbers])
    return numbers


async def test_lag_is_the_count_of_events_behind_whatever_the_positions(
    engine: AsyncEngine, with_holes: list[int]
) -> None:
    chance = random.Random(11)
    positions = {f"c{number}": chance.randrange(with_holes[-1] + 1) for number in range(40)} | {
        "at the beginning": 0,
        "at the head": with_holes[-1],
        "at the head too": with_holes[-1],
    }
    await stand_at(engine, positions)
    counted = {name: sum(number > position for number in with_holes) for name, position in positions.items()}
    assert await lags(engine) == counted
    assert {name: (await consumers.one(engine, name, kept_for=None)).lag for name in positions} == counted


async def test_lag_further_back_than_is_counted_takes_every_number_for_an_event(
    engine: AsyncEngine, with_holes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "COUNTED", 50)
    first, head = with_holes[0], with_holes[-1]
    horizon = head - 50
    counted = sum(number > horizon for number in with_holes)
    positions = {"within": horizon, "just beyond": horizon - 1, "far": first + 3, "before all": 0}
    await stand_at(engine, positions)
    assert await lags(engine) == {
        "within": counted,
        "just beyond": counted + 1,
        "far": counted + horizon - first - 3,
        "before all": counted + horizon - (first - 1),
    }


@pytest.fixture
async def many(engine: AsyncEngine) -> int:
    """Many events, a sixth of the numbers being holes, as they look once Postgres has tidied up; the number of the last."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(
            text(
                "INSERT INTO events (sequence, id, entity_type, entity_id, action, action_inferred, stale, source,"
                " received_at, changed, changes, data, entity_version, entity_sequence)"
                " SELECT n + n / 5, gen_random_uuid(), 'product', n % 1000, 'update', false, false, 'webhook', now(),"
                " '{price}', '[]', repeat('x', 300), n, n FROM generate_series(1, :many) n"
            ),
            {"many": MANY},
        )
        await connection.execute(text("VACUUM ANALYZE events"))
        return await connection.scalar(select(func.max(events.c.sequence))) or 0


async def read_of_events(database: str) -> dict[str, int]:
    """What Postgres has read of the events until now: rows by walking the table, entries of the index of their numbers."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    engine = create_engine(database)
    async with engine.connect() as connection:
        while await connection.scalar(text(others)):
            await asyncio.sleep(0.01)
        query = (
            "SELECT t.seq_tup_read AS rows_walked, i.idx_tup_read AS entries FROM pg_stat_user_tables t"
            " JOIN pg_stat_user_indexes i ON i.relid = t.relid AND i.indexrelname = 'events_pkey'"
            " WHERE t.relname = 'events'"
        )
        row = (await connection.execute(text(query))).one()
    await engine.dispose()
    return dict(row._mapping)


async def price(database: str, engine: AsyncEngine, work: Any) -> dict[str, int]:
    """What `work` makes Postgres read of the events. A backend has reported it when it has ended."""
    await engine.dispose()
    before = await read_of_events(database)
    await work
    await engine.dispose()
    after = await read_of_events(database)
    return {name: after[name] - before[name] for name in after}


async def test_what_consumers_cost_does_not_grow_with_the_feed(database: str, engine: AsyncEngine, many: int) -> None:
    """Nothing walks through the table, and what is counted for a lag is counted once for all consumers."""
    await stand_at(engine, {f"c{number}": number * many // 200 for number in range(200)} | {"near": many - 30})
    for work, least, most in [
        (consumers.listed(engine, kept_for=None), consumers.COUNTED // 2, consumers.COUNTED + 1_000),
        (consumers.one(engine, "c0", kept_for=None), consumers.COUNTED // 2, consumers.COUNTED + 10),
        (consumers.one(engine, "near", kept_for=None), 20, 100),
        (consumers.page(engine, "near", Filters(), limit=10, lease=60), 10, 100),
        (consumers.acknowledge(engine, "c199", Ack(after=many - 20), kept_for=None), 10, 100),
        (consumers.put(engine, "new", "latest", kept_for=None), 1, 100),
        (consumers.park(engine, "near", Park(sequence=many, reason="poison")), 1, 100),
        (consumers.parked(engine, "near"), 1, 100),
    ]:
        spent = await price(database, engine, work)
        assert spent["rows_walked"] == 0, work
        assert least <= spent["entries"] <= most, (work, spent)
    assert (await consumers.one(engine, "near", kept_for=None)).lag == sum(
        (n + n // 5) > many - 30 for n in range(1, MANY + 1)
    )
