"""What a callback may prove itself with: current and retiring credentials, from memory."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.values import EntityType
from app.errors import DatabaseUnavailableError
from app.intake import keyring as keyring_module
from app.intake.keyring import Accepted, Keyring
from app.registration.register import Registrar
from app.registration.retry_window import ATTEMPT_MARGIN
from app.registration.store import PENDING_AT_MOST, Registration, RegistrationStore, Retiring
from app.sealing import Sealer
from tests.fake_jasper import IMPATIENT, FakeJasper, jasper_settings

PRODUCT = EntityType.PRODUCT
NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)
RETIREMENT = timedelta(minutes=25) + 6 * ATTEMPT_MARGIN
KEY = Fernet.generate_key().decode()
OLD, NEW = {"X-Custom": "old"}, {"X-Custom": "new"}


def registrar_with(engine: AsyncEngine, jasper: FakeJasper, headers: dict[str, str]) -> Registrar:
    settings = jasper_settings(jasper_webhook_headers={name: SecretStr(value) for name, value in headers.items()})
    return Registrar(
        settings, engine=engine, sealer=Sealer([KEY]), http=jasper.http, patience=IMPATIENT, clock=lambda: NOW
    )


def keyring_with(engine: AsyncEngine, headers: dict[str, str], key: str = KEY) -> Keyring:
    return Keyring(RegistrationStore(engine, Sealer([key])), headers)


async def test_nothing_is_known_at_first_but_the_headers_of_the_settings(engine: AsyncEngine) -> None:
    keyring = keyring_with(engine, NEW)
    await keyring.refresh()
    assert keyring.accepted(PRODUCT, NOW) == Accepted(secrets=(), header_sets=(NEW,), pending=False)


async def test_new_headers_are_accepted_before_jasper_has_them_and_the_old_ones_after(engine: AsyncEngine) -> None:
    """The order: of the settings, registered at present, retiring; each set once."""
    jasper = FakeJasper()
    await registrar_with(engine, jasper, OLD).register(PRODUCT)
    keyring = keyring_with(engine, NEW)
    await keyring.refresh()
    assert keyring.accepted(PRODUCT, NOW).header_sets == (NEW, OLD)

    await registrar_with(engine, jasper, NEW).register(PRODUCT)
    await keyring.refresh()
    last_moment = NOW + RETIREMENT - timedelta(microseconds=1)
    assert keyring.accepted(PRODUCT, last_moment).header_sets == (NEW, OLD)
    assert keyring.accepted(PRODUCT, NOW + RETIREMENT).header_sets == (NEW,)


async def test_retiring_secret_is_accepted_until_its_last_retry_and_not_longer(engine: AsyncEngine) -> None:
    registrar = registrar_with(engine, FakeJasper(), {})
    await registrar.register(PRODUCT)
    await registrar.rotate(PRODUCT)
    keyring = keyring_with(engine, {})
    await keyring.refresh()
    last_moment = NOW + RETIREMENT - timedelta(microseconds=1)
    assert keyring.accepted(PRODUCT, last_moment).secrets == ("signing-secret-2", "signing-secret-1")
    assert keyring.accepted(PRODUCT, NOW + RETIREMENT).secrets == ("signing-secret-2",)
    assert keyring.accepted(EntityType.BRAND, NOW).secrets == ()


async def test_pending_counts_for_a_while(engine: AsyncEngine) -> None:
    keyring = keyring_with(engine, {})
    await RegistrationStore(engine, Sealer([KEY])).mark_pending(PRODUCT, NOW)
    await keyring.refresh()
    assert keyring.accepted(PRODUCT, NOW).pending
    assert not keyring.accepted(PRODUCT, NOW + PENDING_AT_MOST).pending


async def test_repr_hides_everything(engine: AsyncEngine) -> None:
    await registrar_with(engine, FakeJasper(), OLD).register(PRODUCT)
    keyring = keyring_with(engine, OLD)
    await keyring.refresh()
    shown = repr((keyring, keyring.accepted(PRODUCT, NOW)))
    assert "signing-secret" not in shown
    assert "old" not in shown


async def test_secret_that_no_key_opens_is_unknown_and_troubles_nobody_else(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    await registrar_with(engine, FakeJasper(), {}).register(PRODUCT)
    other = Fernet.generate_key().decode()
    await Registrar(
        jasper_settings(), engine=engine, sealer=Sealer([other]), http=FakeJasper().http, patience=IMPATIENT
    ).register(EntityType.BRAND)
    keyring = keyring_with(engine, {}, key=other)
    await keyring.look_again()
    await keyring.look_again()
    assert keyring.accepted(PRODUCT, NOW).secrets == ()
    assert keyring.accepted(EntityType.BRAND, NOW).secrets == ("signing-secret-1",)
    assert len(caplog.records) == 1


class CountingStore(RegistrationStore):
    """Answers when it is told to, or fails, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer = asyncio.Event()
        self.away = False
        self.readings = asyncio.Queue[int]()

    async def credentials(self) -> tuple[list[Registration], list[Retiring]]:
        self.asked += 1
        self.readings.put_nowait(self.asked)
        await self.answer.wait()
        if self.away:
            raise DatabaseUnavailableError("Postgres cannot be reached")
        return [Registration(PRODUCT, signing_secret="first")], []


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


