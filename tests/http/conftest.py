"""A receiver as its readers meet it: the whole application over real HTTP, without a Jasper."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.main import create_app
from app.sealing import generate_key
from app.settings import Settings
from tests.conftest import served

ADMIN_KEY = "an-admin-key-of-some-length"


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


@pytest.fixture
async def reader(database: str, engine: AsyncEngine) -> AsyncIterator[Reader]:
    key = generate_key()
    settings = Settings.model_validate(
        {"database_url": database, "encryption_keys": [key], "admin_api_key": ADMIN_KEY, "data_dir": "unused"}
    )
    app = create_app(settings, database, [key])
    authorization = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with served(app) as url, httpx.AsyncClient(base_url=url, headers=authorization, timeout=30) as http:
        yield Reader(app, http, engine)
