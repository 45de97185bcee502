"""The doctor against a simulated Jasper, broken databases, and all sorts of proxies on the way back in."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from app.db.engine import connect
from app.doctor.examine import examine
from app.doctor.report import Examined, Verdict
from app.domain.values import EntityType
from app.jasper.client import open_http
from app.main import create_app
from app.registration.register import Registrar
from app.sealing import Sealer, generate_key
from app.settings import Settings
from app.simulator import Simulator, SimulatorOptions, running_simulator
from tests.conftest import served

KEY = generate_key()
HEADER = "a-header-value-that-nobody-may-see"


@dataclass
class World:
    """A receiver, the simulated Jasper, and settings that bring them together."""

    simulator: Simulator
    settings: Settings
    database: str
    engine: AsyncEngine

    async def register(self) -> None:
        async with open_http(self.settings) as http:
            await Registrar(self.settings, engine=self.engine, sealer=Sealer([KEY]), http=http).register(
                EntityType.PRODUCT
            )

    async def examined(self, **overrides: Any) -> list[Examined]:
        settings = self.settings.model_copy(update=overrides)
        found = [one async for one in examine(settings, self.database, Sealer([KEY]))]
        shown = repr(found)
        assert HEADER not in shown
        assert self.simulator.token not in shown
        for webhook in self.simulator.webhooks.all():
            assert webhook.signing_secret not in shown
        return found


def wrong(found: list[Examined], area: str) -> list[Examined]:
    """What is wrong in one area; each thing says what to do."""
    chosen = [one for one in found if one.verdict is Verdict.WRONG and one.area == area]
    assert all(one.todo for one in chosen)
    return chosen


def said(found: list[Examined], verdict: Verdict) -> str:
    return "\n".join(one.what for one in found if one.verdict is verdict)


@asynccontextmanager
async def world(database: str, engine: AsyncEngine, **options: Any) -> AsyncIterator[World]:
    base: dict[str, Any] = {
        "database_url": SecretStr(database),
        "encryption_keys": (SecretStr(KEY),),
        "jasper_webhook_headers": {"X-Custom": SecretStr(HEADER)},
    }
    app = create_app(Settings(_env_file=None, **base), database, [KEY])
    async with running_simulator(SimulatorOptions(rate=0, **options)) as simulator, served(app) as url:
        settings = Settings(
            _env_file=None,
            **base,
            jasper_api_url=f"{simulator.base_url}/api/v1",
            jasper_api_token=SecretStr(simulator.token),
            public_url=url,
        )
        yield World(simulator, settings, database, engine)


@pytest.fixture
async def here(database: str, engine: AsyncEngine) -> AsyncIterator[World]:
    async with world(database, engine) as world_:
        yield world_


async def test_where_all_is_well_nothing_is_wrong_but_the_disk_of_the_tests(here: World) -> None:
    """The tests' own Postgres runs without fsync, which the doctor must say."""
    await here.register()
    found = await here.examined()
    assert [one.what for one in found if one.verdict is Verdict.WRONG] == ["fsync is off"]
    fine = said(found, Verdict.OK)
    for words in (
        "the schema is at head",
        "lacks no right to the tables",
        "the token is accepted; there are 1 webhooks",
        "product: webhook 1 is there, as the settings want it",
        "/products can be read",
        "leads to a receiver, which refused what proves nothing",
        "Jasper retries a callback for 25 minutes",
    ):
        assert words in fine


async def test_nothing_is_changed_at_jasper(here: World) -> None:
    await here.register()
    before = here.simulator.webhooks.all()
    await here.examined()
    assert here.simulator.webhooks.all() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "/webhooks: GET does not repeat the signing secret"),
        ({"repeat_secret": True}, "/webhooks: GET repeats the signing secret"),
        ({}, "/webhooks/ID: wrapped in `data`"),
        ({"wrap_resources": False}, "/webhooks/ID: bare"),
        ({"wrap_resources": False}, "/products/ID: bare"),
        ({}, "/webhooks: ids are whole numbers"),
        ({"webhook_ids": "string"}, "/webhooks: ids are texts"),
        ({"page_size": 3}, "/products: 3 under `data`, pages by `links.next`, `meta.current_page` 1"),
    ],
)
async def test_what_jasper_does_not_document_is_learned_from_its_answers(
    database: str, engine: AsyncEngine, options: dict[str, Any], words: str
) -> None:
    async with world(database, engine, **options) as here:
        await here.register()
        assert words in said(await here.examined(), Verdict.LEARNED)


