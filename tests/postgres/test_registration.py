"""Registration against a Jasper of which every call can be made to go wrong: what is created, mended, kept and retired."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import connect, create_engine
from app.db.locks import Lock, try_lock
from app.domain.values import EntityType
from app.errors import (
    ConflictError,
    DatabaseUnavailableError,
    JasperRefusedError,
    JasperUnavailableError,
    SealingError,
    UnavailableError,
)
from app.registration.register import Outcome, Registrar, Turn, wanted_webhook
from app.registration.retry_window import ATTEMPT_MARGIN
from app.registration.store import PENDING_AT_MOST, State
from app.sealing import Sealer
from app.settings import Settings
from tests.fake_jasper import IMPATIENT, TOKEN, FakeJasper, jasper_settings

PRODUCT = EntityType.PRODUCT
NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)
RETIREMENT = timedelta(minutes=25) + 6 * ATTEMPT_MARGIN  # of the default plan: linear, 300 s, 5 retries
KEY = Fernet.generate_key().decode()


class Crash(BaseException):
    """The process dies here."""


def registrar_for(
    engine: AsyncEngine,
    jasper: FakeJasper,
    settings: Settings | None = None,
    *,
    now: datetime = NOW,
    key: str = KEY,
    turn: Turn | None = None,
) -> Registrar:
    return Registrar(
        settings or jasper_settings(),
        engine=engine,
        sealer=Sealer([key]),
        http=jasper.http,
        patience=IMPATIENT,
        turn=turn or Turn(poll=0.01),
        clock=lambda: now,
    )


async def secrets(registrar: Registrar) -> list[str]:
    """The current secret, then those retiring."""
    registrations, retiring = await registrar.store.credentials()
    current = [registration.signing_secret for registration in registrations]
    return [secret for secret in [*current, *(each.signing_secret for each in retiring)] if secret is not None]


def on(method: str, path: str, do: Callable[[], httpx.Response | None]) -> Callable[[httpx.Request], Any]:
    """Do something at one kind of call only."""
    return lambda request: do() if (request.method, request.url.path) == (method, f"/api/v1{path}") else None


def crash() -> None:
    raise Crash


@pytest.fixture
def jasper() -> FakeJasper:
    """A Jasper that holds somebody else's webhooks over several pages."""
    jasper = FakeJasper(page_size=2)
    for number in range(5):
        jasper.add(name=f"somebody's {number}", callback_url="https://elsewhere.test/", entity_type="product")
    return jasper


@pytest.fixture
def empty() -> FakeJasper:
    return FakeJasper()


@pytest.mark.parametrize("wrapped", [True, False])
async def test_first_registration_creates_the_webhook_and_keeps_its_secret(engine: AsyncEngine, wrapped: bool) -> None:
    jasper = FakeJasper(wrapped=wrapped, bare_list=not wrapped)
    registrar = registrar_for(engine, jasper)
    outcome = await registrar.register(PRODUCT)
    assert outcome == Outcome(PRODUCT, "1", State.REGISTERED, ("created",), None)
    stored = await registrar.store.load(PRODUCT)
    assert (stored.state, stored.webhook_id, stored.signing_secret) == (State.REGISTERED, "1", "signing-secret-1")
    assert (stored.registered_at, stored.checked_at, stored.pending_since, stored.last_error) == (NOW, NOW, None, None)
    assert jasper.only["callback_url"] == "https://receiver.test/callbacks/products"


async def test_all_entity_types_get_webhooks_of_their_own(engine: AsyncEngine, empty: FakeJasper) -> None:
    registrar = registrar_for(engine, empty)
    for entity_type in EntityType:
        await registrar.register(entity_type)
    assert {
        (webhook["name"], webhook["callback_url"], webhook["entity_type"]) for webhook in empty.webhooks.values()
    } == {
        ("Product Updates Webhook", "https://receiver.test/callbacks/products", "product"),
        ("Product Updates Webhook (category)", "https://receiver.test/callbacks/categories", "category"),
        ("Product Updates Webhook (brand)", "https://receiver.test/callbacks/brands", "brand"),
        (
            "Product Updates Webhook (concrete_entity)",
            "https://receiver.test/callbacks/concrete-entities",
            "concrete_entity",
        ),
    }
    assert len(set(await secrets(registrar))) == 4


