"""The start-up: Postgres that comes late, schemas behind head, and a Jasper that is not there yet."""

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from cryptography.fernet import Fernet
from sqlalchemy.ext.asyncio import AsyncEngine

from app.bootstrap import Pauses, keep_registered, prepare_database, reach_database
from app.db.engine import connect, create_engine
from app.db.locks import Lock
from app.db.migrate import check_schema
from app.domain.values import EntityType
from app.errors import DatabaseUnavailableError, SchemaError
from app.registration.register import Registrar
from app.registration.store import State
from app.sealing import Sealer
from app.settings import Settings
from tests.fake_jasper import IMPATIENT, FakeJasper, jasper_settings

PRODUCT = EntityType.PRODUCT
NO_PAUSES = Pauses(first=0, longest=0, first_when_refused=0, longest_when_refused=0)


def registrar_for(engine: AsyncEngine, jasper: FakeJasper, settings: Settings | None = None) -> Registrar:
    return Registrar(
        settings or jasper_settings(),
        engine=engine,
        sealer=Sealer([Fernet.generate_key().decode()]),
        http=jasper.http,
        patience=IMPATIENT,
    )


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


async def test_every_entity_type_is_registered(engine: AsyncEngine) -> None:
    jasper = FakeJasper()
    await keep_registered(registrar_for(engine, jasper), list(EntityType), NO_PAUSES)
    assert {webhook["entity_type"] for webhook in jasper.webhooks.values()} == set(EntityType)


async def test_without_jasper_nothing_is_asked_of_anybody(engine: AsyncEngine) -> None:
    jasper = FakeJasper()
    await keep_registered(registrar_for(engine, jasper, Settings()), [PRODUCT])
    assert jasper.calls == []


async def test_registration_goes_on_until_jasper_is_back(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """Down, then refusing, then well: each is said once, however often it was tried."""
    caplog.set_level(logging.INFO, "app.bootstrap")
    jasper = FakeJasper()
    answers = [httpx.Response(503)] * 30 + [httpx.Response(401)] * 3

    jasper.trouble = lambda _: answers.pop(0) if answers else None
    await keep_registered(registrar_for(engine, jasper), [PRODUCT], NO_PAUSES)
    assert len(jasper.webhooks) == 1
    assert [getattr(record, "reason", None) for record in caplog.records if record.name == "app.bootstrap"] == [
        "Jasper is in trouble (503)",
        "Jasper refused the token (401): it is missing, wrong or was rotated: set JASPER_API_TOKEN",
        None,
    ]


async def test_webhook_that_stays_switched_off_is_looked_at_again(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator switches it on in Jasper; nobody has to restart anything."""
    jasper = FakeJasper(enables_by=frozenset())
    registrar = registrar_for(engine, jasper)
    await registrar.register(PRODUCT)
    jasper.only["enabled"] = False

    def switched_on_by_hand(_: httpx.Request) -> None:
        jasper.only["enabled"] = len(caplog.records) > 0

    jasper.trouble = switched_on_by_hand
    async with asyncio.timeout(20):
        await keep_registered(registrar, [PRODUCT], NO_PAUSES)
    assert "switched off" in caplog.records[0].__dict__["reason"]
    assert (await registrar.store.load(PRODUCT)).state is State.REGISTERED


async def test_surprise_never_ends_the_attempts(engine: AsyncEngine) -> None:
    jasper = FakeJasper()
    surprises = [RuntimeError("nobody thought of this")]

    def surprise(_: httpx.Request) -> None:
        if surprises:
            raise surprises.pop()

    jasper.trouble = surprise
    await keep_registered(registrar_for(engine, jasper), [PRODUCT], NO_PAUSES)
    assert len(jasper.webhooks) == 1


async def test_entity_type_in_trouble_does_not_hold_up_the_others(engine: AsyncEngine) -> None:
    jasper = FakeJasper()
    created = asyncio.Event()
    jasper.trouble = lambda request: (
        httpx.Response(422) if request.method == "POST" and b'"product"' in request.content else None
    )
    jasper.after = lambda request: created.set() if request.method == "POST" else None
    types, pauses = [PRODUCT, EntityType.BRAND], Pauses(first_when_refused=0.01, longest_when_refused=0.01)
    task = asyncio.create_task(keep_registered(registrar_for(engine, jasper), types, pauses))
    async with asyncio.timeout(20):
        await created.wait()
    assert jasper.only["entity_type"] == EntityType.BRAND
    assert not task.done()
    task.cancel()
