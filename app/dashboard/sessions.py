"""Who is looking: a session opened with an API key, carried in a cookie that is sealed with ENCRYPTION_KEYS.

The cookie holds the digest of the key, not the key, and every request looks the key up again, so that a key that is revoked
ends its sessions with the next request on every replica. Nothing is kept on the server.

Requests that change something must come from a page of ours: they carry a token of the session, and the browser itself must
say that they come from here (`Sec-Fetch-Site`, else `Origin`; the Fetch standard and RFC 6454).
"""

import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from fastapi import Request, Response

from app.access.dependencies import Caller, authenticate_digest
from app.access.keys import Scope, digest_of
from app.errors import ForeignRequestError, KeyMissingError, ScopeMissingError, SealingError
from app.sealing import Sealer

LIFE = timedelta(hours=12)

_LONGEST_KEY = 500
_LONGEST_COOKIE = 4096
_LONGEST_NOTICE = 1000
_NOTICE_SECONDS = 60

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Session:
    """Who is logged in, and the token that their forms carry."""

    caller: Caller
    csrf: str

    def may(self, scope: Scope) -> bool:
        """Whether the key has this scope."""
        return scope in self.caller.scopes


class _Cookie(msgspec.Struct, frozen=True):
    digest: bytes
    csrf: str
    until: datetime


class _Notice(msgspec.Struct, frozen=True):
    notice: str


@dataclass(frozen=True, slots=True)
class Sessions:
    """Opens, finds and ends sessions."""

    sealer: Sealer

    async def find(self, request: Request, now: datetime) -> Session | None:
        """The session of a request; None where there is none, it is over, or its key is not valid any more.

        Raises DatabaseUnavailableError.
        """
        cookie = self._opened(request, _session_name(request), _Cookie)
        if cookie is None or cookie.until <= now:
            return None
        try:
            caller = await authenticate_digest(request, cookie.digest)
        except KeyMissingError:
            return None
        return Session(caller, cookie.csrf) if Scope.READ in caller.scopes else None

    async def begin(self, request: Request, response: Response, key: str, now: datetime) -> None:
        """Open a session with a key. Raises KeyMissingError, ScopeMissingError where it may not read."""
        if not 0 < len(key) <= _LONGEST_KEY:
            raise KeyMissingError("this API key is not known, or was revoked")
        digest = digest_of(key)
        caller = await authenticate_digest(request, digest)
        if Scope.READ not in caller.scopes:
            raise ScopeMissingError("the dashboard needs a key with the scope read")
        cookie = _Cookie(digest, secrets.token_urlsafe(24), now + LIFE)
        self._set_sealed(request, response, _session_name(request), cookie, int(LIFE.total_seconds()))

    def end(self, request: Request, response: Response) -> None:
        """Let the browser forget the session."""
        _set(request, response, _session_name(request), "", 0)

    def say_next(self, request: Request, response: Response, notice: str) -> None:
        """Have the next page tell what came of what was just done."""
        self._set_sealed(request, response, _notice_name(request), _Notice(notice[:_LONGEST_NOTICE]), _NOTICE_SECONDS)

    def take_notice(self, request: Request, response: Response) -> str | None:
        """What this page has to tell of what was just done; it is told once."""
        found = self._opened(request, _notice_name(request), _Notice)
        if found is None:
            return None
        _set(request, response, _notice_name(request), "", 0)
        return found.notice

    def _set_sealed(self, request: Request, response: Response, name: str, value: msgspec.Struct, seconds: int) -> None:
        _set(request, response, name, self.sealer.seal(msgspec.json.encode(value)).decode(), seconds)

    def _opened(self, request: Request, name: str, kind: type[S]) -> S | None:
        sealed = request.cookies.get(name, "")
        if not 0 < len(sealed) <= _LONGEST_COOKIE or not sealed.isascii():
            return None
        try:
            return msgspec.json.decode(self.sealer.open(sealed.encode()), type=kind)
        except (SealingError, msgspec.DecodeError):
            return None


def check_origin(request: Request) -> None:
    """Raise ForeignRequestError unless the browser says that a page of this very address sent the request."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin", "")
    is_ours = site == "same-origin" if site is not None else _host_of(origin) == request.headers.get("host")
    if not is_ours or not (site or origin):
        raise ForeignRequestError(
            "this request does not come from a page of this dashboard: open the page and try again"
        )


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def check_csrf(session: Session, given: str) -> None:
    """Raise ForeignRequestError unless the form carries the session's token."""
    if not hmac.compare_digest(session.csrf.encode(), given.encode()):
        raise ForeignRequestError("the form is not of this session: go back, load the page again and send it anew")


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https"


def _session_name(request: Request) -> str:
    """With HTTPS the prefix keeps other hosts and plain pages of this one from setting it (RFC 6265bis, section 4.1.3)."""
    return "__Host-jasper-receiver" if _is_secure(request) else "jasper-receiver"


def _notice_name(request: Request) -> str:
    return f"{_session_name(request)}-notice"


def _set(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        name, value, max_age=seconds, path="/", secure=_is_secure(request), httponly=True, samesite="strict"
    )
