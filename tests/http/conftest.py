"""A receiver as its readers and as Jasper meet it: the whole application over real HTTP, without a Jasper."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.db.engine import connect, create_engine
from app.domain.values import EntityType
from app.main import create_app
from app.registration.store import RegistrationStore
from app.sealing import Sealer, generate_key
from app.settings import Settings
from tests.conftest import served

ADMIN_KEY = "an-admin-key-of-some-length"
SECRET = "a-signing-secret-of-32-characters"
PRODUCT = {"event": "product.created", "data": {"id": 1001, "name": "Hoodie", "updated_at": "2026-11-23T10:00:00Z"}}


@dataclass(frozen=True)
class Reader:
    """A running receiver: `http` carries the admin key, `engine` works on its database."""

    app: FastAPI
    http: httpx.AsyncClient
    engine: AsyncEngine

    async def get(
        self, path: str, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The answer to a call that must succeed."""
        response = await self.http.get(path, params=params, headers=headers)
        assert response.status_code == 200, response.text
        return response

    async def problem(self, status: int, path: str, method: str = "GET", **options: Any) -> dict[str, Any]:
        """The problem document that a call must be answered with; its shape is checked."""
        response = await self.http.request(method, path, **options)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        problem: dict[str, Any] = response.json()
        assert list(problem)[:5] == ["type", "title", "status", "detail", "instance"]
        assert problem["status"] == status
        assert problem["type"].startswith("/problems/")
        return problem


def plain_http(url: str) -> httpx.AsyncClient:
    """A client of the receiver at `url`, authorised as admin. It loads no certificates, which would take longer than a test."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=30, verify=False)  # noqa: S501 - there is no TLS here


@pytest.fixture
async def reader(database: str, engine: AsyncEngine) -> AsyncIterator[Reader]:
    key = generate_key()
    settings = Settings.model_validate(
        {"database_url": database, "encryption_keys": [key], "admin_api_key": ADMIN_KEY, "data_dir": "unused"}
    )
    app = create_app(settings, database, [key])
    async with served(app) as url, plain_http(url) as http:
        yield Reader(app, http, engine)


@dataclass(frozen=True)
class Receiver:
    """A running receiver: `http` is authorised as admin, `sql` looks into its database, `key` seals what is secret there."""

    app: FastAPI
    http: httpx.AsyncClient
    sql: asyncpg.Connection
    key: str

    async def callback(self, body: object = PRODUCT, collection: str = "products", **headers: str) -> httpx.Response:
        """Send a callback; headers are given with underscores, the secret travels in `x-secret` unless others are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in (headers or {"x_secret": SECRET}).items()}
        return await self.http.post(f"/callbacks/{collection}", content=content, headers=named)

    async def counts(self) -> tuple[int, int]:
        """How many deliveries and events there are."""
        return (
            await self.sql.fetchval("SELECT count(*) FROM deliveries"),
            await self.sql.fetchval("SELECT count(*) FROM events"),
        )


Start = Callable[..., AbstractAsyncContextManager[Receiver]]


@pytest.fixture
def start(database: str) -> Start:
    """Starts a receiver that knows the secret for products, with other settings if given."""
    key = generate_key()

    @asynccontextmanager
    async def start(*, secret: str | None = SECRET, **settings: Any) -> AsyncIterator[Receiver]:
        if secret is not None:
            engine = create_engine(database)
            await RegistrationStore(engine, Sealer([key])).commit(
                EntityType.PRODUCT,
                webhook_id="1",
                signing_secret=secret,
                registered=None,
                now=utc_now(),
                retire_until=utc_now() + timedelta(hours=1),
            )
            await engine.dispose()
        given = {"database_url": database, "encryption_keys": [key], "admin_api_key": ADMIN_KEY} | settings
        app = create_app(Settings(_env_file=None, **given), database, [key])
        sql = await connect(database, application_name="test")
        async with served(app) as url, plain_http(url) as http:
            yield Receiver(app, http, sql, key)
        await sql.close()

    return start


@pytest.fixture
async def receiver(start: Start) -> AsyncIterator[Receiver]:
    async with start() as receiver:
        yield receiver


def problem_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert {"type", "title", "detail", "instance"} <= problem.keys()
    assert SECRET not in response.text
    return problem
