"""Thin webhooks: what a callback did not carry is fetched afterwards, once, and follows as an event of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.wakeup import Wakeup
from app.ledger.writer import open_ledger_connection
from app.reconciliation import fetch
from app.reconciliation.fetch import Fetcher
from tests.listed_jasper import World, a_world


@pytest.fixture
async def world(database: str, engine: AsyncEngine) -> AsyncIterator[World]:
    async with a_world(database, engine) as world:
        yield world


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await open_ledger_connection(database, patience=10)
    yield connection
    await connection.close()


@asynccontextmanager
async def fetcher(world: World, database: str) -> AsyncIterator[Fetcher]:
    async with world.reconciler() as reconciler, Wakeup(database) as wakeup:
        yield Fetcher(database, reconciler.jasper, {}, wakeup)


async def fetch_all(world: World, database: str, connection: asyncpg.Connection) -> float:
    async with fetcher(world, database) as fetching:
        await fetching.note_all(connection)
        return await fetching.fetch_due(connection)


async def thin(world: World, event: str, entity_id: int, **around: Any) -> None:
    await world.told(event, {"id": entity_id}, **around)


async def pending(world: World) -> dict[str, int]:
    rows = await world.sql.fetch("SELECT entity_id, attempts FROM pending_fetches")
    return {row["entity_id"]: row["attempts"] for row in rows}


async def test_the_state_follows_the_notification_as_its_own_event(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    """Also where the notification names a time that is later than the entity's."""
    world.changed(1, price=1)
    await thin(world, "created", 1, timestamp=(world.now + timedelta(seconds=9)).isoformat())
    await fetch_all(world, database, connection)
    [told, fetched] = await world.events()
    assert (told["action"], told["data"], told["source"]) == ("create", None, "webhook")
    assert (fetched["action"], fetched["source"], fetched["stale"], fetched["delivery_id"]) == (
        "update", "reconciliation", False, None,
    )  # fmt: skip
    assert await world.state() == world.jasper.products
    assert await pending(world) == {}


