"""The way by which Jasper's callbacks come, tried from here: names, TLS, proxies, and the receiver at its end.

It is walked by a callback that proves nothing, so that a receiver refuses it. Jasper may still see another way than this
machine does: another DNS, a firewall that lets only some through.
"""

import json
import ssl
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx

from app.doctor.answers import Answer, ask
from app.doctor.report import Examined, Verdict
from app.domain.values import EntityType
from app.settings import Settings

WITHIN = 10.0
"""Seconds that one request may take; Jasper's own time-out is not documented, perhaps 3."""

SLOW = 2.0
"""Seconds from which on an answer may be too late for Jasper."""

_AT_MOST = 64 * 1024
_CALLBACK = {"doctor": "this callback proves nothing and is to be refused"}


async def examine_way_in(settings: Settings) -> AsyncIterator[Examined]:
    """Send a callback that proves nothing where Jasper sends its own, and judge what comes back."""
    for entity_type in map(EntityType, settings.jasper_webhook_entity_types):
        url = f"{settings.public_url}/callbacks/{entity_type.collection}"
        async with httpx.AsyncClient(timeout=WITHIN, headers={"User-Agent": "jasper-receiver doctor"}) as http:
            started = time.monotonic()
            try:
                answer = await ask(http, "POST", url, json=_CALLBACK, within=WITHIN, at_most=_AT_MOST)
            except httpx.HTTPError as exc:
                yield _not_reached(url, exc)
                continue
            seconds = time.monotonic() - started
        yield _answered(url, answer)
        if seconds > SLOW:
            what = f"{url} took {seconds:.1f} s to answer, for which Jasper may not wait"
            yield Examined(
                "way in", Verdict.WARNING, what, "look at the proxies on the way, and at the receiver's load"
            )


def _not_reached(url: str, error: httpx.HTTPError) -> Examined:
    host = urlsplit(url).hostname
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLError):
        reason = getattr(cause, "verify_message", "") or cause.reason or "TLS fails"
        return _wrong(url, f"TLS fails ({reason})", f"give {host} a certificate that is valid, with its whole chain")
    match error:
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return _wrong(url, "nobody answers the connection", "a firewall drops it, or the address is wrong")
        case httpx.ConnectError():
            return _wrong(
                url,
                "no connection can be made",
                f"does the name {host} lead here (DNS), does the proxy run, is the port right?",
            )
        case httpx.TimeoutException():
            todo = "the proxy takes the connection, but the receiver behind it does not answer: does it run?"
            return _wrong(url, f"no answer within {WITHIN:.0f} s", todo)
        case _:
            todo = "the proxy closes the connection: see its log; is PUBLIC_URL https where the proxy wants https?"
            return _wrong(url, f"the connection broke ({type(error).__name__})", todo)


_OF_A_PROXY: dict[int, tuple[str, str]] = {
    HTTPStatus.UNAUTHORIZED: (
        "something before the receiver wants a log-in (401)",
        "Jasper cannot log in to a proxy: let /callbacks/ through without",
    ),
    HTTPStatus.FORBIDDEN: (
        "something before the receiver refuses (403)",
        "let /callbacks/ through: a firewall for the web, or a list of addresses, holds it back",
    ),
    HTTPStatus.NOT_FOUND: (
        "something else answers that it has no such address (404)",
        "the proxy does not pass /callbacks/ on, changes the path, or PUBLIC_URL names another host",
    ),
    HTTPStatus.METHOD_NOT_ALLOWED: ("something else answers, which takes no POST (405)", "see where the name leads"),
    HTTPStatus.BAD_GATEWAY: (
        "a proxy does not reach the receiver (502)",
        "does the receiver run, and where the proxy thinks it does?",
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "a proxy has no receiver to pass it on to (503)",
        "does a receiver run, and is it ready?",
    ),
    HTTPStatus.GATEWAY_TIMEOUT: (
        "a proxy waits for the receiver in vain (504)",
        "is the receiver overloaded, or its Postgres away?",
    ),
}
"""What an answer means that is not a receiver's own: what is so, and what to do."""

_OF_A_RECEIVER = {
    "/problems/not-found": (
        "a receiver answers, but knows no such address (404)",
        "it serves no callbacks, or the path is wrong: look at its ROLES, and at PUBLIC_URL",
    ),
}
"""What a problem document of a receiver means, other than that it takes callbacks."""


def _answered(url: str, answer: Answer) -> Examined:
    kind = _problem_type(answer)
    if kind == "/problems/not-authentic":
        return Examined("way in", Verdict.OK, f"{url} leads to a receiver, which refused what proves nothing")
    if kind == "/problems/secret-unknown":
        what = f"{url} leads to a receiver, but it knows no secret yet"
        return Examined("way in", Verdict.WARNING, what, "is it registered? `jasper-receiver status` tells")
    if kind is not None:
        otherwise = f"the receiver cannot take callbacks now ({answer.status}, {kind})", "see its /readyz"
        return _wrong(url, *_OF_A_RECEIVER.get(kind, otherwise))
    if httpx.codes.is_redirect(answer.status):
        target = urlsplit(answer.headers.get("Location", ""))
        todo = "a redirect turns the callback into a GET: name the address it leads to in PUBLIC_URL"
        return _wrong(url, f"redirects to {target.scheme}://{target.netloc} ({answer.status})", todo)
    if httpx.codes.is_success(answer.status):
        todo = "something else takes the callbacks, and they are lost: see where the name leads"
        return _wrong(url, f"answers {answer.status} to what proves nothing", todo)
    otherwise = f"answers {answer.status}", "see the log of the proxy and of the receiver"
    return _wrong(url, *_OF_A_PROXY.get(answer.status, otherwise))


def _problem_type(answer: Answer) -> str | None:
    """The type of a problem document of ours; None for any other answer."""
    if not answer.headers.get("Content-Type", "").startswith("application/problem+json"):
        return None
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    kind = document.get("type") if isinstance(document, dict) else None
    return kind if isinstance(kind, str) and kind.startswith("/problems/") else None


def _wrong(url: str, what: str, todo: str) -> Examined:
    return Examined("way in", Verdict.WRONG, f"{url}: {what}", todo)
