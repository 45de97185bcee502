"""One receiver over HTTP: a call is tried again while that can help, and its refusals are raised as errors.

Tried again, with pauses that grow and differ: no connection, a connection that broke, 408, 429, 5xx. `Retry-After` is
respected. Everything else that is not a success would come again, and is raised at once.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from jasper_receiver_client.errors import (
    FeedError,
    KeyRefusedError,
    PositionGoneError,
    RequestRefusedError,
    UnreachableError,
)

_log = logging.getLogger("jasper_receiver_client")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LONGEST_OBEYED = 300.0
"""Seconds, all three; a `Retry-After` beyond the last is taken for a mistake."""

_CONNECT = 10.0
_ANSWER = 20.0
"""Seconds for a connection, and for an answer beyond the time that the service was asked to hold it."""

_PARTING = 5.0
"""Seconds for either, of a call that is not worth more: it is made on the way out."""

_Parameters = Mapping[str, str | int | float | list[str]]


def read_json(text: bytes) -> Any:
    """JSON in Python. A whole number of so many digits that Python refuses to read it as an int is a Decimal."""
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(text, parse_int=_whole_number)


def read_exact_json(text: bytes) -> Any:
    """JSON in Python, with every number that is no int as a Decimal: prices keep their digits."""
    return json.loads(text, parse_float=Decimal, parse_int=_whole_number)


def _whole_number(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


class Service:
    """Calls to the receiver at `url` with one API key. `patience` and `loads` as in `Feed`."""

    def __init__(self, url: str, key: str, *, patience: float, loads: Callable[[bytes], Any]) -> None:
        self._url = url.rstrip("/")
        self._patience = patience
        self._loads = loads
        self._http = httpx.Client(headers={"Authorization": f"Bearer {key}", "Accept": "application/json"})

    def close(self) -> None:
        """Give up the connections."""
        self._http.close()

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be called any more."""
        return self._http.is_closed

    def call(
        self,
        method: str,
        path: str,
        *,
        parameters: _Parameters | None = None,
        body: Mapping[str, Any] | None = None,
        held: float = 0.0,
        once: bool = False,
    ) -> tuple[Any, httpx.Headers]:
        """What the service answers: its JSON, and the headers.

        `held` is for how many seconds the service was asked to wait. With `once` nothing is tried again.
        Raises RequestRefusedError, UnreachableError when the patience has run out, and FeedError for what cannot be read.
        """
        timeout = httpx.Timeout(_PARTING) if once else httpx.Timeout(_CONNECT, read=held + _ANSWER)
        failing_since: float | None = None
        pause = _FIRST_PAUSE
        while True:
            wanted = 0.0
            try:
                response = self._http.request(method, self._url + path, params=parameters, json=body, timeout=timeout)
            except httpx.TransportError as exc:
                trouble = f"{method} {path}: {type(exc).__name__}: {exc}"
            else:
                if response.is_success:
                    return self._read(response), response.headers
                trouble = f"{method} {path} was answered {response.status_code}"
                if not _may_pass(response):
                    raise self._refusal(response)
                wanted = _retry_after(response)
            rest = max(pause * random.uniform(0.5, 1), wanted * random.uniform(1, 1.1))  # noqa: S311 - spreads load
            if failing_since is None:  # not before: the service may have held the call for longer than the patience
                failing_since = time.monotonic()
            if once or time.monotonic() + rest > failing_since + self._patience:
                raise UnreachableError(f"{trouble}; check the address, and whether the service runs")
            _log.warning("%s; trying again in %.1f s", trouble, rest)
            time.sleep(rest)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _read(self, response: httpx.Response) -> Any:
        try:
            return self._loads(response.content or b"null")
        except (ValueError, RecursionError) as exc:
            raise FeedError(f"{response.request.url} answered what cannot be read here: {exc}") from exc

    def _refusal(self, response: httpx.Response) -> RequestRefusedError:
        try:
            problem = self._loads(response.content)
        except ValueError:
            problem = None
        if not isinstance(problem, dict):  # of something in between
            problem = {"detail": f"{response.request.url} answered what is not the service's"}
        match response.status_code:
            case httpx.codes.UNAUTHORIZED | httpx.codes.FORBIDDEN:
                return KeyRefusedError(response.status_code, problem)
            case httpx.codes.GONE if "oldest_after" in problem:
                return PositionGoneError(response.status_code, problem)
            case status:
                return RequestRefusedError(status, problem)


def _may_pass(response: httpx.Response) -> bool:
    """Whether the same call may succeed later."""
    return response.is_server_error or response.status_code in {
        httpx.codes.REQUEST_TIMEOUT,
        httpx.codes.TOO_MANY_REQUESTS,
    }


def _retry_after(response: httpx.Response) -> float:
    """The seconds that the service asks for, 0 where it does not (RFC 9110: a number, or a date)."""
    given = response.headers.get("Retry-After", "")
    try:
        seconds = (
            float(given) if given.isdecimal() else (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_OBEYED)
