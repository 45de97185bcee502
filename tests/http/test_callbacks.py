"""The callback endpoint over real HTTP: every answer of the contract's table, and what is kept of each."""

import asyncio
import base64
import gzip
import hmac
import json
from collections.abc import AsyncIterator
from hashlib import sha256

import asyncpg
import httpx
import pytest

from app import main
from app.errors import DatabaseUnavailableError
from app.intake.keyring import Keyring
from app.main import create_app
from app.registration.store import RegistrationStore
from app.sealing import generate_key
from app.settings import Settings
from tests.conftest import served
from tests.http.conftest import PRODUCT, SECRET, Receiver, Start, problem_of


async def test_an_authentic_callback_is_committed_before_it_is_answered(receiver: Receiver) -> None:
    response = await receiver.callback()
    assert response.status_code == 200
    receipt = response.json()
    [event] = await receiver.sql.fetch("SELECT * FROM events")
    assert receipt == {"status": "accepted", "delivery_id": str(event["delivery_id"]), "event_id": str(event["id"])}


async def test_a_repetition_and_an_unreadable_one_are_answered_200_in_their_own_words(receiver: Receiver) -> None:
    first = (await receiver.callback()).json()
    again = (await receiver.callback()).json()
    unreadable = (await receiver.callback(b"no json")).json()
    assert again["status"] == "duplicate"
    assert again["event_id"] == first["event_id"]
    assert (unreadable["status"], unreadable["event_id"]) == ("quarantined", None)
    assert await receiver.counts() == (3, 1)


@pytest.mark.parametrize("collection", ["products", "products/"])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
async def test_neither_content_type_nor_a_trailing_slash_decides_anything(
    receiver: Receiver, collection: str, content_type: str
) -> None:
    response = await receiver.callback(PRODUCT, collection, x_secret=SECRET, content_type=content_type)
    assert (response.status_code, response.json()["status"]) == (200, "accepted")


def signature(body: bytes, encoding: str) -> str:
    digest = hmac.digest(SECRET.encode(), body, sha256)
    return digest.hex() if encoding == "hex" else base64.b64encode(digest).decode()


BODY = json.dumps(PRODUCT).encode()


@pytest.mark.parametrize(
    ("place", "body", "headers"),
    [
        ("header:x-anything", BODY, {"x_anything": SECRET}),
        ("header:authorization", BODY, {"authorization": f"Bearer {SECRET}"}),
        ("hmac-sha256:signature", BODY, {"signature": signature(BODY, "hex")}),
        ("hmac-sha256:x-hub", BODY, {"x_hub": f"sha256={signature(BODY, 'base64')}"}),
        ("body:/secret", json.dumps({**PRODUCT, "secret": SECRET}).encode(), {"x": "y"}),
        ("body:/meta/token", json.dumps({**PRODUCT, "meta": {"token": SECRET}}).encode(), {"x": "y"}),
    ],
)
async def test_the_secret_is_found_wherever_it_travels_and_shown_nowhere(
    receiver: Receiver, place: str, body: bytes, headers: dict[str, str]
) -> None:
    response = await receiver.callback(body, **headers)
    assert response.json()["status"] == "accepted", response.text

    [delivery] = await receiver.sql.fetch("SELECT * FROM deliveries")
    assert delivery["proof"] == place
    shown = (await receiver.http.get(f"/v1/deliveries/{delivery['id']}")).text
    registrations = await receiver.http.get("/v1/webhooks")
    events = await receiver.http.get("/v1/events")
    assert registrations.json()["webhooks"][0]["proof"] == place
    for text in (shown, registrations.text, events.text, repr(dict(delivery))):
        assert SECRET not in text


@pytest.mark.parametrize(
    "headers",
    [{"x_secret": "wrong"}, {"x_secret": SECRET[:-1]}, {"x_secret": f"{SECRET}x"}, {"signature": "0" * 64}, {"a": "b"}],
)
async def test_what_does_not_prove_the_secret_leaves_nothing_but_a_rejection(
    receiver: Receiver, headers: dict[str, str]
) -> None:
    problem_of(await receiver.callback(**headers), 401)
    assert await receiver.counts() == (0, 0)
    assert await receiver.sql.fetchval("SELECT count(*) FROM unproven") == 0
    [rejection] = (await receiver.http.get("/v1/rejections")).json()["rejections"]
    assert rejection["path"] == "/callbacks/products"
    assert set(headers) <= {name.replace("-", "_") for name in rejection["header_names"]}


async def test_only_the_last_hundred_rejections_are_kept_newest_first(receiver: Receiver) -> None:
    for number in range(103):
        await receiver.callback(**{f"x_{number}": "wrong"})
    rejections = (await receiver.http.get("/v1/rejections")).json()["rejections"]
    assert len(rejections) == 100
    assert "x-102" in rejections[0]["header_names"]


