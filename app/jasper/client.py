"""Jasper's REST API over an injected `httpx.AsyncClient`: its webhooks, its entities, its pages, its errors as ours.

Documented by Jasper: the paths, the properties of a webhook, the bearer token, lists with `links` and `meta`, the
statuses 401, 404 and 422. Everything else is read leniently: resources wrapped in `data` or not, numbers as text, fields
that are missing or new. Entities are handed on as the JSON text they came as. A call that may be repeated without harm
is repeated with back-off; the creation of a webhook is not, where it may have succeeded unheard. No error and no repr
ever carries the token, a secret, a header's value or a raw body.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import stamina

from app.clock import utc_now
from app.domain import jsontext
from app.domain.jsontext import NotJsonError
from app.domain.values import EntityType, JsonText
from app.errors import JasperError, JasperRefusedError, JasperUnavailableError
from app.settings import Settings

MAX_PAGES = 500
"""Pages of one list; a tenant has a handful of webhooks, so more means that the pages do not end."""

_T = TypeVar("_T")

MAX_ANSWER_BYTES = 16 * 1024 * 1024

_CONNECT_TIMEOUT = 5.0
_ANSWER_WITHIN = 20.0
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_METHOD_UNKNOWN = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_MASKED = re.compile(r"\*{3,}|•|…|redacted|hidden", re.IGNORECASE)
_SETTING_OF = {
    "name": "JASPER_WEBHOOK_NAME",
    "callback_url": "PUBLIC_URL",
    "entity_type": "JASPER_WEBHOOK_ENTITY_TYPES",
    "include_entity_data": "JASPER_WEBHOOK_INCLUDE_ENTITY_DATA",
    "headers": "JASPER_WEBHOOK_HEADERS",
    "retry_policy": "JASPER_WEBHOOK_RETRY_POLICY",
    "minimum_retry_interval": "JASPER_WEBHOOK_MINIMUM_RETRY_INTERVAL",
    "retry_limit": "JASPER_WEBHOOK_RETRY_LIMIT",
}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for Jasper and how often to ask again; all waits are in seconds.

    `answer_within` bounds one answer as a whole. A `Retry-After` longer than `longest_wait` is not waited for here: the
    error carries it to the caller. Two calls begin at least `pace` apart, whoever makes them.
    """

    attempts: int = 4
    first_wait: float = 0.5
    longest_wait: float = 10.0
    jitter: float = 0.5
    answer_within: float = _ANSWER_WITHIN
    pace: float = 0.0


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook as Jasper describes it. None means that the answer did not say, or showed a mask.

    `switch` is the property, with its value, that would switch it on; empty where it is on or nothing is known of it.
    """

    id: str
    name: str | None = None
    callback_url: str | None = None
    entity_type: str | None = None
    include_entity_data: bool | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    retry_policy: str | None = None
    minimum_retry_interval: int | None = None
    retry_limit: int | None = None
    enabled: bool | None = None
    switch: Mapping[str, Any] = field(default_factory=dict)
    signing_secret: str | None = field(default=None, repr=False)

    @property
    def is_complete(self) -> bool:
        """Whether the answer said everything that a registration compares."""
        return all(getattr(self, name) is not None for name in _SETTING_OF)


@dataclass(frozen=True, slots=True)
class WebhookProperties:
    """What a webhook shall be, in the properties Jasper documents. `minimum_retry_interval` is in seconds."""

    name: str
    callback_url: str
    entity_type: EntityType
    include_entity_data: bool
    headers: Mapping[str, str] = field(repr=False)
    retry_policy: str
    minimum_retry_interval: int
    retry_limit: int

    def as_json(self) -> dict[str, Any]:
        """The body of a creation or an update, as documented by Jasper."""
        return {name: getattr(self, name) for name in _SETTING_OF} | {"headers": dict(self.headers)}

    def differences(self, webhook: Webhook) -> tuple[str, ...]:
        """Names of the properties that Jasper shows otherwise; what it does not show is not held against it."""
        return tuple(name for name in _SETTING_OF if not self._agrees(name, getattr(webhook, name)))

    def _agrees(self, name: str, shown: Any) -> bool:
        if shown is None:
            return True
        if name == "callback_url":
            return same_url(self.callback_url, shown)
        if name == "headers":
            return same_headers(self.headers, shown, masked_agree=True)
        return bool(getattr(self, name) == shown)


@dataclass(frozen=True, slots=True)
class EntityPage:
    """One page of a list of entities, each as its JSON text.

    `following` is the address of the next page (path and query), None after the last. `guessed` says that the page did
    not tell whether there is another, so that asking for it is all that is left. `total` counts the entities of the whole
    list, where Jasper says so; `number` is the page's own.
    """

    items: tuple[JsonText, ...]
    following: str | None
    guessed: bool
    total: int | None
    number: int


@dataclass(frozen=True, slots=True)
class SingleEntity:
    """The answer to a question for one entity: its JSON text, None where there is none (404, 410).

    `answered_at` is the time by Jasper's clock, in whole seconds (RFC 9110, section 6.6.1), where the answer tells it.
    """

    data: JsonText | None
    answered_at: datetime | None


class Enabling(StrEnum):
    """The ways in which a webhook may be switched on: Jasper documents that it can be, not how."""

    ACTION = "POST"
    PATCH = "PATCH"
    PUT = "PUT"


def same_url(one: str, other: str) -> bool:
    """Whether two addresses are the same but for a closing slash and the case of scheme and host."""
    try:
        left, right = urlsplit(one.strip()), urlsplit(other.strip())
        return (left.scheme, left.netloc.lower(), left.path.rstrip("/"), left.query) == (
            right.scheme,
            right.netloc.lower(),
            right.path.rstrip("/"),
            right.query,
        )
    except ValueError:
        return False


def same_headers(one: Mapping[str, str], other: Mapping[str, str], *, masked_agree: bool = False) -> bool:
    """Whether two sets of headers are the same: names in any case, values to the letter.

    With `masked_agree` a value that `other` shows as a mask counts as equal.
    """
    left = {name.lower(): value for name, value in one.items()}
    right = {name.lower(): value for name, value in other.items()}
    return left.keys() == right.keys() and all(
        value == right[name] or (masked_agree and _MASKED.search(right[name]) is not None)
        for name, value in left.items()
    )


def method_is_unknown(error: JasperError) -> bool:
    """Whether Jasper refused a call because it has no such call, so that another way may do."""
    return error.status in _METHOD_UNKNOWN


def open_http(settings: Settings, *, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """The HTTP client for the tenant that the settings name: address, bearer token, time-outs. `transport` is for tests.

    Where they name none it is a client without either, and nothing should be asked through it.
    """
    token = settings.jasper_api_token
    authorization = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    return httpx.AsyncClient(
        base_url=settings.jasper_api_url or "",
        headers={"Accept": "application/json", "User-Agent": "jasper-receiver"} | authorization,
        timeout=httpx.Timeout(_ANSWER_WITHIN, connect=_CONNECT_TIMEOUT, pool=_CONNECT_TIMEOUT),
        limits=httpx.Limits(max_connections=8),
        transport=transport,
    )


class JasperClient:
    """Jasper's API. Every method raises JasperRefusedError or JasperUnavailableError, in words for the operator.

    `http` carries base URL and token, as made by `open_http`; whoever made it closes it.
    """

    def __init__(self, http: httpx.AsyncClient, patience: Patience | None = None) -> None:
        self._http = http
        self._patience = patience or Patience()
        self._repeating = stamina.AsyncRetryingCaller(
            attempts=self._patience.attempts,
            timeout=None,
            wait_initial=self._patience.first_wait,
            wait_max=self._patience.longest_wait,
            wait_jitter=self._patience.jitter,
        )
        self._next_turn = 0.0

    async def ping(self) -> str:
        """Jasper's clock, as it writes it; proves that address and token are right."""
        answer = await self._ask("GET", "/ping")
        return str(answer.get("time", "")) if isinstance(answer, dict) else ""

    async def webhooks(self) -> list[Webhook]:
        """All webhooks of the tenant, from all pages."""
        found = dict[str, Webhook]()
        async for page in self._pages("/webhooks"):
            webhooks = [_webhook(item) for item in page]
            if webhooks and all(webhook.id in found for webhook in webhooks):
                raise JasperUnavailableError("the pages of Jasper's list of webhooks go round in circles")
            found.update({webhook.id: webhook for webhook in webhooks})
        return list(found.values())

    async def webhook(self, webhook_id: str) -> Webhook | None:
        """One webhook; None where Jasper has no such webhook, or no way to look at a single one."""
        try:
            answer = await self._ask("GET", _path(webhook_id))
        except JasperRefusedError as exc:
            if method_is_unknown(exc):
                return None
            raise
        return _webhook(answer, webhook_id)

    async def create_webhook(self, properties: WebhookProperties) -> Webhook:
        """Create a webhook.

        After JasperUnavailableError it may exist all the same: look through the list before asking again.
        """
        return _webhook(await self._ask("POST", "/webhooks", properties.as_json(), repeatable=False))

    async def update_webhook(
        self, webhook_id: str, properties: WebhookProperties, method: Literal["PUT", "PATCH"]
    ) -> Webhook:
        """Make a webhook be as `properties` say; what comes back is what Jasper then shows."""
        answer = await self._ask(method, _path(webhook_id), properties.as_json())
        return await self._shown(answer, webhook_id)

    async def enable_webhook(self, webhook: Webhook, properties: WebhookProperties, way: Enabling) -> Webhook:
        """Try one way to switch a webhook on; what comes back says whether it worked."""
        path, body = {
            Enabling.ACTION: (f"{_path(webhook.id)}/enable", None),
            Enabling.PATCH: (_path(webhook.id), dict(webhook.switch)),
            Enabling.PUT: (_path(webhook.id), properties.as_json() | dict(webhook.switch)),
        }[way]
        return await self._shown(await self._ask(way.value, path, body), webhook.id)

    async def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook; one that is gone already is no error."""
        try:
            await self._ask("DELETE", _path(webhook_id))
        except JasperRefusedError as exc:
            if exc.status not in {404, 410}:
                raise

    async def entity_page(self, entity_type: EntityType, *, at: str | None = None, query: str = "") -> EntityPage:
        """A page of Jasper's list of an entity type: the first, or `at` an address that a page before gave, or a number.

        `query` is put on every address, in place of parameters of the same name: Jasper documents neither the size of a
        page nor how an order is asked for.
        """
        first = self._at(f"/{entity_type.collection}").copy_merge_params(httpx.QueryParams(query))
        url = first
        if at is not None and at.isdecimal():
            url = first.copy_merge_params({"page": at})
        elif at is not None:
            url = first.copy_with(raw_path=at.encode()).copy_merge_params(httpx.QueryParams(query))

        def read(_response: httpx.Response, content: bytes) -> EntityPage:
            answer, items = _outline(jsontext.document(content), entity_type)
            number = _page_number(answer, url)
            following, guessed = _next_page(answer, number), False
            if following is None and items and not _tells_its_place(answer):
                following, guessed = number + 1, True
            address = None if following is None else self._next_url(following, url, first)
            return EntityPage(
                items=tuple(items),
                following=None if address is None else address.raw_path.decode(),
                guessed=guessed,
                total=_number(_meta(answer).get("total")),
                number=number,
            )

        return await self._call("GET", url, read=read)

    async def entity(self, entity_type: EntityType, entity_id: str) -> SingleEntity:
        """One entity, in `data` or bare."""

        def read(response: httpx.Response, content: bytes) -> SingleEntity:
            answered_at = _http_date(response.headers.get("Date", ""))
            if response.status_code in _GONE:
                return SingleEntity(None, answered_at)
            text = jsontext.document(content)
            members = jsontext.members(text) if jsontext.kind(text) == "object" else {}
            inner = members.get("data")
            if inner is not None and jsontext.kind(inner) == "object" and "id" not in members:
                text = inner
            elif not members:
                raise JasperUnavailableError("Jasper's answer cannot be read: an entity should be a JSON object")
            return SingleEntity(text, answered_at)

        url = self._at(f"/{entity_type.collection}/{quote(entity_id, safe='')}")
        return await self._call("GET", url, read=read, gone=_GONE)

    def _at(self, path: str) -> httpx.URL:
        base = self._http.base_url
        return base.copy_with(raw_path=base.raw_path.rstrip(b"/") + path.encode())

    async def _shown(self, answer: Any, webhook_id: str) -> Webhook:
        """The webhook in an answer to a change; asked for where the answer does not describe it."""
        if isinstance(answer, dict) and answer:
            return _webhook(answer, webhook_id)
        return await self.webhook(webhook_id) or Webhook(id=webhook_id)

    async def _pages(self, path: str) -> AsyncIterator[list[Any]]:
        """The pages of a list: `links.next` where it stays with Jasper, else the page numbers of `meta`.

        Behind a proxy the links may name another scheme or host than the one that answers; those are never followed.
        """
        first = self._at(path)
        url, number, seen = first, 1, set[httpx.URL]()
        while True:
            answer = await self._ask("GET", url)
            yield _items(answer)
            following = _next_page(answer, number)
            if following is None:
                return
            seen.add(url)
            number += 1
            url = self._next_url(following if isinstance(following, str) else number, url, first)
            if url in seen:
                raise JasperUnavailableError(f"the pages of Jasper's list {path} go round in circles")
            if number > MAX_PAGES:
                raise JasperUnavailableError(f"Jasper's list {path} does not end after {MAX_PAGES} pages")

    def _next_url(self, following: str | int, url: httpx.URL, first: httpx.URL) -> httpx.URL:
        """Where the page after `url` is: at its link, or at a number on the address of the first one."""
        if isinstance(following, str):
            link = url.join(following)
            if _origin(link) == _origin(self._http.base_url):
                return link
            following = _number(link.params.get("page")) or (_number(url.params.get("page")) or 1) + 1
        return first.copy_merge_params({"page": following})

    async def _ask(self, method: str, url: httpx.URL | str, body: Any = None, *, repeatable: bool = True) -> Any:
        """One call; its answer as Python values, None where it is empty."""
        return await self._call(method, url, body, repeatable=repeatable, read=_answer)

    async def _call(
        self,
        method: str,
        url: httpx.URL | str,
        body: Any = None,
        *,
        repeatable: bool = True,
        read: Callable[[httpx.Response, bytes], _T],
        gone: Collection[int] = (),
    ) -> _T:
        """One call, asked again with back-off where that may help. Unrepeatable ones only where nothing was done.

        `read` makes something of an answer that is a success, or has one of the statuses `gone`.
        """

        def again(error: Exception) -> bool | float:
            if not isinstance(error, JasperUnavailableError):
                return False
            undone = error.status == HTTPStatus.TOO_MANY_REQUESTS or isinstance(error.__cause__, _NEVER_SENT)
            if not repeatable and not undone:
                return False
            if error.retry_after is None:
                return True
            return error.retry_after if error.retry_after <= self._patience.longest_wait else False

        async def once() -> _T:
            response, content = await self._exchange(method, url, body)
            if not response.is_success and response.status_code not in gone:
                raise _error(response, _parsed(content), self._private(body))
            try:
                return read(response, content)
            except NotJsonError as exc:
                raise _no_json(response) from exc

        return await self._repeating(again, once)

    async def _exchange(self, method: str, url: httpx.URL | str, body: Any) -> tuple[httpx.Response, bytes]:
        await self._wait_for_turn()
        try:
            async with (
                asyncio.timeout(self._patience.answer_within),
                self._http.stream(method, url, json=body) as response,
            ):
                return response, await _read(response)
        except _NEVER_SENT as exc:
            raise JasperUnavailableError(
                f"Jasper cannot be reached at {self._http.base_url}: look at JASPER_API_URL and at the way there"
            ) from exc
        except (httpx.TimeoutException, TimeoutError) as exc:
            raise JasperUnavailableError(
                f"Jasper did not answer within {self._patience.answer_within:g} seconds"
            ) from exc
        except httpx.RequestError as exc:
            raise JasperUnavailableError(f"the connection to Jasper broke ({type(exc).__name__})") from exc

    async def _wait_for_turn(self) -> None:
        now = time.monotonic()
        turn = max(now, self._next_turn)
        self._next_turn = turn + self._patience.pace
        if turn > now:
            await asyncio.sleep(turn - now)

    def _private(self, body: Any) -> set[str]:
        """What must not show up in an error's words: the token, and the header values that were sent."""
        headers = body.get("headers", {}) if isinstance(body, dict) else {}
        authorization = self._http.headers.get("Authorization", "")
        return {authorization.removeprefix("Bearer "), *headers.values()} - {""}


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _path(webhook_id: str) -> str:
    return f"/webhooks/{quote(webhook_id, safe='')}"