async def test_what_is_known_is_certain_after_a_look_and_for_a_while_where_that_takes_long(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_module, "_PATIENCE", 0.02)
    keyring = Keyring(store, {}, distance=0)
    assert not await keyring.look_again()  # it was never read
    store.answer.set()
    await keyring.refresh()
    assert await keyring.look_again()
    store.away = True
    assert not await keyring.look_again()
    store.answer.clear()
    assert await keyring.look_again()  # it was read a moment ago
    monkeypatch.setattr(keyring_module, "_TRUSTED", 0)
    assert not await keyring.look_again()
    store.answer.set()


async def test_failed_proofs_at_the_same_time_share_one_reading(store: CountingStore) -> None:
    keyring = Keyring(store, {})
    waiting = [asyncio.create_task(keyring.look_again()) for _ in range(50)]
    await asyncio.sleep(0)
    store.answer.set()
    await asyncio.gather(*waiting)
    assert store.asked == 1
    assert keyring.accepted(PRODUCT, NOW).secrets == ("first",)


async def test_failed_proofs_cannot_make_the_store_be_read_all_the_time(store: CountingStore) -> None:
    """Anybody can send callbacks that prove nothing."""
    store.answer.set()
    keyring = Keyring(store, {}, distance=60)
    await keyring.look_again()
    await asyncio.gather(*(keyring.look_again() for _ in range(50)))
    assert store.asked == 1


async def test_callback_does_not_wait_for_a_store_that_hangs(store: CountingStore) -> None:
    keyring = Keyring(store, {})
    async with asyncio.timeout(2):
        await keyring.look_again()
        await keyring.look_again()
    assert store.asked == 1
    store.answer.set()


async def test_what_was_known_last_holds_while_postgres_is_away(
    store: CountingStore, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is said once, not at every attempt."""
    store.answer.set()
    keyring = Keyring(store, {})
    await keyring.refresh()
    store.away = True
    with pytest.raises(DatabaseUnavailableError):
        await keyring.refresh()
    for _ in range(3):
        await keyring.look_again()
    assert keyring.accepted(PRODUCT, NOW).secrets == ("first",)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_keeping_fresh_goes_on_after_trouble(store: CountingStore) -> None:
    keyring = Keyring(store, {})
    store.answer.set()
    store.away = True
    task = asyncio.create_task(keyring.keep_fresh(interval=0))
    async with asyncio.timeout(5):
        for _ in range(3):
            await store.readings.get()
        store.away = False
        for _ in range(2):  # the second one tells that the first has ended
            await store.readings.get()
    assert keyring.accepted(PRODUCT, NOW).secrets == ("first",)
    task.cancel()


async def test_a_reading_that_has_begun_is_not_taken_for_one_that_begins_now(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What made the proof fail may have been stored since, and must be seen, not be overwritten by what was before."""
    store = RegistrationStore(engine, Sealer([KEY]))
    keyring = Keyring(store, {}, distance=0)
    read, held = store.credentials, asyncio.Event()

    async def slowly() -> tuple[list[Registration], list[Retiring]]:
        found = await read()
        await held.wait()
        return found

    monkeypatch.setattr(store, "credentials", slowly)
    early = asyncio.create_task(keyring.look_again())
    await asyncio.sleep(0.1)
    monkeypatch.setattr(store, "credentials", read)
    await registrar_with(engine, FakeJasper(), {}).register(PRODUCT)
    late = asyncio.create_task(keyring.look_again())
    await asyncio.sleep(0)
    held.set()
    await asyncio.gather(early, late)
    assert keyring.accepted(PRODUCT, NOW).secrets == ("signing-secret-1",)