async def test_where_the_secret_was_seen_last_is_told(here: World) -> None:
    await here.register()
    assert "was not seen yet" in said(await here.examined(), Verdict.UNKNOWN)
    async with here.engine.begin() as connection:
        await connection.execute(
            text("UPDATE registrations SET proof = 'header:x-k', last_callback_at = now() - interval '150 minutes'")
        )
    assert "product: the secret was last seen at header:x-k, 2 hours ago" in said(
        await here.examined(), Verdict.LEARNED
    )


@pytest.mark.parametrize(
    ("mode", "words"), [("unavailable", "in trouble (503)"), ("error", "in trouble (500)"), ("throttle", "patience")]
)
async def test_jasper_in_trouble_is_told_in_words(here: World, mode: Any, words: str) -> None:
    here.simulator.faults.api_mode = mode
    [found] = wrong(await here.examined(), "jasper")
    assert words in found.what


async def test_token_that_was_rotated_is_told_with_its_setting(here: World) -> None:
    here.simulator.token = "another"
    [found] = wrong(await here.examined(), "jasper")
    assert "set JASPER_API_TOKEN" in found.what


async def test_address_that_is_not_jaspers_is_told(here: World) -> None:
    [found] = wrong(await here.examined(jasper_api_url="http://127.0.0.1:1/api/v1"), "jasper")
    assert "look at JASPER_API_URL" in found.what


async def test_webhook_that_drifted_is_told(here: World) -> None:
    await here.register()
    [webhook] = here.simulator.webhooks.all()
    webhook = here.simulator.webhooks.update(webhook, {"retry_limit": 1}, whole=False)
    [found] = wrong(await here.examined(), "jasper")
    assert "not as the settings want it: retry_limit" in found.what
    here.simulator.webhooks.update(webhook, {"enabled": False}, whole=False)
    [found] = wrong(await here.examined(), "jasper")
    assert "switched off" in found.what
    here.simulator.webhooks.delete(webhook)
    [found] = wrong(await here.examined(), "jasper")
    assert "not there any more" in found.what


