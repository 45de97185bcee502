"""Whether Jasper's API can be used, and what its answers show of that which Jasper does not document. Asks with GET only."""

import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from app.clock import spoken, utc_now
from app.doctor.answers import ask
from app.doctor.report import Examined, Verdict
from app.domain.values import EntityType
from app.errors import JasperError
from app.jasper.client import MAX_ANSWER_BYTES, JasperClient, Patience, Webhook, open_http
from app.registration.register import wanted_webhook
from app.registration.store import Registration
from app.settings import Settings

Document = dict[str, Any] | list[Any] | str
"""The JSON of an answer; a text says in words why there is none."""

_WITHIN = 20.0


async def examine_jasper(settings: Settings, registrations: list[Registration]) -> AsyncIterator[Examined]:
    """The token, the webhooks, the lists, then the undocumented; ends where the API cannot be used at all."""
    area = "jasper"
    async with open_http(settings) as http:
        limits = dict[str, str]()
        answers = _Answers(http, limits)
        jasper = JasperClient(http, Patience(attempts=1))
        try:
            started = time.monotonic()
            said = await jasper.ping()
            seconds = time.monotonic() - started
            yield Examined(area, Verdict.OK, f"the API answers in {seconds:.1f} s; its time is {said or 'not told'}")
            webhooks = await jasper.webhooks()
        except JasperError as exc:
            yield Examined(area, Verdict.WRONG, str(exc), "see docs/registration.md, When something is wrong")
            return
        yield Examined(area, Verdict.OK, f"the token is accepted; there are {len(webhooks)} webhooks")
        for entity_type in map(EntityType, settings.jasper_webhook_entity_types):
            stored = next((one for one in registrations if one.entity_type is entity_type), Registration(entity_type))
            yield _webhook(settings, stored, webhooks)
        for entity_type in map(EntityType, settings.jasper_webhook_entity_types):
            path = f"/{entity_type.collection}"
            page = await answers.get(path)
            if isinstance(page, str):
                todo = "nothing for callbacks; a reconciliation needs this list: look at the token's permissions"
                yield Examined(area, Verdict.WARNING, f"{path}: {page}", todo)
            else:
                yield Examined(area, Verdict.OK, f"{path} can be read")
        for one in await _undocumented(answers, settings):
            yield one
    for one in _proof(registrations):
        yield one


def _webhook(settings: Settings, stored: Registration, webhooks: list[Webhook]) -> Examined:
    """Whether Jasper has the webhook that is stored, as it is wanted."""
    area, name = "jasper", stored.entity_type
    todo = f"a running receiver does it; at once: `jasper-receiver register {name}`"
    if stored.webhook_id is None:
        return Examined(area, Verdict.WARNING, f"{name}: no webhook was registered yet", todo)
    ours = next((one for one in webhooks if one.id == stored.webhook_id), None)
    if ours is None:
        return Examined(area, Verdict.WRONG, f"{name}: webhook {stored.webhook_id} is not there any more", todo)
    if ours.enabled is False:
        return Examined(area, Verdict.WRONG, f"{name}: webhook {ours.id} is switched off", todo)
    if differing := wanted_webhook(settings, name).differences(ours):
        what = f"{name}: webhook {ours.id} is not as the settings want it: {', '.join(differing)}"
        return Examined(area, Verdict.WRONG, what, todo)
    return Examined(area, Verdict.OK, f"{name}: webhook {ours.id} is there, as the settings want it")


@dataclass(frozen=True, slots=True)
class _Answers:
    """Jasper's answers as they come, for what they show of themselves; `limits` gathers headers that name a limit."""

    http: httpx.AsyncClient
    limits: dict[str, str]

    async def get(self, path: str) -> Document:
        """The JSON of one answer; a text says in words why there is none."""
        try:
            answer = await ask(self.http, "GET", path, within=_WITHIN, at_most=MAX_ANSWER_BYTES)
        except httpx.HTTPError as exc:
            return f"no answer ({type(exc).__name__})"
        self.limits.update({name: value for name, value in answer.headers.items() if "ratelimit" in name.lower()})
        if not httpx.codes.is_success(answer.status):
            return f"Jasper answered {answer.status}"
        try:
            document = json.loads(answer.body)
        except (ValueError, RecursionError):
            document = None
        return document if isinstance(document, (dict, list)) else "Jasper answered, but not with JSON"


