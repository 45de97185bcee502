"""The SQL face: what readers by SQL see, that it is what HTTP tells, and that they see nothing else."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command as alembic
from sqlalchemy import Connection

from app.db.embedded import embedded_postgres
from app.db.engine import create_engine
from app.db.migrate import alembic_config, migrate
from app.entities.schemas import EntityRecord
from app.feed.schemas import EventRecord
from app.ledger.writer import Writer
from tests.builders import NOW, an_entity, an_event
from tests.http.conftest import Reader
from tests.http.writing import a_callback, slow_append

TEXT = '{ "price":1.10,"big":1e400, "text":"\\u0000\\ud800\\n"\r\n}'


@asynccontextmanager
async def reading_as_role(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that has the rights of `jasper_reader` and no others."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET ROLE jasper_reader")
    yield connection
    await connection.close()


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    async with reading_as_role(database) as connection:
        yield connection


def as_json(row: asyncpg.Record) -> dict[str, Any]:
    """A row as HTTP would tell it: JSON is text in SQL."""
    told: dict[str, Any] = json.loads(json.dumps(dict(row), default=_plain))
    return told | {name: json.loads(told[name]) for name in ("data", "changes") if told.get(name) is not None}


def _plain(value: object) -> str:
    return (
        value.isoformat(timespec="microseconds").replace("+00:00", "Z") if isinstance(value, datetime) else str(value)
    )


async def test_events_by_sql_are_those_of_http(reader: Reader, sql: asyncpg.Connection) -> None:
    changes = '[{"op": "add", "path": "/price", "to": 1.10}]'
    await an_event(reader.engine, data=TEXT, changed=["price"], changes=changes)
    for action in ("create", "delete"):
        await an_event(
            reader.engine, action=action, entity_type="brand", data=None, occurred_at=None, delivery_id=None, stale=True
        )
    rows = await sql.fetch("SELECT * FROM feed.events WHERE sequence > 0 ORDER BY sequence")
    assert tuple(rows[0].keys()) == EventRecord.__struct_fields__
    told = (await reader.get("/v1/events?include_stale=true")).json()["events"]
    assert [as_json(row) for row in rows] == told
    assert [row["type"] for row in rows] == ["product.updated", "brand.created", "brand.deleted"]
    assert (rows[0]["data"], rows[0]["changes"]) == (TEXT, changes)


async def test_entities_by_sql_are_those_of_http(reader: Reader, sql: asyncpg.Connection) -> None:
    await an_entity(reader.engine, data=TEXT, source_updated_at=NOW)
    await an_entity(reader.engine, entity_id="1002", data=None, deleted_at=NOW)
    rows = await sql.fetch("SELECT * FROM feed.entities ORDER BY entity_type, entity_id")
    assert sorted(rows[0].keys()) == sorted(EntityRecord.__struct_fields__)
    told = (await reader.get("/v1/products?include_deleted=true")).json()["items"]
    assert [as_json(row) for row in rows] == told
    assert rows[0]["data"] == TEXT


async def test_the_text_of_data_can_be_taken_as_json_where_it_is_used(reader: Reader, sql: asyncpg.Connection) -> None:
    """Where it holds nothing that Postgres has no text for: a NUL, half a surrogate pair."""
    await an_event(reader.engine, data='{"price": 1.10}')
    price = "SELECT data::json ->> 'price' FROM feed.events WHERE sequence = $1"
    assert await sql.fetchval(price, 1) == "1.10"
    await an_event(reader.engine, data=TEXT)
    assert await sql.fetchval("SELECT (data::json)::text FROM feed.events WHERE sequence = 2") == TEXT
    with pytest.raises(asyncpg.UntranslatableCharacterError):
        await sql.fetchval(price, 2)


async def test_the_role_sees_the_two_views_and_nothing_else(sql: asyncpg.Connection) -> None:
    may = "has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')"
    readable = await sql.fetch(
        f"SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"  # noqa: S608 - no value in it
        f" WHERE c.relkind <> 'i' AND n.nspname !~ '^(pg_|information_schema)' AND CASE c.relkind WHEN 'S'"
        f" THEN has_sequence_privilege(c.oid, 'USAGE, SELECT, UPDATE') ELSE {may} END ORDER BY name"
    )
    assert [row["name"] for row in readable] == ["feed.entities", "feed.events"]
    assert not await sql.fetchval(
        "SELECT has_schema_privilege('feed', 'CREATE') OR has_schema_privilege('public', 'CREATE')"
    )
    for statement in (
        "SELECT 1 FROM events",
        "SELECT 1 FROM entities",
        "SELECT 1 FROM deliveries",
        "SELECT 1 FROM registrations",
        "SELECT 1 FROM api_keys",
        "INSERT INTO feed.events (sequence) VALUES (1)",
        "UPDATE feed.events SET stale = true",
        "DELETE FROM feed.events",
        "SELECT nextval('event_sequence')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await sql.execute(statement)
    role = await sql.fetchrow("SELECT * FROM pg_roles WHERE rolname = 'jasper_reader'")
    assert role is not None
    assert not any(role[name] for name in ("rolcanlogin", "rolsuper", "rolcreaterole", "rolcreatedb", "rolbypassrls"))


async def test_following_by_sql_finds_its_place_in_the_index(reader: Reader, sql: asyncpg.Connection) -> None:
    await an_event(reader.engine)
    for other_way in ("seqscan", "bitmapscan", "sort"):  # which so small a table would be read by
        await sql.execute(f"SET enable_{other_way} = off")
    follow = "SELECT * FROM feed.events WHERE sequence > 5 ORDER BY sequence LIMIT 100"
    plan = "\n".join(row[0] for row in await sql.fetch(f"EXPLAIN {follow}"))
    assert "Index Scan using events_pkey" in plan
    assert re.search(r"Index Cond: .*\(sequence > 5\)", plan)
    assert "Sort" not in plan
    one = "SELECT * FROM feed.entities WHERE entity_type = 'product' AND entity_id = '1'"
    plan = "\n".join(row[0] for row in await sql.fetch(f"EXPLAIN {one}"))
    assert "Index Scan using entities_pkey" in plan


async def test_a_reader_by_sql_misses_nothing_however_many_write(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers as in several replicas; the reader goes on from the last sequence it saw, as the guide says."""
    chance = random.Random(11)
    monkeypatch.setattr("app.ledger.writer.append", slow_append(chance))
    seen: list[tuple[int, Any]] = []
    written = asyncio.Event()

    async def follow(sql: asyncpg.Connection) -> None:
        position = 0
        while True:
            last = written.is_set()
            rows = await sql.fetch(
                "SELECT sequence, id FROM feed.events WHERE sequence > $1 ORDER BY sequence LIMIT 7", position
            )
            seen.extend((row["sequence"], row["id"]) for row in rows)
            if rows:
                position = rows[-1]["sequence"]
            elif last:
                return

    async def write(writer: Writer, task: int) -> None:
        for number in range(10):
            await asyncio.sleep(chance.random() * 0.03)
            await writer.commit(a_callback(task * 10 + number))

    async with reading_as_role(database) as sql, asyncio.timeout(60):
        following = asyncio.create_task(follow(sql))
        async with AsyncExitStack() as held:
            writers = [await held.enter_async_context(Writer(database)) for _ in range(3)]
            group = await held.enter_async_context(asyncio.TaskGroup())
            for task in range(36):
                group.create_task(write(writers[task % 3], task))
        written.set()
        await following
        await sql.execute("RESET ROLE")
        feed = [tuple(row) for row in await sql.fetch("SELECT sequence, id FROM events ORDER BY sequence")]
    assert seen == feed
    assert len(feed) == 360