async def test_a_pinned_location_accepts_no_other(start: Start) -> None:
    async with start(jasper_signing_secret_location="header:X-Pinned") as receiver:
        problem_of(await receiver.callback(x_secret=SECRET), 401)
        assert (await receiver.callback(x_pinned=SECRET)).status_code == 200


CUSTOM = {"My-Custom-Header": "abc123"}


async def test_the_custom_headers_are_required_value_for_value(start: Start) -> None:
    async with start(jasper_webhook_headers=CUSTOM) as receiver:
        problem_of(await receiver.callback(x_secret=SECRET), 401)
        problem_of(await receiver.callback(x_secret=SECRET, my_custom_header="abc124"), 401)
        assert await receiver.sql.fetchval("SELECT count(*) FROM unproven") == 0
        assert (await receiver.callback(x_secret=SECRET, my_custom_header="abc123")).status_code == 200
        assert "abc123" not in await receiver.sql.fetchval("SELECT headers FROM deliveries")


async def test_a_callback_with_the_right_headers_but_no_provable_secret_is_kept_apart_once_and_sealed(
    start: Start,
) -> None:
    async with start(jasper_webhook_headers=CUSTOM) as receiver:
        body = json.dumps({"a": {"b": {"secret": SECRET}}, **PRODUCT}).encode()
        for _attempt in range(2):
            problem_of(await receiver.callback(body, my_custom_header="abc123"), 401)
        [kept] = await receiver.sql.fetch("SELECT * FROM unproven")
        assert SECRET.encode() not in kept["sealed"]
        assert SECRET not in repr({name: value for name, value in kept.items() if name != "sealed"})
        [shown] = (await receiver.http.get("/v1/unproven")).json()["unproven"]
        assert shown["entity_type"] == "product"
        assert "my-custom-header" in shown["header_names"]
        assert "/data/id: number" in shown["outline"]


async def test_no_more_unproven_callbacks_are_kept_than_the_limit_says(start: Start) -> None:
    async with start(jasper_webhook_headers=CUSTOM, unproven_limit=2) as receiver:
        for number in range(4):
            problem_of(await receiver.callback({"id": number}, my_custom_header="abc123"), 401)
        assert await receiver.sql.fetchval("SELECT count(*) FROM unproven") == 2


async def test_without_a_known_secret_jasper_is_asked_to_come_again(start: Start) -> None:
    async with start(secret=None) as receiver:
        response = await receiver.callback()
        problem_of(response, 503)
        assert int(response.headers["retry-after"]) > 0
        problem_of(await receiver.callback(collection="brands"), 503)


async def test_while_a_registration_is_under_way_what_is_not_proven_comes_again(receiver: Receiver) -> None:
    await receiver.sql.execute("UPDATE registrations SET pending_since = now()")
    problem_of(await receiver.callback(x_secret="wrong"), 503)
    assert (await receiver.callback()).status_code == 200


async def test_a_secret_that_another_replica_stored_is_accepted_at_once(start: Start) -> None:
    """The refusal of a proof is looked at twice: the second time with what the database says now."""
    async with start(secret=None) as one, start() as _other:
        assert (await one.callback()).status_code == 200


@pytest.mark.parametrize("path", ["/callbacks/unknown", "/callbacks", "/callbacks/products/1", "/callbacks/../v2"])
async def test_an_unknown_collection_is_404(receiver: Receiver, path: str) -> None:
    problem_of(await receiver.http.post(path, content=b"{}", headers={"x-secret": SECRET}), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_anything_but_a_post_is_405_and_says_what_is_allowed(receiver: Receiver, method: str) -> None:
    response = await receiver.http.request(method, "/callbacks/products", headers={"x-secret": SECRET})
    problem_of(response, 405)
    assert response.headers["allow"] == "POST"


async def test_a_body_over_the_limit_is_413_whether_its_length_is_told_or_not(start: Start) -> None:
    async with start(max_body_bytes=1000) as receiver:

        async def dripping() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100

        problem_of(await receiver.callback(b"x" * 1001), 413)
        told_nothing = await receiver.http.post("/callbacks/products", content=dripping(), headers={"x-secret": SECRET})
        problem_of(told_nothing, 413)
        assert (await receiver.callback(b" " * 999 + b"1")).json()["status"] == "quarantined"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
        pytest.param(b"[" * 200_000, id="deep"),
        pytest.param(b'{"id":' + b"9" * 100_000 + b"}", id="an endless number"),
        pytest.param(gzip.compress(BODY), id="compressed"),
        pytest.param(b'{"id":1,"id":2}', id="a name twice"),
        pytest.param(b'{"id":"\\ud800"}', id="an id that is no text"),
        pytest.param(b'{"id":1,"price":NaN}', id="not a number"),
    ],
)
async def test_hostile_bodies_from_an_authentic_sender_are_kept_whole(receiver: Receiver, body: bytes) -> None:
    response = await receiver.callback(body)
    assert (response.status_code, response.json()["status"]) == (200, "quarantined")
    assert await receiver.sql.fetchval("SELECT body FROM deliveries") == body


