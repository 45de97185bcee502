"""Every request gets an id, which its answer carries and every line of the log that it causes; and a line of its own.

Plain ASGI, around all layers of the application, so that also what the framework answers by itself has its id. Callbacks are
too many for that: their door, which stands before it, asks for the id itself, and logs as `docs/operations/monitoring.md` says.
"""

import logging
import re
from http import HTTPStatus
from random import getrandbits
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing
from app.logs import REQUEST_ID
from app.metrics import REQUESTS
from app.protocol import RawHeaders

_log = logging.getLogger(__name__)

HEADER = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
_PROBES = {"/healthz", "/readyz", "/metrics"}

_REQUESTS = {first: REQUESTS.labels(f"{first}xx") for first in range(2, 6)}
_HUNG_UP = REQUESTS.labels("hung_up")


def request_id_of(headers: RawHeaders) -> bytes:
    """The id of a request: its `X-Request-ID` where that is sane, else a new one."""
    for name, value in headers:
        if name == HEADER:
            if _SANE.fullmatch(value):
                return value
            break
    return b"%016x" % getrandbits(64)  # no secret: to ask the kernel for one costs more than all else here


def correlate(scope: Scope) -> bytes:
    """The id of a request, which from now on the log's lines carry."""
    request_id = request_id_of(scope["headers"])
    REQUEST_ID.set(request_id.decode())
    return request_id


class Requests:
    """Numbers, counts and logs all requests but callbacks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = correlate(scope)
        started = perf_counter()
        status = 0

        async def send_numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, request_id)]
            await send(message)

        try:
            with tracing.within(_traceparent(scope)):
                await self._app(scope, receive, send_numbered)
        finally:
            _REQUESTS.get(status // 100, _HUNG_UP).inc()
            _log.log(
                logging.DEBUG if scope["path"] in _PROBES and status < HTTPStatus.BAD_REQUEST else logging.INFO,
                "request answered",
                extra={
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status or None,
                    "ms": round(1000 * (perf_counter() - started), 1),
                },
            )


def _traceparent(scope: Scope) -> str | None:
    return tracing.traceparent_of((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
