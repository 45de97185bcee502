"""The start-up: Postgres that comes late or goes away, and schemas behind head."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.bootstrap import prepare_database, reach_database
from app.db.engine import connect, create_engine
from app.db.locks import Lock
from app.db.migrate import check_schema
from app.errors import DatabaseUnavailableError, SchemaError


@pytest.fixture
async def empty_engine(empty_database: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(empty_database)
    yield engine
    await engine.dispose()


async def test_empty_database_is_brought_to_head(empty_engine: AsyncEngine) -> None:
    await prepare_database(empty_engine, auto_migrate=True)
    await check_schema(empty_engine)


async def test_schema_behind_head_stops_the_start_where_it_may_not_be_migrated(empty_engine: AsyncEngine) -> None:
    with pytest.raises(SchemaError, match="jasper-receiver migrate"):
        await prepare_database(empty_engine, auto_migrate=False)


async def test_a_user_that_may_not_make_tables_is_told_what_to_do(empty_database: str) -> None:
    """As every one since Postgres 15 that does not own its database."""
    owner = await connect(empty_database, application_name="test")
    role = f"nobody_{uuid4().hex}"
    await owner.execute(f"CREATE ROLE {role} LOGIN")
    engine = create_engine(empty_database.replace("postgres@", f"{role}@"))
    with pytest.raises(SchemaError, match="GRANT CREATE ON SCHEMA public"):
        await prepare_database(engine, auto_migrate=True)
    await engine.dispose()
    await owner.execute(f"DROP ROLE {role}")
    await owner.close()


@pytest.mark.parametrize("auto_migrate", [True, False])
async def test_postgres_that_goes_away_in_the_middle_of_the_start_is_told_in_words(
    empty_database: str, empty_engine: AsyncEngine, auto_migrate: bool
) -> None:
    cut = (
        "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks l USING (pid)"
        " WHERE a.datname = current_database() AND NOT l.granted"
    )
    elsewhere = await connect(empty_database, application_name="test")
    other = await connect(empty_database, application_name="test")
    await elsewhere.execute("CREATE TABLE alembic_version (version_num text)")
    async with elsewhere.transaction():
        # What the start needs next is held by somebody else, so that it waits and can be cut off there.
        await elsewhere.execute(f"SELECT pg_advisory_xact_lock({Lock.MIGRATION.key})")
        await elsewhere.execute("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE")
        starting = asyncio.create_task(prepare_database(empty_engine, auto_migrate=auto_migrate))
        while not await other.fetchval(cut):
            assert not starting.done()
    with pytest.raises(DatabaseUnavailableError):
        await starting
    await elsewhere.close()
    await other.close()


async def test_postgres_that_never_comes_is_given_up_in_words() -> None:
    engine = create_engine("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailableError, match="look at DATABASE_URL"):
        await reach_database(engine, patience=0.01)
    await engine.dispose()


async def test_database_that_does_not_exist_is_not_waited_for(database: str) -> None:
    engine = create_engine(database.replace("/test_", "/missing_"))
    async with asyncio.timeout(20):
        with pytest.raises(DatabaseUnavailableError, match="does not exist"):
            await reach_database(engine, patience=3600)
    await engine.dispose()