@pytest.mark.parametrize(
    "hides", [frozenset[str](), frozenset({"headers"}), frozenset({"retry_limit", "callback_url"})]
)
async def test_second_run_only_reads(engine: AsyncEngine, jasper: FakeJasper, hides: frozenset[str]) -> None:
    """Also where Jasper does not show every property, and where ours is not on the first page of the list."""
    jasper.hides = hides
    settings = jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr("abc123")})
    await registrar_for(engine, jasper, settings).register(PRODUCT)
    jasper.calls.clear()
    later = NOW + timedelta(hours=1)
    outcome = await registrar_for(engine, jasper, settings, now=later).register(PRODUCT)
    assert outcome.done == ()
    assert jasper.writes == []
    stored = await registrar_for(engine, jasper).store.load(PRODUCT)
    assert (stored.checked_at, stored.registered_at) == (later, NOW)


async def test_secrets_and_headers_are_sealed_at_rest(engine: AsyncEngine, empty: FakeJasper) -> None:
    settings = jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr("a-header-value")})
    registrar = registrar_for(engine, empty, settings)
    await registrar.register(PRODUCT)
    await registrar.rotate(PRODUCT)
    async with engine.connect() as connection:
        tables = [
            (await connection.execute(text(f"SELECT * FROM {table}"))).all()  # noqa: S608 # one of two literals
            for table in ("registrations", "retiring_credentials")
        ]
    raw = repr(tables)
    assert "signing-secret" not in raw
    assert "a-header-value" not in raw
    assert "gAAAA" in raw  # as every Fernet token begins


async def test_reprs_hide_secrets_and_headers(engine: AsyncEngine, empty: FakeJasper) -> None:
    settings = jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr("a-header-value")})
    registrar = registrar_for(engine, empty, settings)
    await registrar.register(PRODUCT)
    outcome = await registrar.rotate(PRODUCT)
    shown = repr((outcome, await registrar.store.credentials(), wanted_webhook(settings, PRODUCT)))
    assert "signing-secret" not in shown
    assert "a-header-value" not in shown


DRIFTS: list[tuple[str, Any]] = [
    ("name", "Renamed by hand"),
    ("callback_url", "https://elsewhere.test/callbacks/products"),
    ("include_entity_data", False),
    ("headers", {"X-Other": "1"}),
    ("retry_policy", "no_retry"),
    ("minimum_retry_interval", 1),
    ("retry_limit", 0),
    ("entity_type", "brand"),
]


@pytest.mark.parametrize("verb", ["PUT", "PATCH"])
async def test_each_property_that_drifted_is_mended(engine: AsyncEngine, jasper: FakeJasper, verb: str) -> None:
    jasper.verbs = (verb,)
    registrar = registrar_for(engine, jasper)
    webhook_id = (await registrar.register(PRODUCT)).webhook_id
    for name, value in DRIFTS:
        wanted = jasper.webhooks[webhook_id][name]
        jasper.webhooks[webhook_id][name] = value
        outcome = await registrar.register(PRODUCT)
        assert (outcome.webhook_id, outcome.done) == (webhook_id, (f"mended {name}",))
        assert jasper.webhooks[webhook_id][name] == wanted
        assert jasper.writes[-1] == (verb, f"/webhooks/{webhook_id}")
    assert len(jasper.webhooks) == 6


