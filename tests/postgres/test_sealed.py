"""Rotation of encryption keys: everything that is sealed moves to the first key, and replicas with older keys go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import sealed
from app.db.engine import reading
from app.db.sealed import SEALED, SealedCounts, SealedView, count, seal_anew
from app.db.tables import metadata, registrations, unproven
from app.domain.values import EntityType
from app.errors import DatabaseUnavailableError
from app.intake.keyring import Keyring
from app.intake.unproven import UnprovenStore
from app.registration.register import Registrar
from app.registration.store import RegistrationStore
from app.sealing import Sealer, generate_key
from tests.fake_jasper import IMPATIENT, FakeJasper, jasper_settings

PRODUCT = EntityType.PRODUCT
NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)
OLD, NEW = generate_key(), generate_key()


def registrar_for(engine: AsyncEngine, *keys: str) -> Registrar:
    return Registrar(
        jasper_settings(),
        engine=engine,
        sealer=Sealer(keys),
        http=FakeJasper().http,
        patience=IMPATIENT,
        clock=lambda: NOW,
    )


async def everything_sealed(engine: AsyncEngine, key: str) -> None:
    """Something in each column that holds sealed values: two callbacks kept apart, a registration, a rotation."""
    registrar = registrar_for(engine, key)
    await registrar.register(PRODUCT)
    await registrar.rotate(PRODUCT)
    store = UnprovenStore(engine, Sealer([key]), limit=10)
    for body in (b"{}", b"[]"):
        await store.keep(PRODUCT, (("x", "y"),), body, received_at=NOW, client="")


def test_every_column_that_says_so_is_sealed_anew() -> None:
    """A new column cannot be forgotten, if its comment says what it holds as those of the others do."""
    said = {
        column
        for table in metadata.tables.values()
        for column in table.columns
        if column.name == "sealed" or (column.comment or "").startswith("sealed")
    }
    assert said == set(SEALED)


async def test_with_a_new_key_in_front_everything_is_sealed_anew_and_the_old_key_can_go(engine: AsyncEngine) -> None:
    await everything_sealed(engine, OLD)
    assert await count(engine, Sealer([NEW, OLD])) == SealedCounts(current=0, older=5, lost=0)
    assert await seal_anew(engine, Sealer([NEW, OLD])) == 5
    assert await seal_anew(engine, Sealer([NEW, OLD])) == 0
    assert await count(engine, Sealer([NEW])) == SealedCounts(current=5, older=0, lost=0)

    [registration], [retiring] = await RegistrationStore(engine, Sealer([NEW])).credentials()
    assert (registration.signing_secret, registration.headers) == ("signing-secret-2", {})
    assert retiring.signing_secret == "signing-secret-1"
    kept = UnprovenStore(engine, Sealer([NEW]), limit=10)
    first = await kept.next_after(None)
    assert first is not None
    assert kept.opened(first) == ((("x", "y"),), b"{}")


async def test_what_no_key_opens_is_counted_and_left_as_it_is(engine: AsyncEngine) -> None:
    await everything_sealed(engine, OLD)
    assert await seal_anew(engine, Sealer([NEW])) == 0
    assert await count(engine, Sealer([NEW])) == SealedCounts(current=0, older=0, lost=5)
    assert await count(engine, Sealer([OLD])) == SealedCounts(current=5, older=0, lost=0)


async def test_value_that_changes_meanwhile_is_not_put_back(engine: AsyncEngine) -> None:
    """Between the reading and the writing another replica stores a new secret."""
    await everything_sealed(engine, OLD)
    meanwhile = Sealer([OLD]).seal(b"another secret")
    waiting = text(
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = :name"
    )
    async with engine.begin() as connection:
        name = await connection.scalar(text("SELECT current_database()"))
        await connection.execute(update(registrations).values(signing_secret=meanwhile))
        sealing = asyncio.create_task(seal_anew(engine, Sealer([NEW, OLD])))
        async with asyncio.timeout(20):
            while not await connection.scalar(waiting, {"name": name}):
                assert not sealing.done()
    assert await sealing == 4
    async with engine.connect() as connection:
        assert await connection.scalar(select(registrations.c.signing_secret)) == meanwhile


@pytest.mark.parametrize("sealed_by", [[NEW, OLD], [NEW]], ids=["while rolling", "with the old key gone"])
async def test_replica_with_the_old_keys_goes_on_accepting_what_it_knew(
    engine: AsyncEngine, sealed_by: list[str]
) -> None:
    """A replica that is not replaced yet cannot open what the new ones seal, but it has opened the same before."""
    await everything_sealed(engine, OLD)
    older = Keyring(RegistrationStore(engine, Sealer([OLD])), {})
    await older.refresh()
    known = older.accepted(PRODUCT, NOW)
    assert known.secrets == ("signing-secret-2", "signing-secret-1")
    assert await seal_anew(engine, Sealer([NEW, OLD])) == 5
    for _ in range(2):
        await older.refresh()
        assert older.accepted(PRODUCT, NOW) == known
    newer = Keyring(RegistrationStore(engine, Sealer(sealed_by)), {})
    await newer.refresh()
    assert newer.accepted(PRODUCT, NOW) == known


async def test_replica_with_the_old_keys_does_not_take_an_older_secret_for_a_newer_one(engine: AsyncEngine) -> None:
    """What it opened before counts only for as long as it is the same: a rotation ends it."""
    await everything_sealed(engine, OLD)
    older = Keyring(RegistrationStore(engine, Sealer([OLD])), {})
    await older.refresh()
    await seal_anew(engine, Sealer([NEW, OLD]))
    async with engine.begin() as connection:
        newer = Sealer([NEW]).seal(b"a newer secret")
        changed = {"signing_secret": newer, "registered_at": NOW.replace(hour=9)}
        await connection.execute(update(registrations).values(changed))
    await older.refresh()
    assert older.accepted(PRODUCT, NOW).secrets == ("signing-secret-1",)


async def test_values_sealed_with_the_new_key_are_open_to_replicas_that_have_it_behind_theirs(
    engine: AsyncEngine,
) -> None:
    """The first step of a rotation: the new key behind the old one, so that either kind of replica opens everything."""
    await everything_sealed(engine, NEW)
    [registration], [retiring] = await RegistrationStore(engine, Sealer([OLD, NEW])).credentials()
    assert (registration.signing_secret, retiring.signing_secret) == ("signing-secret-2", "signing-secret-1")
    async with engine.connect() as connection:
        assert len((await connection.execute(select(unproven.c.id))).all()) == 2


@pytest.mark.parametrize(("most_bytes", "most_values", "portions"), [(10**6, 500, 1), (10**6, 7, 3), (8000, 500, 8)])
async def test_values_are_read_in_portions_of_bounded_size(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, most_bytes: int, most_values: int, portions: int
) -> None:
    monkeypatch.setattr(sealed, "PORTION_BYTES", most_bytes)
    monkeypatch.setattr(sealed, "PORTION_VALUES", most_values)
    store = UnprovenStore(engine, Sealer([OLD]), limit=100)
    for number in range(20):
        body = b"x" * (number + (6000 if number % 5 == 4 else 600))
        await store.keep(PRODUCT, (), body, received_at=NOW, client="")
    read: list[list[int]] = []

    @asynccontextmanager
    async def noted(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        read.append([])
        async with reading(engine) as connection:
            yield connection

    monkeypatch.setattr(sealed, "reading", noted)
    keys = set()
    async for key, value in sealed._values(engine, unproven.c.sealed):
        keys.add(key)
        read[-1].append(len(value))
    assert read.pop() == []
    assert len(keys) == sum(map(len, read)) == 20
    assert len(read) == portions
    assert all(len(one) == 1 or (sum(one) <= most_bytes and len(one) <= most_values) for one in read)


async def test_others_have_their_turn_between_two_values(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    await everything_sealed(engine, OLD)
    turns: list[int] = []

    def note(_sealed: bytes) -> bool:
        asyncio.get_running_loop().call_soon(turns.append, 1)
        seen.append(len(turns))
        return True

    seen: list[int] = []
    sealer = Sealer([OLD])
    monkeypatch.setattr(sealer, "is_current", note)
    await count(engine, sealer)
    assert seen == [0, 1, 2, 3, 4]


async def test_who_looks_again_and_again_shares_one_count_that_is_renewed_meanwhile(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(sealed, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    counting, go_on, counted = asyncio.Event(), asyncio.Event(), 0

    async def slowly(engine: AsyncEngine, sealer: Sealer) -> SealedCounts:
        nonlocal counted
        counting.set()
        await go_on.wait()
        counted += 1
        if counted == 1:
            raise DatabaseUnavailableError("Postgres cannot be reached")
        return await count(engine, sealer)

    monkeypatch.setattr(sealed, "count", slowly)

    async def renewed(view: SealedView) -> None:
        """Somebody asks, and asks again while it is counted."""
        counting.clear()
        go_on.clear()
        before = view.last()
        await counting.wait()
        assert view.last() == before
        go_on.set()
        while view._asked.is_set():
            await asyncio.sleep(0.005)

    view = SealedView(engine, Sealer([NEW]), kept=300.0)
    keeping = asyncio.create_task(view.keep())
    async with asyncio.timeout(20):
        await renewed(view)
        assert view.last() is None  # Postgres was away, and this asks again
        await renewed(view)
        nothing, everything = SealedCounts(current=0, older=0, lost=0), SealedCounts(current=0, older=0, lost=5)
        assert view.last() == nothing
        await everything_sealed(engine, OLD)
        clock[0] = 300.0
        assert view.last() == nothing
        assert not view._asked.is_set()
        clock[0] = 301.0
        await renewed(view)
        assert (view.last(), counted) == (everything, 3)
    keeping.cancel()