async def test_what_jsonb_could_not_hold_comes_back_byte_for_byte(receiver: Receiver) -> None:
    data = (
        b'{"id":1,"nul":"\\u0000","lone":"\\ud83d","big":1e400,"price":1.10,'
        b'"digits":1234567890123456789012345678901234567890}'
    )
    assert (await receiver.callback(b'{"event":"created","data":' + data + b"}")).json()["status"] == "accepted"
    assert data in (await receiver.http.get("/v1/events")).content
    assert data in (await receiver.http.get("/v1/products/1")).content


async def test_when_postgres_is_gone_jasper_is_asked_to_come_again_and_nothing_is_lost(
    receiver: Receiver, postgres_server: str
) -> None:
    name = await receiver.sql.fetchval("SELECT current_database()")
    admin = await asyncpg.connect(postgres_server)
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name <> 'test'", name
    )
    problem_of(await receiver.callback(), 503)
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await admin.close()
    assert (await receiver.callback()).json()["status"] == "accepted"
    assert await receiver.counts() == (1, 1)


async def test_a_start_without_postgres_succeeds_and_asks_jasper_to_come_again() -> None:
    """It may go away between the migration and the start of the web application; that is no reason to end."""
    key, nowhere = generate_key(), "postgresql://nobody@127.0.0.1:1/nothing"
    app = create_app(Settings(_env_file=None, database_url=nowhere, encryption_keys=[key]), nowhere, [key])
    async with served(app) as url, httpx.AsyncClient(base_url=url) as http:
        response = await http.post("/callbacks/products", json=PRODUCT, headers={"x-secret": SECRET})
        problem_of(response, 503)
        assert int(response.headers["retry-after"]) > 0
        assert (await http.get("/readyz")).status_code == 503


async def test_a_face_that_the_roles_leave_out_is_404(start: Start) -> None:
    async with start(roles=["api"]) as receiver:
        problem_of(await receiver.callback(), 404)
        assert (await receiver.http.get("/v1/events")).status_code == 200
    async with start(roles=["callbacks"], secret=None) as receiver:
        assert (await receiver.callback()).status_code == 200
        problem_of(await receiver.http.get("/v1/events"), 404)
        problem_of(await receiver.http.get("/docs"), 404)
        assert (await receiver.http.get("/healthz")).status_code == 200


async def test_readiness_tells_what_is_missing(start: Start) -> None:
    async with start(secret=None) as receiver:
        response = await receiver.http.get("/readyz")
        checks = {check["name"]: check for check in response.json()["checks"]}
        assert response.status_code == 503
        assert checks["postgres"]["ok"]
        assert not checks["secret:product"]["ok"]
        assert "JASPER_API_URL" in checks["registration"]["reason"]


async def test_readiness_is_given_once_a_secret_is_known(receiver: Receiver) -> None:
    response = await receiver.http.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ready")


async def test_who_may_have_a_secret_that_is_new_is_not_refused_while_nobody_can_look(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica may have rotated it, and this one not have heard of it; not every plan of retries survives a 401."""

    async def away(_self: RegistrationStore) -> object:
        raise DatabaseUnavailableError("Postgres cannot be reached")

    problem_of(await receiver.callback(x_secret="a-guess"), 401)
    monkeypatch.setattr(RegistrationStore, "credentials", away)
    refused = await receiver.callback(x_secret="the-new-secret")
    problem_of(refused, 503)
    assert int(refused.headers["retry-after"]) > 0
    assert (await receiver.callback()).json()["status"] == "accepted"


async def test_a_chore_that_died_begins_anew(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody would miss it before it is needed."""
    begun = asyncio.Event()
    times = 0

    async def keep_fresh(_self: Keyring) -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise ZeroDivisionError
        begun.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(Keyring, "keep_fresh", keep_fresh)
    monkeypatch.setattr(main, "CHORES_BEGIN_ANEW", 0.01)
    async with start(), asyncio.timeout(10):
        await begun.wait()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "a background task died, begins anew"
    ]


async def test_a_chore_that_is_told_to_end_ends_whatever_comes_of_it() -> None:
    begun = asyncio.Event()

    async def chore() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as exc:
            raise DatabaseUnavailableError("cut off in the middle of a statement") from exc

    task = asyncio.create_task(main._kept_up(chore, "a chore"))
    await begun.wait()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=5)
    assert done


async def test_a_chore_that_misses_that_it_is_to_end_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is cut just then is an error like others, after which it would go on; and the process, too."""
    monkeypatch.setattr(main, "CHORES_ARE_TOLD_AGAIN", 0.01)
    begun, missed = asyncio.Event(), 0

    async def chore() -> None:
        nonlocal missed
        begun.set()
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                missed += 1
                if missed == 3:
                    raise

    async with asyncio.timeout(10), main._running(chore, name="a chore"):
        await begun.wait()
    assert missed == 3
