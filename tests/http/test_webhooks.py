"""`/v1/webhooks`: what it tells, what it does, and what it never tells."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from cryptography.fernet import Fernet
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Receive, Scope, Send

from app import problems
from app.access import keys
from app.clock import utc_now
from app.db.engine import Lookups
from app.domain.values import EntityType
from app.intake.keyring import Keyring
from app.registration.register import Registrar
from app.registration.router import router
from app.sealing import Sealer
from app.settings import Settings
from tests.fake_jasper import IMPATIENT, TOKEN, FakeJasper, jasper_settings

ADMIN = "an-admin-key-for-tests"


@dataclass
class Service:
    """The routes on a database of their own, and the Jasper they talk to."""

    client: httpx.AsyncClient
    engine: AsyncEngine
    jasper: FakeJasper
    keyring: Keyring


async def serve(engine: AsyncEngine, lookups: Lookups, settings: Settings) -> AsyncIterator[Service]:
    jasper = FakeJasper()
    sealer = Sealer([Fernet.generate_key().decode()])
    registrar = Registrar(settings, engine=engine, sealer=sealer, http=jasper.http, patience=IMPATIENT)
    keyring = Keyring(registrar.store, {})
    app = FastAPI()
    problems.install(app)
    app.include_router(router)

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {
            "lookups": lookups,
            "admin_key": SecretStr(ADMIN),
            "registrar": registrar,
            "keyring": keyring,
        }
        await app(scope, receive, send)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(with_state, raise_app_exceptions=False),
        base_url="https://receiver.test",
        headers={"Authorization": f"Bearer {ADMIN}"},
    ) as client:
        yield Service(client, engine, jasper, keyring)


@pytest.fixture
async def service(engine: AsyncEngine, lookups: Lookups) -> AsyncIterator[Service]:
    settings = jasper_settings(jasper_webhook_headers={"X-Custom": SecretStr("a-header-value")})
    async for service in serve(engine, lookups, settings):
        yield service


@pytest.fixture
async def service_without_jasper(engine: AsyncEngine, lookups: Lookups) -> AsyncIterator[Service]:
    async for service in serve(engine, lookups, Settings()):
        yield service


async def test_nothing_is_listed_before_the_first_registration(service: Service) -> None:
    answer = await service.client.get("/v1/webhooks")
    assert (answer.status_code, answer.json()) == (200, {"webhooks": []})


async def test_registration_is_listed_without_its_secrets(service: Service) -> None:
    await service.client.post("/v1/webhooks/product/register")
    async with service.engine.begin() as connection:
        await connection.execute(text("UPDATE registrations SET proof = 'header:x-secret', last_callback_at = now()"))
    answer = await service.client.get("/v1/webhooks")
    [webhook] = answer.json()["webhooks"]
    assert webhook.pop("last_callback_at").endswith("Z")
    assert webhook.pop("registered_at").endswith("Z")
    assert webhook.pop("checked_at").endswith("Z")
    assert webhook.pop("mended_at").endswith("Z")
    assert webhook == {
        "entity_type": "product",
        "webhook_id": "1",
        "name": "Product Updates Webhook",
        "callback_url": "https://receiver.test/callbacks/products",
        "state": "registered",
        "pending": False,
        "secret_known": True,
        "proof": "header:x-secret",
        "header_names": ["X-Custom"],
        "rotating": False,
        "mended": ["created"],
        "mends_in_a_row": 0,
        "last_error": None,
        "last_error_at": None,
        "token_refused": False,
        "retry_policy": "linear",
        "minimum_retry_interval": 300,
        "retry_limit": 5,
        "retry_window_seconds": 1500,
    }
    assert "signing-secret" not in answer.text
    assert "a-header-value" not in answer.text


async def test_register_tells_what_was_done_and_is_harmless_twice(service: Service) -> None:
    first = (await service.client.post("/v1/webhooks/product/register")).json()
    second = (await service.client.post("/v1/webhooks/product/register")).json()
    assert (first["state"], first["done"], second["done"]) == ("registered", ["created"], [])


async def test_rotate_replaces_the_webhook_and_is_accepted_at_once(service: Service) -> None:
    await service.client.post("/v1/webhooks/brand/register")
    answer = await service.client.post("/v1/webhooks/brand/rotate")
    assert (answer.status_code, answer.json()["webhook_id"]) == (200, "2")
    accepted = service.keyring.accepted(EntityType.BRAND, utc_now())
    assert accepted.secrets == ("signing-secret-2", "signing-secret-1")


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (httpx.Response(401, json={"message": TOKEN}), "set JASPER_API_TOKEN"),
        (httpx.Response(422, json={"errors": {"callback_url": ["Must be https."]}}), "PUBLIC_URL"),
        (httpx.Response(503), "in trouble"),
    ],
    ids=str,
)
async def test_jaspers_refusal_is_a_502_with_its_status_and_words(
    service: Service, refusal: httpx.Response, words: str
) -> None:
    service.jasper.trouble = lambda _: refusal
    answer = await service.client.post("/v1/webhooks/product/register")
    assert answer.status_code == 502
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert words in answer.json()["detail"]
    assert str(refusal.status_code) in answer.json()["detail"]
    assert TOKEN not in answer.text
    [webhook] = (await service.client.get("/v1/webhooks")).json()["webhooks"]
    assert (webhook["state"], webhook["last_error"]) == ("failed", answer.json()["detail"])
    assert webhook["token_refused"] == (refusal.status_code == 401)


async def test_without_jasper_there_is_nothing_to_register_with(service_without_jasper: Service) -> None:
    answer = await service_without_jasper.client.post("/v1/webhooks/product/register")
    assert answer.status_code == 409
    assert "JASPER_API_URL" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["nonsense/register", "products/register", "product/nonsense"])
async def test_what_does_not_exist_is_not_found(service: Service, path: str) -> None:
    assert (await service.client.post(f"/v1/webhooks/{path}")).status_code == 404


async def test_unknown_parameters_are_refused(service: Service) -> None:
    assert (await service.client.get("/v1/webhooks?page=2")).status_code == 400
    assert (await service.client.post("/v1/webhooks/product/register?force=1")).status_code == 400


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("read", "GET", "", 200),
        ("read", "POST", "/product/register", 403),
        ("read", "POST", "/product/rotate", 403),
        ("admin", "GET", "", 403),
        ("admin", "POST", "/product/register", 200),
        (None, "GET", "", 401),
        (None, "POST", "/product/register", 401),
    ],
)
async def test_each_call_needs_its_scope(
    service: Service, scope: str | None, method: str, path: str, status: int
) -> None:
    key = "wrong"
    if scope is not None:
        _, key = await keys.create_key(service.engine, "tester", [keys.Scope(scope)], now=utc_now())
    answer = await service.client.request(method, f"/v1/webhooks{path}", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == status
