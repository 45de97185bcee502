"""The state at a point of the past is the state that was there then: on a real ledger, whatever came in whatever order."""

from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.engine import reading
from app.domain.values import Action, Delivery, EntityType, Entry, JsonText, Reading
from app.entities import queries
from app.feed import queries as feed
from app.ledger.writer import Writer
from tests.postgres.plans import pages_read

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


def an_entry(chance: Random, entity_id: str, received_at: datetime) -> Entry:
    """Anything that may come for an entity: late, without a time, without data, read long after it came."""
    told_at = received_at - timedelta(minutes=chance.choice([0, 0, 0, 5]))
    delivery = Delivery(EntityType.PRODUCT, told_at, "127.0.0.1", (), b"{}", "header:x-secret")
    what = Reading(
        entity_id=entity_id,
        action=chance.choice([*Action, Action.UPDATE, None]),
        data=chance.choice([None, JsonText(b'{"a":%d}' % chance.randrange(3))]),
        occurred_at=chance.choice([None, START + timedelta(seconds=chance.randrange(6))]),
    )
    return Entry(EntityType.PRODUCT, what, received_at, delivery)


async def test_every_state_of_the_past_is_the_one_that_was_there(database: str, engine: AsyncEngine) -> None:
    """After each commit the state is noted, to the last field; in the end all of them are asked for again."""
    chance = Random(7)
    noted: list[tuple[str, int, datetime, bytes | None]] = []
    ids = [str(number) for number in range(12)]
    async with Writer(database) as writer:
        for number in range(240):
            received_at = START + timedelta(hours=1, seconds=number)
            entity_id = chance.choice(ids)
            await writer.commit(an_entry(chance, entity_id, received_at))
            async with reading(engine) as connection:
                position = await feed.head(connection)
                now = await queries.state(connection, EntityType.PRODUCT, entity_id)
                noted.append((entity_id, position, received_at, await _shown(engine, now)))

    repeated_deletes = 0
    for number, (entity_id, position, received_at, expected) in enumerate(noted):
        next_time = noted[number + 1][2] if number + 1 < len(noted) else received_at + timedelta(days=1)
        for point in (position, received_at, next_time - timedelta(microseconds=1)):
            async with reading(engine) as connection:
                then = await queries.state_as_of(connection, EntityType.PRODUCT, entity_id, point)
            assert await _shown(engine, then) == expected, (number, point)
        repeated_deletes += number > 0 and noted[number - 1][1] == position
    assert repeated_deletes, "what makes no event should be among it"


async def _shown(engine: AsyncEngine, state: queries.State | None) -> bytes | None:
    if state is None:
        return None
    async with reading(engine) as connection:
        return msgspec.json.encode((state.tag, await queries.with_data(connection, state)))


async def test_before_an_entity_was_seen_there_is_nothing(database: str, engine: AsyncEngine) -> None:
    async with Writer(database) as writer:
        await writer.commit(an_entry(Random(1), "other", START))
        await writer.commit(an_entry(Random(1), "1", START + timedelta(seconds=1)))
    async with reading(engine) as connection:
        position = await feed.head(connection)
        for point in (0, position - 1, START, START + timedelta(microseconds=999_999)):
            assert await queries.state_as_of(connection, EntityType.PRODUCT, "1", point) is None
        for entity_type, entity_id in ((EntityType.BRAND, "1"), (EntityType.PRODUCT, "2")):
            assert await queries.state_as_of(connection, entity_type, entity_id, position) is None


async def test_a_point_of_a_long_history_is_found_without_going_through_it(engine: AsyncEngine) -> None:
    """10,000 events of one entity: a few pages are read, by position or by time, wherever the point lies."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                """
                INSERT INTO entities (entity_type, entity_id, version, sequence, data_sequence, created_at, updated_at,
                                      heard_at)
                VALUES ('product', '1', 10000, 10000, 10000, now(), now(), now())
                """
            )
        )
        await connection.execute(
            text(
                """
                INSERT INTO events (sequence, id, entity_type, entity_id, action, action_inferred, stale, source,
                    received_at, changed, changes, data, entity_version, entity_sequence, entity_data_sequence)
                SELECT n, gen_random_uuid(), 'product', '1', 'update', false, false, 'webhook',
                    CAST(:start AS timestamptz) + n * interval '1 second', '{}', '[]', repeat('x', 2000), n, n, n
                FROM generate_series(1, 10000) n
                """
            ),
            {"start": START},
        )
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE events, entities"))
    points: list[int | datetime] = [9_999, 5_000, 1, START + timedelta(seconds=9_999), START + timedelta(seconds=1)]
    for point in points:
        pages = await pages_read(engine, partial(_state_of_1, point))
        assert pages < 30, point


async def _state_of_1(point: int | datetime, connection: AsyncConnection) -> object:
    return await queries.state_as_of(connection, EntityType.PRODUCT, "1", point)
