"""The migrations make the schema that the tables describe, and can be undone."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import create_engine
from app.db.migrate import alembic_config, check_schema, current_revision, head_revision, known_revisions, migrate
from app.db.tables import metadata
from app.errors import SchemaError


async def test_the_migrated_schema_is_the_one_the_tables_describe(engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


def _run(work: Callable[..., None], revision: str) -> Callable[[Connection], None]:
    """An alembic command, to be run on a connection."""

    def on(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        work(config, revision)

    return on


async def test_up_down_and_up_again(empty_database: str) -> None:
    engine = create_engine(empty_database)
    before, head = await migrate(engine)
    assert before is None
    async with engine.begin() as connection:
        await connection.run_sync(_run(command.downgrade, "base"))
        left = await connection.execute(
            text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        )
        assert {name for (name,) in left} <= {"alembic_version", "alembic_version_pkc"}
        assert await connection.scalar(text("SELECT to_regnamespace('feed')")) is None
    assert await migrate(engine) == (None, head)
    assert await migrate(engine) == (head, head)
    await engine.dispose()


async def test_alembic_takes_the_schema_back_with_no_more_than_the_address_of_the_database(
    database: str, engine: AsyncEngine
) -> None:
    alembic = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "alembic", "downgrade", "-1"),
        cwd=Path(__file__).parents[2],
        env={"PATH": os.environ["PATH"], "DATABASE_URL": database},
        stderr=PIPE,
    )
    _, said = await alembic.communicate()
    assert alembic.returncode == 0, said.decode()
    async with engine.connect() as connection:
        assert await current_revision(connection) in known_revisions() - {head_revision()}


async def test_events_that_were_there_before_tell_the_state_they_left(empty_database: str) -> None:
    engine = create_engine(empty_database)
    rows = [
        # sequence, entity, action, stale, occurred_at, data → version, sequence, data_sequence, source_updated_at
        ((1, "1", "create", False, 5, "{}"), (1, 1, 1, 5)),
        ((2, "2", "delete", False, None, None), (1, 2, None, None)),
        ((3, "1", "update", True, 4, "{}"), (1, 1, 1, 5)),
        ((4, "1", "update", False, None, None), (2, 4, 1, 5)),
        ((5, "2", "create", False, 9, "{}"), (2, 5, 5, 9)),
    ]
    async with engine.begin() as connection:
        await connection.run_sync(_run(command.upgrade, "0001"))
        for (sequence, entity_id, action, stale, seconds, data), _ in rows:
            await connection.execute(
                text(
                    "INSERT INTO events (sequence, id, entity_type, entity_id, action, action_inferred, stale, source,"
                    " occurred_at, received_at, changed, changes, data) VALUES (:sequence, gen_random_uuid(), 'product',"
                    " :entity_id, :action, false, :stale, 'webhook', to_timestamp(CAST(:seconds AS float)), now(), '{}',"
                    " '[]', :data)"
                ),
                {
                    "sequence": sequence,
                    "entity_id": entity_id,
                    "action": action,
                    "stale": stale,
                    "seconds": seconds,
                    "data": data,
                },
            )
    await migrate(engine)
    async with engine.connect() as connection:
        found = await connection.execute(
            text(
                "SELECT entity_version, entity_sequence, entity_data_sequence,"
                " CAST(extract(epoch FROM entity_source_updated_at) AS int) FROM events ORDER BY sequence"
            )
        )
        assert [tuple(row) for row in found] == [expected for _, expected in rows]
    await engine.dispose()


async def test_times_of_events_that_were_there_before_are_put_in_order(empty_database: str) -> None:
    engine = create_engine(empty_database)
    async with engine.begin() as connection:
        await connection.run_sync(_run(command.upgrade, "0004"))
        for sequence, seconds in enumerate((10, 12, 11, 12, 9, 13), start=1):
            await connection.execute(
                text(
                    "INSERT INTO events (sequence, id, entity_type, entity_id, action, action_inferred, stale, source,"
                    " received_at, changed, changes, entity_version, entity_sequence) VALUES (:sequence,"
                    " gen_random_uuid(), 'product', '1', 'update', false, false, 'webhook',"
                    " to_timestamp(CAST(:seconds AS float)), '{}', '[]', 1, 1)"
                ),
                {"sequence": sequence, "seconds": seconds},
            )
    await migrate(engine)
    async with engine.connect() as connection:
        found = await connection.scalars(
            text("SELECT CAST(extract(epoch FROM received_at) AS int) FROM events ORDER BY sequence")
        )
        assert list(found) == [10, 12, 12, 12, 12, 13]
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
