"""The watch over the webhooks: what was undone at Jasper is mended and told, by one replica at a time, and never too often."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.locks import Lock, try_lock
from app.domain.values import EntityType
from app.errors import JasperRefusedError, JasperUnavailableError
from app.registration.register import TOO_MANY_MENDS, Registrar
from app.registration.store import Registration, State
from app.registration.watch import Pauses, keep_registered
from app.sealing import Sealer
from app.settings import Settings
from tests.fake_jasper import IMPATIENT, FakeJasper, jasper_settings

PRODUCT = EntityType.PRODUCT
NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)
INTERVAL = timedelta(minutes=5)
NO_PAUSES = Pauses(first=0, longest=0, first_when_refused=0, longest_when_refused=0, glance=0.01)
KEY = Fernet.generate_key().decode()


class Crash(BaseException):
    """The process dies here."""


def crash() -> None:
    raise Crash


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def registrar_for(
    engine: AsyncEngine, jasper: FakeJasper, settings: Settings | None = None, clock: Clock | None = None
) -> Registrar:
    return Registrar(
        settings or jasper_settings(),
        engine=engine,
        sealer=Sealer([KEY]),
        http=jasper.http,
        patience=IMPATIENT,
        clock=clock or utc_now,
    )


@asynccontextmanager
async def kept(
    registrar: Registrar,
    entity_types: Collection[EntityType] = (PRODUCT,),
    interval: timedelta = INTERVAL,
    pauses: Pauses = NO_PAUSES,
) -> AsyncIterator[Callable[[Callable[[Registration], bool]], Awaitable[Registration]]]:
    """Runs the watch; yields a call that waits until what is stored of the product's webhook satisfies a condition."""
    tasks = {asyncio.create_task(keep_registered(registrar, one, interval, pauses)) for one in entity_types}

    async def until(condition: Callable[[Registration], bool]) -> Registration:
        async with asyncio.timeout(30):
            while not condition(stored := await registrar.store.load(PRODUCT)):
                assert not any(task.done() for task in tasks)
                await asyncio.sleep(0.005)
        return stored

    try:
        yield until
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def is_registered(stored: Registration) -> bool:
    return stored.state is State.REGISTERED


async def test_every_entity_type_is_registered(engine: AsyncEngine) -> None:
    jasper = FakeJasper()
    async with kept(registrar_for(engine, jasper), list(EntityType)), asyncio.timeout(30):
        while {webhook["entity_type"] for webhook in jasper.webhooks.values()} != set(EntityType):
            await asyncio.sleep(0.005)


async def test_without_jasper_nothing_is_asked_of_anybody(engine: AsyncEngine) -> None:
    jasper = FakeJasper()
    await keep_registered(registrar_for(engine, jasper, Settings()), PRODUCT, INTERVAL)
    assert jasper.calls == []