async def test_answer_without_end_is_cut(here: World) -> None:
    async def forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(forever, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        [found] = wrong(await here.examined(public_url=url), "way in")
    assert "answers 200" in found.what


def proxy(answer: Callable[[Request], Response]) -> FastAPI:
    """Something else at the address, which answers every POST."""
    app = FastAPI()

    async def reply(request: Request) -> Response:
        return answer(request)

    app.add_route("/{path:path}", reply, methods=["POST"])
    app.state.drain = lambda: None
    return app


PROXIES: list[tuple[Callable[[Request], Response], str]] = [
    (lambda _: PlainTextResponse("no", 404), "has no such address (404)"),
    (lambda _: PlainTextResponse("no", 401), "wants a log-in (401)"),
    (lambda _: PlainTextResponse("no", 403), "refuses (403)"),
    (lambda _: PlainTextResponse("no", 405), "takes no POST (405)"),
    (lambda _: PlainTextResponse("no", 502), "does not reach the receiver (502)"),
    (lambda _: PlainTextResponse("no", 504), "waits for the receiver in vain (504)"),
    (lambda _: PlainTextResponse("no", 520), "answers 520"),
    (lambda _: RedirectResponse("https://www.example.com/x"), "redirects to https://www.example.com (307)"),
    (lambda _: PlainTextResponse("ok"), "answers 200 to what proves nothing"),
    (lambda _: JSONResponse({"type": "/problems/not-found"}, 404), "has no such address (404)"),
    (
        lambda _: JSONResponse({"type": "/problems/not-found"}, 404, media_type="application/problem+json"),
        "a receiver answers, but knows no such address",
    ),
    (
        lambda _: JSONResponse({"type": "/problems/queue-full"}, 503, media_type="application/problem+json"),
        "cannot take callbacks now (503, /problems/queue-full)",
    ),
]


@pytest.mark.parametrize(("answer", "words"), PROXIES, ids=[words for _, words in PROXIES])
async def test_whatever_else_answers_on_the_way_in_is_told(
    here: World, answer: Callable[[Request], Response], words: str
) -> None:
    async with served(proxy(answer)) as url:
        [found] = wrong(await here.examined(public_url=url), "way in")
    assert words in found.what
    assert url in found.what


async def test_receiver_that_knows_no_secret_yet_is_told(here: World) -> None:
    found = await here.examined()
    assert wrong(found, "way in") == []
    assert "knows no secret yet" in said(found, Verdict.WARNING)


async def test_receiver_that_serves_no_callbacks_is_told(here: World) -> None:
    settings = here.settings.model_copy(update={"roles": ("api",)})
    async with served(create_app(settings, here.database, [KEY])) as url:
        [found] = wrong(await here.examined(public_url=url), "way in")
    assert "knows no such address" in found.what


async def test_address_where_nobody_listens_is_told(here: World) -> None:
    [found] = wrong(await here.examined(public_url="http://127.0.0.1:1"), "way in")
    assert "no connection can be made" in found.what
    [found] = wrong(await here.examined(public_url="https://nowhere.invalid"), "way in")
    assert "(DNS)" in (found.todo or "")


async def test_certificate_that_nobody_trusts_is_told(here: World, tmp_path: Path) -> None:
    async def ignore(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0, ssl=own_certificate(tmp_path))
    async with server:
        port = server.sockets[0].getsockname()[1]
        [found] = wrong(await here.examined(public_url=f"https://127.0.0.1:{port}"), "way in")
    assert "TLS fails (self-signed certificate)" in found.what


def own_certificate(directory: Path) -> ssl.SSLContext:
    """A certificate that was signed by nobody but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    path = directory / "own.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(database, application_name="test")
    yield connection
    await connection.close()


async def in_database(dsn: str) -> list[Examined]:
    settings = Settings(_env_file=None, database_url=SecretStr(dsn), encryption_keys=(SecretStr(KEY),))
    return [one async for one in examine(settings, dsn, Sealer([KEY])) if one.area == "database"]


async def test_database_that_is_not_there_is_told_and_the_rest_is_tried_all_the_same(here: World) -> None:
    here.database = "postgresql://nobody@127.0.0.1:1/none"
    found = await here.examined()
    [missing] = wrong(found, "database")
    assert "DATABASE_URL" in missing.what
    assert "the token is accepted" in said(found, Verdict.OK)


async def test_database_of_that_name_that_does_not_exist_is_told(database: str) -> None:
    [found] = await in_database(database.replace("/test_", "/missing_"))
    assert "does not exist" in found.what


async def test_empty_database_is_told_to_be_migrated(empty_database: str) -> None:
    found = wrong(await in_database(empty_database), "database")
    assert found[-1].todo == "`jasper-receiver migrate`"


async def test_database_that_takes_no_writes_is_told(database: str, sql: asyncpg.Connection) -> None:
    name = await sql.fetchval("SELECT current_database()")
    await sql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "it is read-only, so nothing can be committed" in said(await in_database(database), Verdict.WRONG)


async def test_commits_that_do_not_wait_for_the_disk_are_told(database: str, sql: asyncpg.Connection) -> None:
    name = await sql.fetchval("SELECT current_database()")
    await sql.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    assert "synchronous_commit is off" in said(await in_database(database), Verdict.WARNING)


async def test_user_who_may_not_write_is_told_what_it_lacks(database: str, sql: asyncpg.Connection) -> None:
    name = await sql.fetchval("SELECT current_database()")
    user = f"poor_{name}"
    await sql.execute(f"CREATE ROLE {user} LOGIN")
    try:
        await sql.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        await sql.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}")
        await sql.execute(f"GRANT INSERT ON deliveries TO {user}")
        found = await in_database(database.replace("//postgres@", f"//{user}@"))
    finally:
        await sql.execute(f"DROP OWNED BY {user}")
        await sql.execute(f"DROP ROLE {user}")
    [lacking] = [one for one in found if "lacks" in one.what]
    assert lacking.verdict is Verdict.WRONG
    assert "INSERT on events" in lacking.what
    assert "INSERT on deliveries" not in lacking.what
    assert "USAGE on event_sequence" in lacking.what
    assert "cannot migrate" in said(found, Verdict.WARNING)
