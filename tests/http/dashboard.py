"""Somebody at the dashboard, as far as that goes without a browser: cookies, forms, and what browsers say of themselves."""

import html
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from app.access.keys import Scope, create_key
from app.clock import utc_now
from app.db.engine import create_engine
from tests.http.conftest import ADMIN_KEY, Receiver
from tests.http.sse import EventSource


@dataclass(frozen=True)
class Visitor:
    """A browser with its cookies; `http` sends `Origin` as browsers do with forms."""

    http: httpx.AsyncClient

    async def log_in(self, key: str = ADMIN_KEY) -> None:
        response = await self.http.post("/dashboard/login", data={"key": key, "next": "/"})
        assert (response.status_code, response.headers.get("location")) == (303, "/"), response.text

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> str:
        """A page that must be there."""
        response = await self.http.get(path, params=params)
        assert response.status_code == 200, (path, response.status_code, response.text)
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        return response.text

    async def csrf(self) -> str:
        """The token that forms of this session carry."""
        found = re.search(r'name="csrf" value="([^"]+)"', await self.get("/dashboard/rejections"))
        assert found
        return found.group(1)

    async def send(self, path: str, **form: str) -> httpx.Response:
        """Send a form of ours."""
        return await self.http.post(path, data={"csrf": await self.csrf(), **form})

    async def do(self, path: str, **form: str) -> str:
        """Send a form that must be taken; returns what the page after it tells."""
        response = await self.send(path, **form)
        assert response.status_code == 303, response.text
        page = await self.get(response.headers["location"])
        found = re.search(r'<p class="notice" role="status">(.*?)</p>', page)
        assert found, page
        return found.group(1)


@asynccontextmanager
async def visiting(receiver: Receiver) -> AsyncIterator[Visitor]:
    """Somebody who has not logged in yet."""
    url = str(receiver.http.base_url).rstrip("/")
    async with httpx.AsyncClient(base_url=url, headers={"Origin": url}, timeout=30) as http:
        yield Visitor(http)


async def a_key(dsn: str, *scopes: Scope, name: str = "somebody") -> str:
    """A key with these scopes in a database."""
    engine = create_engine(dsn)
    _, key = await create_key(engine, name, scopes, now=utc_now())
    await engine.dispose()
    return key


def text_of(page: str) -> str:
    """What a page says, without its marks."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


async def stream(visitor: Visitor, query: str = "", **headers: str) -> AsyncIterator[EventSource]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with visitor.http.stream("GET", f"/dashboard/feed/stream?{query}", headers=named) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield EventSource(response)
