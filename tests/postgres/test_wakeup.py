"""The wake-up against a real Postgres: nobody waits longer than needed, and a lost connection is replaced."""

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.wakeup import FEED_CHANNEL, Wakeup
from app.domain.values import Action, EntityType, Entry, Reading
from app.ledger.writer import Writer

SOON = 10.0
"""Seconds: far below what is waited for here, far above what it takes."""

LONG = 100.0


async def notify(engine: AsyncEngine, channel: str = FEED_CHANNEL) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_notify(:channel, '1')"), {"channel": channel})


async def connections(engine: AsyncEngine) -> list[int]:
    """Process ids of the connections that listen."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%wakeup%' AND datname = current_database()"
    async with engine.begin() as connection:
        return list((await connection.execute(text(query))).scalars())


async def wait_all(wakeup: Wakeup, seen: int, waiters: int = 1, within: float = SOON) -> None:
    async with asyncio.timeout(within):
        await asyncio.gather(*(wakeup.wait(seen, timeout=LONG) for _ in range(waiters)))


async def test_a_commit_of_the_ledger_wakes_who_waits(database: str) -> None:
    async with Wakeup(database) as wakeup, Writer(database) as writer:
        await wakeup.listening()
        seen = wakeup.generation
        await writer.commit(Entry(EntityType.PRODUCT, Reading("1001", Action.CREATE), utc_now()))
        await wait_all(wakeup, seen)


async def test_one_notification_wakes_all_who_wait_over_one_connection(database: str, engine: AsyncEngine) -> None:
    async with Wakeup(database) as wakeup:
        await wakeup.listening()
        waiting = asyncio.create_task(wait_all(wakeup, wakeup.generation, waiters=100))
        await notify(engine)
        await waiting
        assert len(await connections(engine)) == 1


async def test_news_between_the_query_and_the_wait_is_not_lost(database: str, engine: AsyncEngine) -> None:
    async with Wakeup(database) as wakeup:
        await wakeup.listening()
        seen = wakeup.generation
        await notify(engine)
        await wait_all(wakeup, seen)
        assert wakeup.generation > seen
        await wait_all(wakeup, seen)


async def test_a_wait_ends_by_the_clock_when_there_is_no_news(database: str, engine: AsyncEngine) -> None:
    async with Wakeup(database) as wakeup:
        await wakeup.listening()
        seen = wakeup.generation
        await notify(engine, channel="another")
        await wakeup.wait(seen, timeout=0.05)
        assert wakeup.generation == seen


async def test_a_lost_connection_is_replaced_and_what_may_have_been_missed_is_announced(
    database: str, engine: AsyncEngine
) -> None:
    async with Wakeup(database) as wakeup:
        await wakeup.listening()
        [lost] = await connections(engine)
        seen = wakeup.generation
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": lost})
        await wait_all(wakeup, seen)  # nobody notified: it was the new connection
        [new] = await connections(engine)
        assert new != lost
        seen = wakeup.generation
        await notify(engine)
        await wait_all(wakeup, seen)


async def test_a_connection_that_died_silently_is_noticed(database: str, engine: AsyncEngine) -> None:
    """The heartbeat goes on while all is well, on the one connection."""
    async with Wakeup(database, heartbeat=0.01) as wakeup:
        await wakeup.listening()
        before = await connections(engine)
        await wakeup.wait(wakeup.generation, timeout=0.1)
        assert await connections(engine) == before
        query = text("SELECT query FROM pg_stat_activity WHERE pid = :pid")
        async with engine.begin() as connection:
            assert await connection.scalar(query, {"pid": before[0]}) == "SELECT 1"


async def test_while_postgres_is_away_waiters_just_wait() -> None:
    async with Wakeup("postgresql://nobody@127.0.0.1:1/nothing") as wakeup:
        await wakeup.wait(wakeup.generation, timeout=0.05)


async def test_draining_lets_everybody_go_now_and_later(database: str) -> None:
    async with Wakeup(database) as wakeup:
        waiting = asyncio.create_task(wait_all(wakeup, wakeup.generation, waiters=3))
        await asyncio.sleep(0)
        wakeup.drain()
        await waiting
        await wait_all(wakeup, wakeup.generation)


async def test_the_connection_is_given_back_at_the_end(database: str, engine: AsyncEngine) -> None:
    async with Wakeup(database) as wakeup:
        await wakeup.listening()
    async with asyncio.timeout(SOON):
        while await connections(engine):
            await asyncio.sleep(0.01)