async def _read(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise JasperUnavailableError(
                f"Jasper's answer is larger than {MAX_ANSWER_BYTES} bytes", status=response.status_code
            )
    return bytes(content)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _answer(response: httpx.Response, content: bytes) -> Any:
    """An answer as Python values; None where it is empty."""
    answer = _parsed(content) if content.strip() else {}
    if not isinstance(answer, (dict, list)):
        raise _no_json(response)
    return answer if content.strip() else None


def _no_json(response: httpx.Response) -> JasperUnavailableError:
    return JasperUnavailableError(
        f"Jasper answered {response.status_code}, but not with JSON: look at JASPER_API_URL, "
        "which should look like https://TENANT.REGION.jasperpim.com/api/v1",
        status=response.status_code,
    )


def _error(response: httpx.Response, answer: Any, private: Collection[str]) -> JasperError:
    """Jasper's refusal as an error of ours, in words that name the setting to look at."""
    status, said = response.status_code, _said(answer, private)
    if status in _PASSING or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _METHOD_UNKNOWN):
        trouble = "asks for patience" if status == HTTPStatus.TOO_MANY_REQUESTS else "is in trouble"
        return JasperUnavailableError(
            f"Jasper {trouble} ({status}){said}", status=status, retry_after=_retry_after(response, utc_now())
        )
    is_of_webhooks = "/webhooks" in response.request.url.path
    match status:
        case HTTPStatus.UNAUTHORIZED:
            words = "Jasper refused the token (401): it is missing, wrong or was rotated: set JASPER_API_TOKEN"
        case HTTPStatus.FORBIDDEN:
            lacking = "manage webhooks" if is_of_webhooks else "read this"
            words = (
                f"Jasper refused the token (403): it is wrong, was rotated or lacks the permission to {lacking}: "
                f"set JASPER_API_TOKEN{said}"
            )
        case HTTPStatus.NOT_FOUND:
            words = f"Jasper has nothing at {response.request.url.path} (404): look at JASPER_API_URL"
        case HTTPStatus.UNPROCESSABLE_ENTITY if is_of_webhooks:
            words = f"Jasper does not accept the webhook (422){said}"
        case HTTPStatus.UNPROCESSABLE_ENTITY:
            words = f"Jasper does not accept the parameters (422): look at RECONCILE_LIST_QUERY{said}"
        case _ if response.is_redirect:
            words = (
                f"Jasper answered with a redirect ({status}), which is not followed: "
                "look at JASPER_API_URL, its scheme and host"
            )
        case _:
            words = f"Jasper refused the call ({status}){said}"
    return JasperRefusedError(words, status=status)