async def test_webhook_that_cannot_be_updated_is_replaced_new_first(engine: AsyncEngine, jasper: FakeJasper) -> None:
    """The new one is created before the old one goes, so that no change falls between; both secrets are accepted."""
    jasper.verbs = ()
    registrar = registrar_for(engine, jasper)
    old = await registrar.register(PRODUCT)
    jasper.webhooks[old.webhook_id]["retry_limit"] = 1
    outcome = await registrar.register(PRODUCT)
    assert outcome.webhook_id != old.webhook_id
    assert [method for method, _ in jasper.writes[-2:]] == ["POST", "DELETE"]
    assert jasper.webhooks[outcome.webhook_id]["retry_limit"] == 5
    assert old.webhook_id not in jasper.webhooks
    assert await secrets(registrar) == ["signing-secret-7", "signing-secret-6"]
    jasper.calls.clear()
    assert (await registrar.register(PRODUCT)).done == ()


async def test_property_that_jasper_will_never_show_as_wanted_is_told_and_not_replaced_again_and_again(
    engine: AsyncEngine, empty: FakeJasper
) -> None:
    """Jasper may round an interval: a new webhook on every start would change the secret for nothing."""
    empty.ignores = frozenset({"minimum_retry_interval"})
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.only["minimum_retry_interval"] = 301
    outcome = await registrar.register(PRODUCT)
    assert outcome.webhook_id == "1"
    assert outcome.problem is not None
    assert "minimum_retry_interval" in outcome.problem
    assert (await registrar.store.load(PRODUCT)).last_error == outcome.problem


async def test_update_that_silently_changes_nothing_ends_in_a_replacement(
    engine: AsyncEngine, empty: FakeJasper
) -> None:
    """With other headers than the settings want, every callback would be refused."""
    await registrar_for(engine, empty).register(PRODUCT)
    empty.ignores = frozenset({"headers"})
    settings = jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr("abc123")})
    outcome = await registrar_for(engine, empty, settings).register(PRODUCT)
    assert outcome.webhook_id == "2"
    assert empty.only["headers"] == {"X-Custom": "abc123"}


async def test_update_that_brings_a_new_secret_keeps_both(engine: AsyncEngine, empty: FakeJasper) -> None:
    empty.rotates_on_update = True
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.only["retry_limit"] = 3
    await registrar.register(PRODUCT)
    assert await secrets(registrar) == ["signing-secret-2", "signing-secret-1"]


async def test_old_secret_stays_as_long_as_the_longest_plan_that_may_retry_with_it(
    engine: AsyncEngine, empty: FakeJasper
) -> None:
    """Somebody lengthened the plan by hand: Jasper retries by what it has, not by what we once asked for."""
    empty.verbs = ()
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.only["retry_limit"] = 50
    await registrar.register(PRODUCT)
    _, [retiring] = await registrar.store.credentials()
    assert retiring.accepted_until == NOW + timedelta(seconds=300 * 50) + 51 * ATTEMPT_MARGIN


async def test_webhook_of_ours_with_unknown_secret_is_recreated(engine: AsyncEngine, jasper: FakeJasper) -> None:
    """The database was lost: the name and the callback URL tell that it is ours, but nothing tells its secret."""
    old = jasper.add(**wanted_webhook(jasper_settings(), PRODUCT).as_json())
    registrar = registrar_for(engine, jasper)
    outcome = await registrar.register(PRODUCT)
    assert "re-created, its secret was not known" in outcome.done
    assert str(old["id"]) not in jasper.webhooks
    assert len(jasper.webhooks) == 6
    assert await secrets(registrar) == [jasper.webhooks[outcome.webhook_id]["signing_secret"]]


async def test_secret_that_jasper_repeats_is_taken_over(engine: AsyncEngine, jasper: FakeJasper) -> None:
    jasper.repeats_secret = True
    ours = jasper.add(**wanted_webhook(jasper_settings(), PRODUCT).as_json())
    registrar = registrar_for(engine, jasper)
    outcome = await registrar.register(PRODUCT)
    assert outcome.webhook_id == str(ours["id"])
    assert jasper.writes == []
    assert await secrets(registrar) == [ours["signing_secret"]]
    assert (await registrar.register(PRODUCT)).done == ()


