"""Trouble, by chance and on demand: callbacks that come twice or late, and an API that fails in the usual ways.

Decides and delays only; it never alters what a callback says. Its chance depends on the seed alone.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.simulator.options import SimulatorOptions

ApiMode = Literal["up", "unavailable", "error", "throttle", "hang"]
API_MODES: tuple[ApiMode, ...] = get_args(ApiMode)


@dataclass(frozen=True, slots=True)
class CallbackTrouble:
    """What befalls one callback: seconds by which its first attempt is held back, and whether it comes twice."""

    delay: float
    duplicate: bool


class Faults:
    """The source of all trouble of one simulator. `api_mode` may be set at any time; anything but `up` is an outage."""

    def __init__(self, options: SimulatorOptions) -> None:
        self._options = options
        self._callback_chance = options.random_for("callback trouble")
        self._api_chance = options.random_for("api trouble")
        self.api_mode: ApiMode = "up"
        self._recent: deque[float] = deque()

    def next_callback(self) -> CallbackTrouble:
        """Decide for the next callback."""
        held_back = self._callback_chance.random() < self._options.disorder_probability
        # Drawn in any case, so that one kind of trouble does not shift the sequence of another.
        share = self._callback_chance.random()
        duplicate = self._callback_chance.random() < self._options.duplicate_probability
        return CallbackTrouble(share * self._options.disorder_delay if held_back else 0.0, duplicate)

    def next_api_mode(self) -> ApiMode:
        """Decide for the next request to the API; an outage that was asked for comes before chance."""
        if self.api_mode != "up":
            return self.api_mode
        if self._options.api_rate_limit and self._is_one_too_many(time.monotonic()):
            return "throttle"
        options = self._options
        weights = (options.api_error_probability, options.api_throttle_probability, options.api_hang_probability)
        modes: tuple[ApiMode, ...] = ("up", "error", "throttle", "hang")
        return self._api_chance.choices(modes, weights=(1 - sum(weights), *weights))[0]

    def _is_one_too_many(self, now: float) -> bool:
        """Whether the last second has had all its requests; what is refused does not count."""
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        if len(self._recent) >= self._options.api_rate_limit:
            return True
        self._recent.append(now)
        return False


class TroubledApi:
    """ASGI middleware in front of Jasper's API that answers in its place while there is trouble."""

    def __init__(self, app: ASGIApp, *, faults: Faults, options: SimulatorOptions) -> None:
        self._app = app
        self._faults = faults
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, late or not, or answer with trouble."""
        mode = self._faults.next_api_mode()
        if mode == "hang":
            await _until_gone(receive, self._options.api_hang)
        elif self._options.api_delay:
            await asyncio.sleep(self._options.api_delay)
        trouble = self._answer(mode)
        await (self._app if trouble is None else trouble)(scope, receive, send)

    def _answer(self, mode: ApiMode) -> Response | None:
        retry_after = {"Retry-After": str(self._options.api_retry_after)}
        match mode:
            case "up":
                return None
            case "unavailable":
                # A balancer in front of a stopped application speaks no JSON.
                return PlainTextResponse(
                    "<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>",
                    status_code=503,
                    headers=retry_after,
                    media_type="text/html",
                )
            case "error":
                return JSONResponse({"message": "Server Error"}, status_code=500)
            case "throttle":
                return JSONResponse({"message": "Too Many Attempts."}, status_code=429, headers=retry_after)
            case "hang":
                return JSONResponse({"message": "Gateway Timeout"}, status_code=504)


async def _until_gone(receive: Receive, at_most: float) -> None:
    """Wait until the caller has gone away, at most so many seconds."""
    try:
        async with asyncio.timeout(at_most):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return
