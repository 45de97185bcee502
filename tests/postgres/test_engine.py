"""What readers are told when Postgres cannot answer: come again, never that something failed."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.engine import Lookups, connect, create_engine, driver_of, reading, writing
from app.errors import DatabaseUnavailableError

TROUBLE = {
    "a statement that takes too long": ["SET LOCAL statement_timeout = '1ms'", "SELECT pg_sleep(1)"],
    "a lock that is not to be had": ["DO $$ BEGIN RAISE SQLSTATE '55P03'; END $$"],
    "a full disk": ["DO $$ BEGIN RAISE SQLSTATE '53100'; END $$"],
    "a connection that is cut": ["SELECT pg_terminate_backend(pg_backend_pid())"],
}


@pytest.mark.parametrize("statements", TROUBLE.values(), ids=TROUBLE)
async def test_trouble_of_the_moment_asks_to_come_again(engine: AsyncEngine, statements: list[str]) -> None:
    async def run() -> None:
        async with writing(engine) as connection:
            for statement in statements:
                await connection.execute(text(statement))

    with pytest.raises(DatabaseUnavailableError):
        await run()


async def test_a_wrong_statement_is_a_fault_of_ours_and_no_trouble_of_the_moment(engine: AsyncEngine) -> None:
    with pytest.raises(DBAPIError):
        async with reading(engine) as connection:
            await connection.execute(text("SELECT 1 / 0"))


Way = Callable[[AsyncEngine], AbstractAsyncContextManager[AsyncConnection]]


@pytest.mark.parametrize("way", [reading, writing])
@pytest.mark.parametrize("at_the_driver", [False, True])
async def test_task_that_is_cancelled_at_a_statement_ends_cancelled_and_the_next_one_finds_a_connection(
    engine: AsyncEngine, way: Way, at_the_driver: bool
) -> None:
    """Told of a database in trouble instead, a chore would try again, and the process would never end."""
    begun = asyncio.Event()

    async def sleep() -> None:
        async with way(engine) as connection:
            begun.set()
            if at_the_driver:
                await (await driver_of(connection)).fetchval("SELECT pg_sleep(60)")
            else:
                await connection.execute(text("SELECT pg_sleep(60)"))

    task = asyncio.create_task(sleep())
    await begun.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=20)
    assert done
    assert task.cancelled()
    async with way(engine) as connection:
        assert await connection.scalar(text("SELECT 1")) == 1


async def test_lookup_whose_connection_was_cut_asks_to_come_again_and_the_next_one_has_another(
    lookups: Lookups,
) -> None:
    with pytest.raises(DatabaseUnavailableError):
        await lookups.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
    [row] = await lookups.fetch("SELECT $1::int AS found", 1)
    assert row["found"] == 1


async def test_lookup_that_is_cancelled_ends_cancelled_and_its_connection_is_free_again(database: str) -> None:
    async with Lookups(database, size=1) as lookups, asyncio.timeout(20):
        task = asyncio.create_task(lookups.fetch("SELECT pg_sleep(60)"))
        while not lookups.in_use:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert len(await lookups.fetch("SELECT 1")) == 1
        assert (lookups.in_use, lookups.idle) == (0, 1)


async def test_lookups_begin_without_postgres_and_say_that_it_is_away() -> None:
    async with Lookups("postgresql://nobody@127.0.0.1:1/nothing") as lookups:
        with pytest.raises(DatabaseUnavailableError):
            await lookups.fetch("SELECT 1")


async def test_a_server_that_only_reads_is_no_server_for_who_writes(database: str) -> None:
    one = await connect(database, application_name="test")
    name = await one.fetchval("SELECT current_database()")
    await one.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(DatabaseUnavailableError, match="primary"):
        await connect(database, application_name="test")
    await (await connect(database, application_name="test", writable=False)).close()
    await one.close()


async def test_whatever_refuses_a_connection_says_nothing_for_ever(database: str) -> None:
    """A chore that took it for a fault of ours would end, and nobody would begin it again."""
    engine = create_engine(database.replace("/test_", "/missing_"))
    with pytest.raises(DatabaseUnavailableError):
        async with reading(engine):
            pass
    await engine.dispose()


async def test_a_migration_takes_as_long_as_it_takes(database: str) -> None:
    for timeout, shown in ((None, "0"), (30.0, "30s")):
        engine = create_engine(database, statement_timeout=timeout)
        async with reading(engine) as connection:
            assert await connection.scalar(text("SHOW statement_timeout")) == shown
            driver = await driver_of(connection)
            assert (driver._config.command_timeout is None) == (timeout is None)  # type: ignore[attr-defined]
        await engine.dispose()


async def test_a_connection_that_is_cut_before_it_is_ready_asks_to_come_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has a word of its own for it when it is between two messages, which SQLAlchemy takes for a fault of ours."""

    async def cut(*_: object) -> None:
        raise asyncpg.InternalClientError("got result for unknown protocol state 3")

    monkeypatch.setattr(asyncpg.Connection, "execute", cut)
    engine = create_engine(database)
    with pytest.raises(DatabaseUnavailableError):
        async with reading(engine):
            pass
    await engine.dispose()
    async with Lookups(database) as lookups:
        with pytest.raises(DatabaseUnavailableError):
            await lookups.fetch("SELECT 1")
