"""The system's Chromium, driven by Playwright, with a notebook: every request it makes and every complaint it has.

It can resolve no name, so that nothing but the receiver under test can be reached, and begins with an empty profile.
"""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.http.conftest import ADMIN_KEY

# script/browser looks for the same.
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason=f"there is no Chromium on the PATH (looked for {', '.join(NAMES)}); on Debian: apt-get install chromium",
)

_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
_PATIENCE = 15_000
"""Milliseconds for whatever is waited for."""

Scheme = Literal["light", "dark"]


@dataclass
class Notebook:
    """What the browser asked for, and what it complained about."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def listen(self, context: BrowserContext) -> None:
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("weberror", lambda problem: self.complaints.append(str(problem.error)))
        context.on("console", lambda message: self._hear(message.type, message.text))

    def _hear(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(text)


@dataclass(frozen=True)
class Window:
    """One page of a browser, on one receiver."""

    page: Page
    url: str
    notebook: Notebook

    async def log_in(self, key: str = ADMIN_KEY) -> None:
        await self.page.goto(self.url)
        await self.page.get_by_label("API key").fill(key)
        await self.page.get_by_role("button", name="Log in").click()
        await self.page.get_by_role("heading", name="Overview").wait_for()

    async def open(self, path: str) -> None:
        response = await self.page.goto(self.url + path)
        assert response is not None
        assert response.ok, path

    async def violations(self, *, of: Literal["everything", "contrast"] = "everything") -> list[str]:
        """What axe finds wrong with the page by WCAG 2.2, A and AA."""
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
        only = {"type": "tag", "values": tags} if of == "everything" else {"type": "rule", "values": ["color-contrast"]}
        found = await Axe().run(self.page, options={"runOnly": only, "resultTypes": ["violations"]})
        assert len(found.response["passes"]) >= (6 if of == "everything" else 1), "axe looked at nothing"
        return [
            f"{one['id']}: {node['target']} {node['failureSummary']}"
            for one in found.response["violations"]
            for node in one["nodes"]
        ]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser of its own."""
    async with async_playwright() as playwright:
        environment: dict[str, Any] = {**os.environ, "TZ": "UTC"}
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS, env=environment)
        yield browser
        await browser.close()


@asynccontextmanager
async def window(
    browser: Browser, url: str, *, scheme: Scheme = "light", width: int = 1280, height: int = 800, scripts: bool = True
) -> AsyncIterator[Window]:
    """A window with a profile of its own. At its end nothing may have been asked of another host or complained about."""
    context = await browser.new_context(
        color_scheme=scheme,
        viewport={"width": width, "height": height},
        java_script_enabled=scripts,
        reduced_motion="reduce",
        locale="en-GB",
    )
    context.set_default_timeout(_PATIENCE)
    notebook = Notebook()
    notebook.listen(context)
    yield Window(await context.new_page(), url, notebook)
    await context.close()
    assert notebook.requests
    assert [address for address in notebook.requests if not address.startswith(url)] == []
    assert notebook.complaints == []