async def test_secret_rotated_at_jasper_is_taken_over_where_it_shows(engine: AsyncEngine, empty: FakeJasper) -> None:
    empty.repeats_secret = True
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.only["signing_secret"] = "rotated-by-hand"
    await registrar.register(PRODUCT)
    assert await secrets(registrar) == ["rotated-by-hand", "signing-secret-1"]


async def test_webhook_deleted_at_jasper_is_created_again(engine: AsyncEngine, empty: FakeJasper) -> None:
    """Retries of the deleted one may still be under way, so its secret stays a while."""
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.webhooks.clear()
    await registrar.register(PRODUCT)
    assert await secrets(registrar) == ["signing-secret-2", "signing-secret-1"]


async def test_duplicates_go_and_the_one_whose_secret_is_known_stays(engine: AsyncEngine, jasper: FakeJasper) -> None:
    wanted = wanted_webhook(jasper_settings(), PRODUCT).as_json()
    registrar = registrar_for(engine, jasper)
    ours = await registrar.register(PRODUCT)
    for _ in range(3):
        jasper.add(**wanted)
    outcome = await registrar.register(PRODUCT)
    assert outcome.webhook_id == ours.webhook_id
    assert [method for method, _ in jasper.writes] == ["POST", "DELETE", "DELETE", "DELETE"]
    assert len(jasper.webhooks) == 6


async def test_webhook_with_our_id_that_is_nothing_like_ours_is_left_alone(
    engine: AsyncEngine, empty: FakeJasper
) -> None:
    """The settings name another tenant now, in which our number is somebody else's webhook."""
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.only.update(name="Somebody's", callback_url="https://elsewhere.test/")
    theirs = dict(empty.only)
    outcome = await registrar.register(PRODUCT)
    assert outcome.webhook_id == "2"
    assert empty.webhooks["1"] == theirs


async def test_new_public_url_moves_the_webhook(engine: AsyncEngine, empty: FakeJasper) -> None:
    await registrar_for(engine, empty).register(PRODUCT)
    moved = jasper_settings(public_url="https://moved.test")
    await registrar_for(engine, empty, moved).register(PRODUCT)
    assert empty.only["callback_url"] == "https://moved.test/callbacks/products"


async def test_changed_headers_keep_both_sets(engine: AsyncEngine, empty: FakeJasper) -> None:
    before = jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr("old")})
    after = jasper_settings(jasper_webhook_headers={"x-custom": SecretStr("new")})
    await registrar_for(engine, empty, before).register(PRODUCT)
    registrar = registrar_for(engine, empty, after)
    await registrar.register(PRODUCT)
    [registration], [retiring, announced] = await registrar.store.credentials()
    assert (registration.headers, retiring.headers) == ({"x-custom": "new"}, {"X-Custom": "old"})
    assert retiring.accepted_until == NOW + RETIREMENT
    assert (announced.headers, announced.accepted_until) == (registration.headers, NOW + PENDING_AT_MOST)


@pytest.mark.parametrize("lost", ["the call", "its answer"])
async def test_headers_that_jasper_may_send_already_are_accepted_before_its_answer_is_heard(
    engine: AsyncEngine, empty: FakeJasper, lost: str
) -> None:
    """Asked again and again, whether or not Jasper has carried it out, they are kept once."""
    before = jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr("old")})
    after = jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr("new")})
    await registrar_for(engine, empty, before).register(PRODUCT)
    if lost == "the call":
        empty.trouble = on("PUT", "/webhooks/1", crash)
    else:
        empty.after = on("PUT", "/webhooks/1", crash)
    registrar = registrar_for(engine, empty, after)
    for _ in range(2):
        with pytest.raises(Crash):
            await registrar.register(PRODUCT)
        [registration], [announced] = await registrar.store.credentials()
        assert (registration.headers, announced.headers) == ({"X-Custom": "old"}, {"X-Custom": "new"})
        assert registration.is_pending(NOW)
        assert announced.accepted_until == NOW + PENDING_AT_MOST