async def test_many_notifications_of_one_entity_make_one_fetch(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    world.changed(1, price=1)
    for _ in range(5):
        await thin(world, "updated", 1)
    await fetch_all(world, database, connection)
    await fetch_all(world, database, connection)
    assert world.jasper.singles_read == ["1"]


async def test_what_carries_its_data_or_is_deleted_is_not_fetched(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    await world.told("created", world.changed(1))
    await thin(world, "created", 2)
    await thin(world, "deleted", 2)
    await thin(world, "deleted", 3)
    await fetch_all(world, database, connection)
    assert world.jasper.calls == []


async def test_a_state_that_is_known_already_makes_no_event(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    await world.told("created", world.changed(1))
    await thin(world, "updated", 1)
    head = await world.head()
    await fetch_all(world, database, connection)
    assert world.jasper.singles_read == ["1"]
    assert await world.head() == head
    assert await pending(world) == {}


async def test_a_404_is_no_delete_and_is_given_up_after_a_while(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    await thin(world, "created", 1)
    for attempt in range(1, fetch.ATTEMPTS):
        await fetch_all(world, database, connection)
        assert await pending(world) == {"1": attempt}
        assert await world.sql.fetchval("SELECT due_at FROM pending_fetches") > utc_now()
        await world.sql.execute("UPDATE pending_fetches SET due_at = now() - interval '1 second'")
    await fetch_all(world, database, connection)
    assert await pending(world) == {}
    assert [event["action"] for event in await world.events()] == ["create"]
    assert await world.sql.fetchval("SELECT deleted_at FROM entities") is None


async def test_trouble_at_jasper_is_waited_out_for_all_and_forgets_none(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    for number in (1, 2):
        world.changed(number)
        await thin(world, "created", number)
    world.jasper.trouble = lambda _: httpx.Response(429, headers={"Retry-After": "77"})
    assert await fetch_all(world, database, connection) == 77
    assert await pending(world) == {"1": 0, "2": 0}
    assert len(set(world.jasper.singles_read)) == 1
    world.jasper.trouble = lambda _: None
    await world.sql.execute("UPDATE pending_fetches SET due_at = now() - interval '1 second'")  # 77 s later
    assert await fetch_all(world, database, connection) == 0
    assert await world.state() == world.jasper.products


@pytest.mark.parametrize("trouble", [httpx.Response(500), httpx.Response(200, text="no json")], ids=["500", "no JSON"])
async def test_an_entity_that_is_always_in_trouble_does_not_hold_up_the_others(
    world: World, database: str, connection: asyncpg.Connection, trouble: httpx.Response
) -> None:
    for number in (1, 2, 3):
        world.changed(number)
        await thin(world, "created", number)
    world.jasper.trouble = lambda request: trouble if request.url.path.endswith("/1") else None
    pauses = [await fetch_all(world, database, connection) for _ in range(3)]
    assert set(await world.state()) == {"2", "3"}
    assert max(pauses) > 0
    assert await pending(world) == {"1": 0}
    assert await world.sql.fetchval("SELECT due_at FROM pending_fetches") > utc_now()


async def test_an_answer_from_before_the_notification_is_asked_for_again_and_believed_in_the_end(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    """A cache or a replica of Jasper's may be behind."""
    old = dict(world.changed(1, price=1))
    await world.told("created", old)
    told_at = (world.now + timedelta(minutes=5)).isoformat()
    await thin(world, "updated", 1, timestamp=told_at)
    for attempt in range(1, fetch._ATTEMPTS_AT_NEWER + 1):
        await fetch_all(world, database, connection)
        assert await pending(world) == {"1": attempt}
        await world.sql.execute("UPDATE pending_fetches SET due_at = now() - interval '1 second'")
    await fetch_all(world, database, connection)
    assert await pending(world) == {}

    await thin(world, "updated", 1, timestamp=(world.now + timedelta(minutes=9)).isoformat())
    await fetch_all(world, database, connection)
    world.jasper.products["1"] = old | {"price": 2, "updated_at": (world.now + timedelta(minutes=9)).isoformat()}
    await world.sql.execute("UPDATE pending_fetches SET due_at = now() - interval '1 second'")
    await fetch_all(world, database, connection)
    assert (await world.state())["1"]["price"] == 2
    assert await pending(world) == {}


async def test_an_entity_that_jasper_refuses_does_not_hold_up_the_others(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    for number in (1, 2):
        world.changed(number)
        await thin(world, "created", number)
    world.jasper.trouble = lambda request: httpx.Response(403) if request.url.path.endswith("/1") else None
    assert await fetch_all(world, database, connection) == 0
    assert await pending(world) == {"1": 1}
    assert set(await world.state()) == {"2"}


async def test_a_newer_notification_during_the_fetch_is_fetched_again(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    old = dict(world.changed(1, price=1))
    await thin(world, "updated", 1)

    async def meanwhile(_request: httpx.Request) -> None:
        if len(world.jasper.calls) == 0:
            await thin(world, "updated", 1)

    world.jasper.before = meanwhile
    await fetch_all(world, database, connection)
    assert await pending(world) == {"1": 0}
    assert await world.told_by() == []
    world.changed(1, price=2)
    await fetch_all(world, database, connection)
    assert (await world.state())["1"]["price"] == 2 != old["price"]
    assert await pending(world) == {}


async def test_what_is_pending_survives_a_restart(world: World, database: str, connection: asyncpg.Connection) -> None:
    world.changed(1)
    world.changed(2)
    await thin(world, "created", 1)
    async with fetcher(world, database) as before:
        await before.note_all(connection)  # and then it dies
    await thin(world, "created", 2)  # nobody was there to note it
    async with fetcher(world, database) as after:
        running = asyncio.create_task(after.keep())
        while len(await world.state()) < 2:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert await world.state() == world.jasper.products


async def test_an_answer_that_cannot_be_read_does_not_hold_up_the_others(
    world: World, database: str, connection: asyncpg.Connection
) -> None:
    for number in (1, 2):
        world.changed(number)
        await thin(world, "created", number)
    world.jasper.products["1"].pop("id")
    await fetch_all(world, database, connection)
    assert await pending(world) == {"1": 1}
    assert set(await world.state()) == {"2"}