def _elsewhere(dsn: str, *, user: str = "postgres", database: str) -> str:
    return dsn.replace("//postgres@/jasper?", f"//{user}@/{database}?")


async def _downgrade(dsn: str) -> None:
    def work(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        alembic.downgrade(config, "base")

    engine = create_engine(dsn)
    async with engine.begin() as connection:
        await connection.run_sync(work)
    await engine.dispose()


async def _migrate(dsn: str) -> None:
    engine = create_engine(dsn)
    await migrate(engine)
    await engine.dispose()


@pytest.fixture
async def cluster(data_dir: Path) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """A cluster that has no role of ours yet: its DSN, and a superuser on it."""
    with embedded_postgres(data_dir, settings={"fsync": "off"}) as dsn:
        admin = await asyncpg.connect(dsn)
        yield dsn, admin
        await admin.close()


async def has_role(admin: asyncpg.Connection) -> bool:
    return bool(await admin.fetchval("SELECT to_regrole('jasper_reader') IS NOT NULL"))


async def test_databases_of_one_cluster_share_the_role_and_the_last_takes_it_away(
    cluster: tuple[str, asyncpg.Connection],
) -> None:
    """The first finds the role missing and is overtaken by another that makes it."""
    dsn, admin = cluster
    names = [f"tenant_{number}" for number in range(3)]
    for name in names:
        await admin.execute(f"CREATE DATABASE {name}")
    first = admin.transaction()
    await first.start()
    await admin.execute("CREATE ROLE jasper_reader NOLOGIN")
    migrating = asyncio.create_task(_migrate(_elsewhere(dsn, database=names[0])))
    watching = await asyncpg.connect(dsn)
    async with asyncio.timeout(30):
        while not await watching.fetchval("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            await asyncio.sleep(0.02)
    await watching.close()
    await first.commit()
    await migrating
    for name in names[1:]:
        await _migrate(_elsewhere(dsn, database=name))
    for name in names:
        async with reading_as_role(_elsewhere(dsn, database=name)) as sql:
            assert await sql.fetch("SELECT * FROM feed.events") == []
    for name in names:
        assert await has_role(admin)
        await _downgrade(_elsewhere(dsn, database=name))
    assert not await has_role(admin)


async def test_a_role_that_somebody_was_given_outlives_the_views(cluster: tuple[str, asyncpg.Connection]) -> None:
    dsn, admin = cluster
    await _migrate(dsn)
    await admin.execute("CREATE ROLE somebody LOGIN; GRANT jasper_reader TO somebody")
    somebody = await asyncpg.connect(_elsewhere(dsn, user="somebody", database="jasper"))
    assert await somebody.fetch("SELECT * FROM feed.entities") == []
    await somebody.close()
    await _downgrade(dsn)
    assert await has_role(admin)


async def test_whoever_may_not_make_roles_migrates_all_the_same_and_is_told_what_is_left(
    cluster: tuple[str, asyncpg.Connection], caplog: pytest.LogCaptureFixture
) -> None:
    dsn, admin = cluster
    await admin.execute("CREATE ROLE tenant LOGIN")
    await admin.execute("CREATE DATABASE tenant OWNER tenant")
    as_tenant = _elsewhere(dsn, user="tenant", database="tenant")
    await _migrate(as_tenant)
    assert not await has_role(admin)
    [said] = [record.getMessage() for record in caplog.records if "jasper_reader" in record.getMessage()]
    await admin.execute("CREATE ROLE jasper_reader NOLOGIN")
    tenant = await asyncpg.connect(as_tenant)
    assert "CREATE ROLE jasper_reader NOLOGIN" in said
    await tenant.execute(said.partition("schema feed: ")[2])
    await tenant.close()
    async with reading_as_role(_elsewhere(dsn, database="tenant")) as sql:
        assert await sql.fetch("SELECT * FROM feed.events") == []
    await _downgrade(as_tenant)
    assert await has_role(admin)