async def test_headers_that_jasper_hides_are_updated_all_the_same(engine: AsyncEngine, empty: FakeJasper) -> None:
    empty.hides = frozenset({"headers"})
    await registrar_for(engine, empty).register(PRODUCT)
    settings = jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr("new")})
    await registrar_for(engine, empty, settings).register(PRODUCT)
    assert empty.only["headers"] == {"X-Custom": "new"}


async def test_expired_credentials_are_cleared_away(engine: AsyncEngine, empty: FakeJasper) -> None:
    await registrar_for(engine, empty).register(PRODUCT)
    await registrar_for(engine, empty).rotate(PRODUCT)
    later = registrar_for(engine, empty, now=NOW + RETIREMENT + timedelta(seconds=1))
    await later.rotate(PRODUCT)
    assert await secrets(later) == ["signing-secret-3", "signing-secret-2"]


async def test_secret_that_is_not_accepted_any_more_is_forgotten_at_the_next_look(
    engine: AsyncEngine, empty: FakeJasper
) -> None:
    """It does not wait in the database for the next rotation, which may never come."""
    await registrar_for(engine, empty).register(PRODUCT)
    await registrar_for(engine, empty).rotate(PRODUCT)
    last_moment = registrar_for(engine, empty, now=NOW + RETIREMENT)
    await last_moment.register(PRODUCT)
    assert await secrets(last_moment) == ["signing-secret-2", "signing-secret-1"]
    later = registrar_for(engine, empty, now=NOW + RETIREMENT + timedelta(seconds=1))
    await later.register(PRODUCT)
    assert await secrets(later) == ["signing-secret-2"]


async def test_crash_between_creation_and_commit_is_resumed(engine: AsyncEngine, empty: FakeJasper) -> None:
    """The secret of the orphan is lost, so it is replaced; exactly one webhook is live afterwards."""
    empty.after = on("POST", "/webhooks", crash)
    registrar = registrar_for(engine, empty)
    with pytest.raises(Crash):
        await registrar.register(PRODUCT)
    stored = await registrar.store.load(PRODUCT)
    assert (stored.state, stored.signing_secret, stored.is_pending(NOW)) == (State.PENDING, None, True)
    assert not stored.is_pending(NOW + PENDING_AT_MOST)

    empty.after = FakeJasper.after
    await registrar.register(PRODUCT)
    assert empty.only["id"] == 2
    stored = await registrar.store.load(PRODUCT)
    assert (stored.signing_secret, stored.is_pending(NOW)) == ("signing-secret-2", False)


async def test_secret_is_committed_before_jasper_is_asked_anything_else(engine: AsyncEngine, empty: FakeJasper) -> None:
    """The run dies at the first call after the creation: the new secret is there already, and so is the old one."""
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.trouble = on("DELETE", "/webhooks/1", crash)
    with pytest.raises(Crash):
        await registrar.rotate(PRODUCT)
    assert await secrets(registrar) == ["signing-secret-2", "signing-secret-1"]
    assert (await registrar.store.load(PRODUCT)).pending_since is None

    empty.trouble = FakeJasper.trouble
    await registrar.register(PRODUCT)
    assert empty.only["id"] == 2


async def test_crash_after_an_update_asks_once_more_to_hear_the_secret(engine: AsyncEngine, empty: FakeJasper) -> None:
    """The lost answer may have carried a new secret, and nothing that Jasper shows tells so."""
    empty.rotates_on_update = True
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.only["retry_limit"] = 3
    empty.after = on("PUT", "/webhooks/1", crash)
    with pytest.raises(Crash):
        await registrar.register(PRODUCT)
    assert (await registrar.store.load(PRODUCT)).is_pending(NOW)
    empty.after = FakeJasper.after
    await registrar.register(PRODUCT)
    assert (await secrets(registrar))[0] == empty.only["signing_secret"] == "signing-secret-3"


async def test_creation_whose_answer_is_lost_leaves_one_webhook(engine: AsyncEngine, empty: FakeJasper) -> None:
    """The list is looked through again before anything is created a second time."""
    lost = [httpx.ReadTimeout("too slow")]

    def lose() -> None:
        if lost:
            raise lost.pop()

    empty.after = on("POST", "/webhooks", lose)
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    assert empty.calls.count(("GET", "/webhooks")) == 2
    assert await secrets(registrar) == [empty.only["signing_secret"]]