async def test_registration_goes_on_until_jasper_is_back(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """Down, then refusing, then well: each is said once, however often it was tried."""
    caplog.set_level(logging.INFO, "app.registration.watch")
    jasper = FakeJasper()
    answers = [httpx.Response(503)] * 30 + [httpx.Response(401)] * 3

    jasper.trouble = lambda _: answers.pop(0) if answers else None
    async with kept(registrar_for(engine, jasper)) as until:
        await until(is_registered)
    assert len(jasper.webhooks) == 1
    said = [getattr(record, "reason", None) for record in caplog.records if record.name == "app.registration.watch"]
    assert said[:2] == [
        "Jasper is in trouble (503)",
        "Jasper refused the token (401): it is missing, wrong or was rotated: set JASPER_API_TOKEN",
    ]
    assert said[2:] in ([], [None])


async def test_webhook_that_stays_switched_off_is_looked_at_again(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator switches it on in Jasper; nobody has to restart anything."""
    jasper = FakeJasper(enables_by=frozenset())
    registrar = registrar_for(engine, jasper)
    await registrar.register(PRODUCT)
    jasper.only["enabled"] = False
    async with kept(registrar) as until:
        stored = await until(lambda stored: stored.state is State.DISABLED)
        assert "enable it in Jasper" in (stored.last_error or "")
        jasper.only["enabled"] = True
        await until(is_registered)
    assert "switched off" in caplog.records[0].__dict__["reason"]


async def test_surprise_never_ends_the_attempts(engine: AsyncEngine) -> None:
    jasper = FakeJasper()
    surprises = [RuntimeError("nobody thought of this")]

    def surprise(_: httpx.Request) -> None:
        if surprises:
            raise surprises.pop()

    jasper.trouble = surprise
    async with kept(registrar_for(engine, jasper)) as until:
        await until(is_registered)


async def test_entity_type_in_trouble_does_not_hold_up_the_others(engine: AsyncEngine) -> None:
    jasper = FakeJasper()
    created = asyncio.Event()
    jasper.trouble = lambda request: (
        httpx.Response(422) if request.method == "POST" and b'"product"' in request.content else None
    )
    jasper.after = lambda request: created.set() if request.method == "POST" else None
    async with kept(registrar_for(engine, jasper), [PRODUCT, EntityType.BRAND]), asyncio.timeout(20):
        await created.wait()
    assert jasper.only["entity_type"] == EntityType.BRAND


def delete(jasper: FakeJasper) -> None:
    jasper.webhooks.clear()


def redirect(jasper: FakeJasper) -> None:
    jasper.only["callback_url"] = "https://elsewhere.test/callbacks/products"


def switch_off(jasper: FakeJasper) -> None:
    jasper.only["enabled"] = False


DEEDS: list[tuple[Callable[[FakeJasper], None], str]] = [
    (delete, "created"),
    (redirect, "mended callback_url"),
    (switch_off, "switched on again"),
]


@pytest.mark.parametrize(("deed", "words"), DEEDS, ids=lambda value: getattr(value, "__name__", None))
async def test_what_somebody_did_to_the_webhook_is_undone_at_the_next_look_and_told(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, deed: Callable[[FakeJasper], None], words: str
) -> None:
    jasper, clock = FakeJasper(), Clock()
    registrar = registrar_for(engine, jasper, clock=clock)
    async with kept(registrar) as until:
        first = await until(is_registered)
        deed(jasper)
        clock.now += INTERVAL
        stored = await until(lambda stored: stored.checked_at == clock.now)
        async with asyncio.timeout(20):
            while not (told := [record for record in caplog.records if record.levelname == "WARNING"]):
                await asyncio.sleep(0.005)
    assert (stored.mended, stored.mended_at, stored.mends_in_a_row) == ((words,), clock.now, 1)
    assert jasper.only["callback_url"] == "https://receiver.test/callbacks/products"
    assert jasper.only["enabled"]
    assert jasper.only["signing_secret"] == stored.signing_secret
    assert [record.__dict__["done"] for record in told] == [words]

    _, retiring = await registrar.store.credentials()
    accepted_too = [] if stored.signing_secret == first.signing_secret else [first.signing_secret]
    assert [each.signing_secret for each in retiring] == accepted_too


async def test_nothing_is_asked_of_jasper_before_the_interval_is_over(engine: AsyncEngine) -> None:
    jasper, clock = FakeJasper(), Clock()
    registrar = registrar_for(engine, jasper, clock=clock)
    await registrar.register(PRODUCT)
    jasper.calls.clear()
    clock.now += INTERVAL - timedelta(seconds=1)
    assert await registrar.look(PRODUCT, INTERVAL) is None
    assert await registrar.look(PRODUCT, timedelta(0)) is None
    assert jasper.calls == []
    clock.now += timedelta(seconds=1)
    assert await registrar.look(PRODUCT, INTERVAL) is not None
    assert jasper.calls == [("GET", "/webhooks")]


async def test_many_replicas_share_one_look(engine: AsyncEngine) -> None:
    jasper, clock = FakeJasper(), Clock()
    replicas = [registrar_for(engine, jasper, clock=clock) for _ in range(4)]
    await replicas[0].register(PRODUCT)
    jasper.calls.clear()
    for _ in range(3):
        clock.now += INTERVAL
        outcomes = await asyncio.gather(*(replica.look(PRODUCT, INTERVAL) for replica in replicas))
        assert [outcome is not None for outcome in outcomes].count(True) == 1
    assert jasper.calls == [("GET", "/webhooks")] * 3


async def test_replica_that_comes_to_the_lock_after_another_has_looked_does_not_look_again(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    jasper, clock = FakeJasper(), Clock()
    first, second = (registrar_for(engine, jasper, clock=clock) for _ in range(2))
    await first.register(PRODUCT)
    jasper.calls.clear()
    clock.now += INTERVAL
    load = second.store.load

    async def slowly(entity_type: EntityType) -> Registration:
        stored = await load(entity_type)
        await first.look(PRODUCT, INTERVAL)
        return stored

    monkeypatch.setattr(second.store, "load", slowly)
    assert await second.look(PRODUCT, INTERVAL) is None
    assert jasper.calls == [("GET", "/webhooks")]


async def test_replica_does_not_wait_for_another_that_is_looking(engine: AsyncEngine) -> None:
    jasper, clock = FakeJasper(), Clock()
    registrar = registrar_for(engine, jasper, clock=clock)
    await registrar.register(PRODUCT)
    jasper.calls.clear()
    clock.now += INTERVAL
    async with try_lock(engine, Lock.REGISTRATION):
        assert await registrar.look(PRODUCT, INTERVAL) is None
    assert jasper.calls == []


async def test_webhook_that_is_deleted_each_time_is_looked_at_ever_more_rarely(engine: AsyncEngine) -> None:
    """A day of it costs Jasper some thirty webhooks, not some three hundred, and is a trouble that is told."""
    jasper, clock = FakeJasper(), Clock()
    registrar = registrar_for(engine, jasper, clock=clock)
    await registrar.register(PRODUCT)
    moments, problems = list[int](), list[str | None]()
    for minute in range(5, 24 * 60, 5):
        clock.now += timedelta(minutes=5)
        jasper.webhooks.clear()
        if outcome := await registrar.look(PRODUCT, INTERVAL):
            moments.append(minute)
            problems.append(outcome.problem)
    assert moments[:6] == [5, 10, 20, 40, 80, 140]
    assert len(moments) < 30
    assert problems[: TOO_MANY_MENDS - 1] == [None] * (TOO_MANY_MENDS - 1)
    assert all("undoes it" in (problem or "") for problem in problems[TOO_MANY_MENDS - 1 :])

    clock.now += timedelta(hours=1)
    await registrar.look(PRODUCT, INTERVAL)
    clock.now += timedelta(hours=1)
    await registrar.look(PRODUCT, INTERVAL)
    stored = await registrar.store.load(PRODUCT)
    assert (stored.mends_in_a_row, stored.last_error) == (0, None)


async def test_secrets_of_webhooks_that_are_deleted_each_time_do_not_pile_up(engine: AsyncEngine) -> None:
    jasper, clock = FakeJasper(), Clock()
    registrar = registrar_for(engine, jasper, clock=clock)
    await registrar.register(PRODUCT)
    for _ in range(100):
        clock.now += timedelta(minutes=5)
        jasper.webhooks.clear()
        await registrar.look(PRODUCT, INTERVAL)
    _, retiring = await registrar.store.credentials()
    assert len(retiring) <= 2


async def test_token_that_was_rotated_away_is_told_and_the_secret_stays(engine: AsyncEngine) -> None:
    jasper, clock = FakeJasper(), Clock()
    registrar = registrar_for(engine, jasper, clock=clock)
    async with kept(registrar) as until:
        await until(is_registered)
        jasper.trouble = lambda _: httpx.Response(401)
        clock.now += INTERVAL
        stored = await until(lambda stored: stored.state is State.FAILED)
        assert stored.is_token_refused
        assert "JASPER_API_TOKEN" in (stored.last_error or "")
        assert stored.signing_secret == "signing-secret-1"
        jasper.trouble = FakeJasper.trouble
        stored = await until(is_registered)
    assert not stored.is_token_refused


def with_headers(value: str, **overrides: Any) -> Settings:
    return jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr(value)}, **overrides)


async def test_replicas_with_older_settings_leave_alone_what_newer_ones_registered(engine: AsyncEngine) -> None:
    """While a new version is rolled out both run side by side; neither undoes the other's work, both mend what drifted."""
    jasper, clock = FakeJasper(), Clock()
    older = registrar_for(engine, jasper, with_headers("old"), clock=clock)
    newer_settings = with_headers("new", jasper_webhook_include_entity_data=False, jasper_webhook_retry_limit=7)
    newer = registrar_for(engine, jasper, newer_settings, clock=clock)
    await older.register(PRODUCT)
    await newer.register(PRODUCT)
    registered = dict(jasper.only)
    assert (registered["headers"], registered["include_entity_data"]) == ({"X-Custom": "new"}, False)
    for replica in (older, newer) * 2:
        clock.now += INTERVAL
        outcome = await replica.look(PRODUCT, INTERVAL)
        assert outcome is not None
        assert outcome.done == ()
        assert jasper.only == registered
    jasper.only["retry_limit"] = 0
    clock.now += INTERVAL
    outcome = await older.look(PRODUCT, INTERVAL)
    assert outcome is not None
    assert outcome.done == ("mended retry_limit",)
    assert jasper.only == registered


async def test_a_replica_that_still_talks_to_another_tenant_leaves_the_webhook_alone(engine: AsyncEngine) -> None:
    before, now, clock = FakeJasper(), FakeJasper(), Clock()
    older = registrar_for(engine, before, jasper_settings(), clock=clock)
    await older.register(PRODUCT)
    moved = jasper_settings(jasper_api_url="https://other.eu.jasperpim.test/api/v1")
    await registrar_for(engine, now, moved, clock=clock).register(PRODUCT)
    before.calls.clear()
    clock.now += INTERVAL
    assert await older.look(PRODUCT, INTERVAL) is None
    assert before.calls == []
    assert await registrar_for(engine, now, moved, clock=clock).look(PRODUCT, INTERVAL) is not None


def _is_done(stored: Registration) -> bool:
    return is_registered(stored) and stored.rotating_since is None and stored.checked_at is not None


STEPS = {
    "before anything is asked": ("trouble", "GET", 1, 1),
    "before the creation": ("trouble", "POST", 1, 1),
    "after the creation, its answer unheard": ("after", "POST", 2, 1),
    "after the commit, before the old one goes": ("trouble", "DELETE", 2, 2),
    "after the old one went": ("after", "DELETE", 1, 2),
}


@pytest.mark.parametrize(("moment", "method", "webhooks", "secret"), STEPS.values(), ids=STEPS.keys())
async def test_rotation_that_was_broken_off_is_finished_by_the_next_look(
    engine: AsyncEngine, moment: str, method: str, webhooks: int, secret: int
) -> None:
    """Whoever asked for it was a process that is gone, so any other one takes it up; the old secret stays accepted."""
    jasper = FakeJasper()
    asking, other = registrar_for(engine, jasper), registrar_for(engine, jasper)
    await asking.register(PRODUCT)
    setattr(jasper, moment, lambda request: crash() if request.method == method else None)
    with pytest.raises(Crash):
        await asking.rotate(PRODUCT)
    assert len(jasper.webhooks) == webhooks
    assert (await other.store.load(PRODUCT)).signing_secret == f"signing-secret-{secret}"
    jasper.trouble, jasper.after = FakeJasper.trouble, FakeJasper.after

    async with kept(other) as until:
        stored = await until(_is_done)
        async with asyncio.timeout(20):
            while len(jasper.webhooks) > 1:
                await asyncio.sleep(0.005)
        stored = await other.store.load(PRODUCT)
    assert stored.signing_secret == jasper.only["signing_secret"] != "signing-secret-1"
    assert stored.pending_since is None
    _, retiring = await other.store.credentials()
    assert "signing-secret-1" in [each.signing_secret for each in retiring]


@pytest.mark.parametrize(
    ("answer", "error"), [(422, JasperRefusedError), (503, JasperUnavailableError)], ids=["refused", "down"]
)
async def test_rotation_of_which_the_asker_was_told_that_it_failed_is_not_done_later(
    engine: AsyncEngine, answer: int, error: type[Exception]
) -> None:
    jasper, clock = FakeJasper(), Clock()
    registrar = registrar_for(engine, jasper, clock=clock)
    await registrar.register(PRODUCT)
    jasper.trouble = lambda request: httpx.Response(answer) if request.method == "POST" else None
    with pytest.raises(error):
        await registrar.rotate(PRODUCT)
    jasper.trouble = FakeJasper.trouble
    assert await registrar.look(PRODUCT, INTERVAL) is not None
    stored = await registrar.store.load(PRODUCT)
    assert (stored.state, stored.signing_secret) == (State.REGISTERED, "signing-secret-1")


async def test_rotation_that_is_taken_up_survives_a_jasper_that_is_down(engine: AsyncEngine) -> None:
    """Nobody is there to be told, so it is done once Jasper is back."""
    jasper = FakeJasper()
    registrar = registrar_for(engine, jasper)
    await registrar.register(PRODUCT)
    await registrar.store.mark_rotating(PRODUCT, NOW)
    jasper.trouble = lambda _: httpx.Response(503)
    with pytest.raises(JasperUnavailableError):
        await registrar.look(PRODUCT, INTERVAL)
    jasper.trouble = FakeJasper.trouble
    outcome = await registrar.look(PRODUCT, INTERVAL)
    assert outcome is not None
    assert "rotated its secret" in outcome.done
    assert (await registrar.store.load(PRODUCT)).rotating_since is None