_LONGEST_SAYING = 500


def _said(answer: Any, private: Collection[str]) -> str:
    """Jasper's own words, from its `message` and its messages by field, shortened and without anything private."""
    if not isinstance(answer, dict):
        return ""
    words = []
    errors = answer.get("errors")
    if isinstance(errors, dict):
        for name, messages in errors.items():
            setting = _SETTING_OF.get(str(name).partition(".")[0])
            texts = messages if isinstance(messages, list) else [messages]
            words.append(
                f"{name}{f' ({setting})' if setting else ''}: {' '.join(t for t in texts if isinstance(t, str))}"
            )
    elif isinstance(errors, list):
        words += [error for error in errors if isinstance(error, str)]
    if not words and isinstance(message := answer.get("message") or answer.get("error"), str):
        words.append(message)
    text = " ".join("; ".join(words).split())
    for value in sorted(private, key=len, reverse=True):
        text = text.replace(value, "[hidden]")
    return f": {text[:_LONGEST_SAYING]}" if text else ""


def _retry_after(response: httpx.Response, now: datetime) -> float | None:
    """Seconds that Jasper asks to wait: `Retry-After` is a number or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    moment = _http_date(value)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def _http_date(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _items(answer: Any) -> list[Any]:
    """The resources of one page: a bare list, or one under `data`."""
    items = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(items, list):
        raise JasperUnavailableError(
            "Jasper's list cannot be read: it is neither a list nor an object with a list in `data`"
        )
    return items


def _outline(text: JsonText, entity_type: EntityType) -> tuple[Any, list[JsonText]]:
    """What a page says of itself, as Python values without the entities; and the entities, untouched.

    Raises NotJsonError, and JasperUnavailableError where it is no page.
    """
    if jsontext.kind(text) == "array":
        return None, jsontext.elements(text)
    members = jsontext.members(text) if jsontext.kind(text) == "object" else {}
    for name in ("data", "items", entity_type.collection.replace("-", "_")):
        if name in members and jsontext.kind(members[name]) == "array":
            return {one: _parsed(members[one]) for one in members if one != name}, jsontext.elements(members[name])
    raise JasperUnavailableError(
        "Jasper's list cannot be read: it is neither a list nor an object with a list in `data`"
    )


def _meta(answer: Any) -> Mapping[str, Any]:
    """Where a page tells its number: in `meta`, or beside its items, as Laravel does without resources."""
    if not isinstance(answer, dict):
        return {}
    meta = answer.get("meta")
    return meta if isinstance(meta, dict) else answer


def _page_number(answer: Any, url: httpx.URL) -> int:
    return _number(url.params.get("page")) or _number(_meta(answer).get("current_page")) or 1


def _tells_its_place(answer: Any) -> bool:
    """Whether a page says if another one follows."""
    links = answer.get("links") if isinstance(answer, dict) else None
    return (
        (isinstance(links, dict) and "next" in links)
        or "next_page_url" in _meta(answer)
        or _number(_meta(answer).get("last_page")) is not None
    )


def _next_page(answer: Any, number: int) -> str | int | None:
    """A link to the next page, or its number where only `meta` tells that there is one; None after the last."""
    if not isinstance(answer, dict):
        return None
    links, meta = answer.get("links"), _meta(answer)
    for link in (links.get("next") if isinstance(links, dict) else None, meta.get("next_page_url")):
        if isinstance(link, str) and link:
            return link
    last, current = _number(meta.get("last_page")), _number(meta.get("current_page", number))
    if last is not None and current is not None and current < last:
        return current + 1
    return None


def _webhook(answer: Any, webhook_id: str | None = None) -> Webhook:
    """A webhook from an answer, in `data` or bare. `webhook_id` stands in where the answer does not repeat it."""
    if not isinstance(answer, dict):
        raise JasperUnavailableError("Jasper's answer cannot be read: a webhook should be a JSON object")
    resource = answer["data"] if isinstance(answer.get("data"), dict) else answer
    identity = resource.get("id", webhook_id)
    if isinstance(identity, bool) or not isinstance(identity, (int, str)) or identity == "":
        raise JasperUnavailableError("Jasper's answer cannot be read: a webhook without an id")
    enabled, switch = _switch(resource)
    return Webhook(
        id=str(identity),
        name=_text(resource.get("name")),
        callback_url=_text(resource.get("callback_url")),
        entity_type=_text(resource.get("entity_type")),
        include_entity_data=_truth(resource.get("include_entity_data")),
        headers=_headers(resource.get("headers")),
        retry_policy=_text(resource.get("retry_policy")),
        minimum_retry_interval=_number(resource.get("minimum_retry_interval")),
        retry_limit=_number(resource.get("retry_limit")),
        enabled=enabled,
        switch=switch,
        signing_secret=_unmasked(resource.get("signing_secret") or answer.get("signing_secret")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _truth(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    return bool(value) if isinstance(value, (bool, int)) else None


def _headers(value: Any) -> Mapping[str, str] | None:
    if value == []:  # how PHP writes an empty object
        return {}
    if isinstance(value, dict) and all(isinstance(content, str) for content in value.values()):
        return value
    return None


def _unmasked(value: Any) -> str | None:
    """A secret, unless it is none at all or a mask in its place."""
    return value if isinstance(value, str) and value and not _MASKED.search(value) else None


_WORDS_ON = {"enabled": "enabled", "disabled": "enabled", "active": "active", "inactive": "active", "paused": "active"}


def _switch(resource: Mapping[str, Any]) -> tuple[bool | None, Mapping[str, Any]]:
    """Whether a webhook is on, and what would switch it on. Jasper documents the switch, not its name: assumption."""
    for name in ("enabled", "is_enabled", "active", "is_active"):
        if (on := _truth(resource.get(name))) is not None:
            return on, {} if on else {name: True}
    for name in ("disabled", "is_disabled"):
        if (off := _truth(resource.get(name))) is not None:
            return not off, {name: False} if off else {}
    for name in ("status", "state"):
        word = str(resource.get(name)).lower()
        if word in _WORDS_ON:
            return word == _WORDS_ON[word], {} if word == _WORDS_ON[word] else {name: _WORDS_ON[word]}
    if "disabled_at" in resource:
        off = resource["disabled_at"] is not None
        return not off, {"disabled_at": None} if off else {}
    return None, {}