async def test_answers_that_are_always_lost_never_pile_up_webhooks(engine: AsyncEngine, empty: FakeJasper) -> None:
    def lose() -> None:
        raise httpx.ReadTimeout("too slow")

    empty.after = on("POST", "/webhooks", lose)
    registrar = registrar_for(engine, empty)
    for _ in range(5):
        with pytest.raises(JasperUnavailableError):
            await registrar.register(PRODUCT)
    assert len(empty.webhooks) == 2
    assert (await registrar.store.load(PRODUCT)).is_pending(NOW)


async def test_what_stays_unknown_counts_from_its_beginning(engine: AsyncEngine, empty: FakeJasper) -> None:
    """Else a Jasper that is in trouble for long would have callbacks put off for ever that are to be kept apart."""
    empty.trouble = on("POST", "/webhooks", lambda: httpx.Response(503))
    for minutes in range(0, 90, 15):
        with pytest.raises(JasperUnavailableError):
            await registrar_for(engine, empty, now=NOW + timedelta(minutes=minutes)).register(PRODUCT)
    stored = await registrar_for(engine, empty).store.load(PRODUCT)
    assert stored.pending_since == NOW
    assert not stored.is_pending(NOW + timedelta(minutes=75))


@pytest.mark.parametrize("dies", [True, False], ids=["the process dies", "Jasper does not answer"])
@pytest.mark.parametrize("rotate", [True, False], ids=["rotated", "replaced"])
async def test_what_was_replaced_under_other_settings_is_deleted_in_the_end(
    engine: AsyncEngine, empty: FakeJasper, dies: bool, rotate: bool
) -> None:
    """Neither its name nor its URL tells then that it is ours; it would send every change a second time."""
    empty.verbs = ()
    await registrar_for(engine, empty).register(PRODUCT)
    moved = jasper_settings(public_url="https://moved.test", jasper_webhook_name="another name")
    times = [1]

    def fail() -> httpx.Response | None:
        if times and times.pop():
            if dies:
                raise Crash
            return httpx.Response(503)
        return None

    empty.trouble = on("DELETE", "/webhooks/1", fail)
    registrar = registrar_for(engine, empty, moved)
    if dies:
        with pytest.raises(Crash):
            await (registrar.rotate(PRODUCT) if rotate else registrar.register(PRODUCT))
        assert len(empty.webhooks) == 2
    outcome = await (registrar.rotate(PRODUCT) if rotate and not dies else registrar.register(PRODUCT))
    assert (outcome.webhook_id, empty.only["id"]) == ("2", 2)
    assert (await registrar.store.load(PRODUCT)).superseded == ()


async def test_a_webhook_that_was_replaced_and_cannot_be_deleted_is_told_until_it_is_gone(
    engine: AsyncEngine, empty: FakeJasper
) -> None:
    empty.verbs = ()
    await registrar_for(engine, empty).register(PRODUCT)
    empty.trouble = on("DELETE", "/webhooks/1", lambda: httpx.Response(403))
    registrar = registrar_for(engine, empty, jasper_settings(public_url="https://moved.test"))
    for _ in range(2):
        assert "webhook 1 is superfluous" in str((await registrar.register(PRODUCT)).problem)
    del empty.webhooks["1"]
    assert (await registrar.register(PRODUCT)).problem is None
    assert (await registrar.store.load(PRODUCT)).superseded == ()


async def test_an_id_of_another_tenant_is_nobody_of_ours(engine: AsyncEngine, empty: FakeJasper) -> None:
    """Ids are small numbers, and the usual name is the example of Jasper's documentation."""
    await registrar_for(engine, empty).register(PRODUCT)
    settings = jasper_settings(jasper_api_url="https://other.eu.jasperpim.test/api/v1")
    other = FakeJasper()
    theirs = dict(
        other.add(
            name=settings.jasper_webhook_name, callback_url="https://elsewhere.test/", entity_type="product", headers={}
        )
    )
    outcome = await registrar_for(engine, other, settings).register(PRODUCT)
    assert outcome.webhook_id == "2"
    assert other.webhooks["1"] == theirs
    assert await secrets(registrar_for(engine, other, settings)) == ["signing-secret-2", "signing-secret-1"]


