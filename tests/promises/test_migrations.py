"""The migrations make the schema that the tables describe, and can be undone."""

from collections.abc import Callable

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import create_engine
from app.db.migrate import alembic_config, check_schema, migrate
from app.db.tables import metadata
from app.errors import SchemaError


async def test_the_migrated_schema_is_the_one_the_tables_describe(engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_up_down_and_up_again(empty_database: str) -> None:
    engine = create_engine(empty_database)

    def run(work: Callable[..., None], revision: str) -> Callable[[Connection], None]:
        def on(connection: Connection) -> None:
            config = alembic_config()
            config.attributes["connection"] = connection
            work(config, revision)

        return on

    before, head = await migrate(engine)
    assert before is None
    async with engine.begin() as connection:
        await connection.run_sync(run(command.downgrade, "base"))
        left = await connection.execute(
            text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        )
        assert {name for (name,) in left} <= {"alembic_version", "alembic_version_pkc"}
    assert await migrate(engine) == (None, head)
    assert await migrate(engine) == (head, head)
    await engine.dispose()


async def test_a_schema_behind_head_is_said_with_the_remedy(empty_database: str) -> None:
    engine = create_engine(empty_database)
    with pytest.raises(SchemaError, match="jasper-receiver migrate"):
        await check_schema(engine)
    await engine.dispose()


async def test_a_schema_of_a_newer_version_is_left_alone(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = 'from-the-future'"))
    with pytest.raises(SchemaError, match="newer version"):
        await migrate(engine)
    await check_schema(engine)  # a rolling upgrade: the old version goes on serving