async def _undocumented(answers: _Answers, settings: Settings) -> list[Examined]:
    """What answers to GET show of that which Jasper's documentation leaves open."""
    found = []
    first = EntityType(settings.jasper_webhook_entity_types[0])
    for path in ("/webhooks", f"/{first.collection}"):
        answer = await answers.get(path)
        found.append(_list_shape(path, answer))
        items = _items(answer)
        identity = items[0].get("id") if items and isinstance(items[0], dict) else None
        if identity is None:
            found.append(Examined("undocumented", Verdict.UNKNOWN, f"{path}: nothing is in it to look at singly"))
            continue
        single = await answers.get(f"{path}/{identity}")
        found.append(_single_shape(path, single))
        kind = "whole numbers" if isinstance(identity, int) else "texts"
        found.append(Examined("undocumented", Verdict.LEARNED, f"{path}: ids are {kind}"))
        if path == "/webhooks":
            found.append(_repeats_secret(single, items))
    if answers.limits:
        told = ", ".join(f"{name}: {value}" for name, value in sorted(answers.limits.items()))
        found.append(Examined("undocumented", Verdict.LEARNED, f"rate limits are told: {told}"))
    else:
        found.append(Examined("undocumented", Verdict.UNKNOWN, "no rate limit is told"))
    return found


def _items(answer: Document) -> list[Any]:
    items = answer.get("data") if isinstance(answer, dict) else answer
    return items if isinstance(items, list) else []


def _list_shape(path: str, answer: Document) -> Examined:
    if isinstance(answer, str):
        return Examined("undocumented", Verdict.UNKNOWN, f"{path}: {answer}")
    if isinstance(answer, list):
        return Examined("undocumented", Verdict.LEARNED, f"{path}: a bare list of {len(answer)}, without pages")
    meta, links = answer.get("meta"), answer.get("links")
    place = "under `data`" if isinstance(answer.get("data"), list) else f"under none of {', '.join(sorted(answer))}"
    ways = [f"`links.{name}`" for name in ("next",) if isinstance(links, dict) and name in links]
    ways += [
        f"`meta.{name}` {meta[name]}" for name in _META if isinstance(meta, dict) and isinstance(meta.get(name), int)
    ]
    pages = f"pages by {', '.join(ways)}" if ways else "without a word on pages"
    return Examined("undocumented", Verdict.LEARNED, f"{path}: {len(_items(answer))} {place}, {pages}")


_META = ("current_page", "last_page", "per_page", "total")


def _single_shape(path: str, answer: Document) -> Examined:
    if not isinstance(answer, dict):
        why = answer if isinstance(answer, str) else "a list"
        return Examined("undocumented", Verdict.UNKNOWN, f"{path}/ID: {why}")
    is_wrapped = isinstance(answer.get("data"), dict) and "id" not in answer
    return Examined("undocumented", Verdict.LEARNED, f"{path}/ID: {'wrapped in `data`' if is_wrapped else 'bare'}")


def _repeats_secret(single: Document, items: Iterable[Any]) -> Examined:
    """Whether a secret stands in an answer to GET, without ever telling it."""
    resource = single.get("data", single) if isinstance(single, dict) else {}
    seen = [
        one.get("signing_secret") for one in (resource, *items) if isinstance(one, dict) and "signing_secret" in one
    ]
    if not seen:
        return Examined("undocumented", Verdict.LEARNED, "/webhooks: GET does not repeat the signing secret")
    masked = all(not isinstance(one, str) or "*" in one or not one for one in seen)
    how = "shows a mask in place of the signing secret" if masked else "repeats the signing secret"
    return Examined("undocumented", Verdict.LEARNED, f"/webhooks: GET {how}")


def _proof(registrations: list[Registration]) -> Iterator[Examined]:
    for one in registrations:
        if one.proof is None:
            what = f"{one.entity_type}: where the secret travels was not seen yet, as no callback has come"
            yield Examined("undocumented", Verdict.UNKNOWN, what)
        else:
            ago = f", {spoken(utc_now() - one.last_callback_at)} ago" if one.last_callback_at else ""
            what = f"{one.entity_type}: the secret was last seen at {one.proof}{ago}"
            yield Examined("undocumented", Verdict.LEARNED, what)
