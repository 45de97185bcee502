"""A very small Jasper for tests of the registration: webhooks in a list, every call written down, trouble on order.

It stands behind httpx's mock transport, so that a test can say exactly which call goes wrong, and how.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from cryptography.fernet import Fernet
from pydantic import SecretStr

from app.jasper.client import Patience, open_http
from app.settings import Settings

API_URL = "https://acme.eu.jasperpim.test/api/v1"
TOKEN = "token-that-nobody-may-see"
IMPATIENT = Patience(attempts=3, first_wait=0, longest_wait=0.01, jitter=0, answer_within=2)

Trouble = Callable[[httpx.Request], httpx.Response | None]


@dataclass
class FakeJasper:
    """Jasper's webhook API with a switch for what is not documented.

    `trouble` may answer in Jasper's place (or raise); `after` is called once a call was carried out, and may raise, so that
    the answer is lost.
    """

    wrapped: bool = True
    bare_list: bool = False
    numeric_ids: bool = True
    page_size: int = 10
    verbs: tuple[str, ...] = ("PUT",)
    repeats_secret: bool = False
    rotates_on_update: bool = False
    ignores: frozenset[str] = frozenset()
    hides: frozenset[str] = frozenset()
    enables_by: frozenset[str] = frozenset({"POST"})
    trouble: Trouble = lambda _request: None
    after: Callable[[httpx.Request], None] = lambda _request: None
    webhooks: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    created: int = 0

    @property
    def http(self) -> httpx.AsyncClient:
        """A client that talks to this Jasper."""
        return http_answered_by(self.answer)

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The calls so far that were no GET, as (method, path below the API)."""
        return [call for call in self.calls if call[0] != "GET"]

    @property
    def only(self) -> dict[str, Any]:
        """The one webhook there is."""
        [webhook] = self.webhooks.values()
        return webhook

    def add(self, **properties: Any) -> dict[str, Any]:
        """A webhook that is there already, made by somebody."""
        self.created += 1
        webhook = {
            "id": self.created if self.numeric_ids else f"wh_{self.created}",
            "enabled": True,
            "created_at": "2026-01-31T08:00:00Z",
            **properties,
            "signing_secret": f"signing-secret-{self.created}",
        }
        self.webhooks[str(webhook["id"])] = webhook
        return webhook

    def answer(self, request: httpx.Request) -> httpx.Response:
        """What Jasper answers to one call."""
        path = request.url.path.removeprefix("/api/v1")
        self.calls.append((request.method, path))
        self.bodies.append(json.loads(request.content) if request.content else None)
        if (instead := self.trouble(request)) is not None:
            return instead
        if request.headers["Authorization"] != f"Bearer {TOKEN}":
            return httpx.Response(401, json={"message": "Unauthenticated."})
        response = self._answer(request, path)
        self.after(request)
        return response

    def _answer(self, request: httpx.Request, path: str) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        match request.method, path.strip("/").split("/"):
            case "GET", ["webhooks"]:
                return self._page(int(request.url.params.get("page", "1")))
            case "POST", ["webhooks"]:
                return self._one(self.add(**body), 201, with_secret=True)
            case method, ["webhooks", webhook_id, *action] if webhook_id in self.webhooks:
                return self._answer_for_one("/".join([method, *action]), webhook_id, body)
            case "GET", ["ping"]:
                return httpx.Response(200, json={"time": "Tue Feb 7 19:05:03 UTC 2017"})
        return httpx.Response(404, json={"message": "Not found."})

    def _answer_for_one(self, call: str, webhook_id: str, body: dict[str, Any]) -> httpx.Response:
        webhook = self.webhooks[webhook_id]
        if call == "GET":
            return self._one(webhook, with_secret=self.repeats_secret)
        if call == "DELETE":
            del self.webhooks[webhook_id]
            return httpx.Response(204)
        if call == "POST/enable" and "POST" in self.enables_by:
            webhook["enabled"] = True
            return httpx.Response(204)
        if call not in self.verbs:
            return httpx.Response(405, json={"message": "Method not allowed."})
        if call not in self.enables_by:
            body.pop("enabled", None)
        webhook.update({name: value for name, value in body.items() if name not in self.ignores})
        if self.rotates_on_update:
            self.created += 1
            webhook["signing_secret"] = f"signing-secret-{self.created}"
        return self._one(webhook, with_secret=self.rotates_on_update)

    def _shown(self, webhook: Mapping[str, Any], *, with_secret: bool) -> dict[str, Any]:
        hidden = self.hides if with_secret else self.hides | {"signing_secret"}
        return {name: value for name, value in webhook.items() if name not in hidden}

    def _one(self, webhook: Mapping[str, Any], status: int = 200, *, with_secret: bool) -> httpx.Response:
        shown = self._shown(webhook, with_secret=with_secret)
        return httpx.Response(status, json={"data": shown} if self.wrapped else shown)

    def _page(self, number: int) -> httpx.Response:
        shown = [self._shown(webhook, with_secret=self.repeats_secret) for webhook in self.webhooks.values()]
        if self.bare_list:
            return httpx.Response(200, json=shown)
        last = max(1, -(-len(shown) // self.page_size))
        following = f"{API_URL}/webhooks?page={number + 1}" if number < last else None
        return httpx.Response(
            200,
            json={
                "data": shown[(number - 1) * self.page_size : number * self.page_size],
                "links": {"next": following},
                "meta": {"current_page": number, "last_page": last},
            },
        )


def http_answered_by(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.AsyncClient:
    """A client for the fake Jasper's address in which `answer` answers."""
    return open_http(jasper_settings(), transport=httpx.MockTransport(answer))


def jasper_settings(**overrides: Any) -> Settings:
    """Settings that name the fake Jasper."""
    values: dict[str, Any] = {
        "jasper_api_url": API_URL,
        "jasper_api_token": SecretStr(TOKEN),
        "public_url": "https://receiver.test",
        "encryption_keys": (SecretStr(Fernet.generate_key().decode()),),
    }
    return Settings(**values | overrides)