async def test_a_lock_whose_connection_is_lost_undoes_nothing_that_was_done(engine: AsyncEngine, database: str) -> None:
    sql = await connect(database, application_name="test")
    cut = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()"""

    async def cut_off() -> None:
        async with try_lock(engine, Lock.REGISTRATION) as held:
            assert held
            assert await sql.fetchval(cut) >= 1

    await cut_off()
    async with try_lock(engine, Lock.REGISTRATION) as held:
        assert held
    await sql.close()


async def test_a_lock_that_cannot_be_asked_for_is_told_in_words() -> None:
    engine = create_engine("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailableError):
        async with try_lock(engine, Lock.REGISTRATION):
            pass


async def test_two_replicas_at_once_register_one_webhook(engine: AsyncEngine, empty: FakeJasper) -> None:
    outcomes = await asyncio.gather(*(registrar_for(engine, empty).register(PRODUCT) for _ in range(4)))
    assert {outcome.webhook_id for outcome in outcomes} == {"1"}
    assert [method for method, _ in empty.writes] == ["POST"]


async def test_replica_does_not_wait_for_ever_for_another(engine: AsyncEngine, empty: FakeJasper) -> None:
    async with try_lock(engine, Lock.REGISTRATION) as held:
        assert held
        with pytest.raises(UnavailableError, match="another replica"):
            await registrar_for(engine, empty, turn=Turn(poll=0.01, give_up=0.05)).register(PRODUCT)
    assert empty.calls == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(401, json={"message": f"{TOKEN} is wrong"}), "set JASPER_API_TOKEN"),
        (httpx.Response(422, json={"errors": {"callback_url": [f"no {TOKEN}"]}}), "PUBLIC_URL"),
        (httpx.Response(503), "in trouble"),
        (httpx.ReadTimeout("slow"), "did not answer"),
        (httpx.ConnectError("refused"), "cannot be reached"),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", [("GET", "/webhooks"), ("POST", "/webhooks")], ids=str)
async def test_trouble_is_stored_in_words_and_never_with_the_token(
    engine: AsyncEngine, empty: FakeJasper, answer: httpx.Response | Exception, words: str, call: tuple[str, str]
) -> None:
    def trouble() -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    empty.trouble = on(*call, trouble)
    registrar = registrar_for(engine, empty)
    with pytest.raises((JasperRefusedError, JasperUnavailableError), match=words) as caught:
        await registrar.register(PRODUCT)
    stored = await registrar.store.load(PRODUCT)
    assert (stored.state, stored.last_error, stored.last_error_at) == (State.FAILED, str(caught.value), NOW)
    assert TOKEN not in f"{stored.last_error}"
    # Only where the creation may have succeeded unheard is the secret in doubt.
    doubtful = call[0] == "POST" and isinstance(caught.value, JasperUnavailableError)
    assert stored.is_pending(NOW) == doubtful

    empty.trouble = FakeJasper.trouble
    await registrar.register(PRODUCT)
    assert (await registrar.store.load(PRODUCT)).last_error is None


async def test_trouble_leaves_the_stored_secret_alone(engine: AsyncEngine, empty: FakeJasper) -> None:
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.trouble = lambda _: httpx.Response(401)
    with pytest.raises(JasperRefusedError):
        await registrar.register(PRODUCT)
    assert await secrets(registrar) == ["signing-secret-1"]


@pytest.mark.parametrize("way", ["POST", "PATCH", "PUT"])
async def test_webhook_that_was_switched_off_is_switched_on_again(
    engine: AsyncEngine, empty: FakeJasper, way: str
) -> None:
    empty.enables_by, empty.verbs = frozenset({way}), ("PUT", "PATCH")
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.only["enabled"] = False
    outcome = await registrar.register(PRODUCT)
    assert (outcome.state, outcome.done) == (State.REGISTERED, ("switched on again",))
    assert empty.only["enabled"] is True


async def test_webhook_that_stays_off_says_what_to_do(engine: AsyncEngine, empty: FakeJasper) -> None:
    empty.enables_by = frozenset()
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    empty.only["enabled"] = False
    outcome = await registrar.register(PRODUCT)
    assert outcome.state is State.DISABLED
    stored = await registrar.store.load(PRODUCT)
    assert stored.state is State.DISABLED
    assert "enable it in Jasper" in (stored.last_error or "")
    assert stored.pending_since is None


async def test_superfluous_webhook_that_cannot_be_deleted_is_told(engine: AsyncEngine, empty: FakeJasper) -> None:
    empty.add(**wanted_webhook(jasper_settings(), PRODUCT).as_json())
    empty.trouble = on("DELETE", "/webhooks/1", lambda: httpx.Response(405))
    outcome = await registrar_for(engine, empty).register(PRODUCT)
    assert (outcome.webhook_id, outcome.state) == ("2", State.REGISTERED)
    assert "delete it in Jasper by hand" in (outcome.problem or "")


async def test_webhook_without_any_secret_is_an_error_in_words(engine: AsyncEngine, empty: FakeJasper) -> None:
    empty.hides = frozenset({"signing_secret"})
    with pytest.raises(JasperRefusedError, match="no signing_secret"):
        await registrar_for(engine, empty).register(PRODUCT)


async def test_rotation_keeps_the_old_secret_until_its_retries_are_over(engine: AsyncEngine, empty: FakeJasper) -> None:
    registrar = registrar_for(engine, empty)
    await registrar.register(PRODUCT)
    outcome = await registrar.rotate(PRODUCT)
    assert outcome.webhook_id == str(empty.only["id"]) == "2"
    [registration], [retiring] = await registrar.store.credentials()
    assert registration.signing_secret == "signing-secret-2"
    assert (retiring.signing_secret, retiring.accepted_until) == ("signing-secret-1", NOW + RETIREMENT)


async def test_lost_encryption_key_is_told_and_rotation_is_the_way_out(engine: AsyncEngine, empty: FakeJasper) -> None:
    """What no key opens is never thrown away: with the key put back, the old secret is accepted while it retires."""
    await registrar_for(engine, empty).register(PRODUCT)
    other = registrar_for(engine, empty, key=Fernet.generate_key().decode())
    with pytest.raises(SealingError, match="rotate-secret product"):
        await other.register(PRODUCT)
    assert "ENCRYPTION_KEYS" in ((await other.store.load(PRODUCT)).last_error or "")
    assert empty.only["id"] == 1
    await other.rotate(PRODUCT)
    assert await secrets(other) == ["signing-secret-2"]
    assert await secrets(registrar_for(engine, empty)) == ["signing-secret-1"]


async def test_without_jasper_there_is_nothing_to_register_with(engine: AsyncEngine, empty: FakeJasper) -> None:
    registrar = registrar_for(engine, empty, Settings())
    with pytest.raises(ConflictError, match="JASPER_API_URL"):
        await registrar.register(PRODUCT)


async def test_jasper_is_sent_the_documented_properties(engine: AsyncEngine, empty: FakeJasper) -> None:
    settings = jasper_settings(jasper_webhook_headers={"My-Custom-Header": SecretStr("abc123")})
    await registrar_for(engine, empty, settings).register(PRODUCT)
    body = next(body for body in empty.bodies if body)
    assert json.dumps(body) == json.dumps(
        {
            "name": "Product Updates Webhook",
            "callback_url": "https://receiver.test/callbacks/products",
            "entity_type": "product",
            "include_entity_data": True,
            "headers": {"My-Custom-Header": "abc123"},
            "retry_policy": "linear",
            "minimum_retry_interval": 300,
            "retry_limit": 5,
        }
    )
