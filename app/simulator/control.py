"""The simulator's own controls under `/_simulator/`: for people, tests and checkers, and no part of Jasper's API.

They need no token and the simulator belongs on loopback. They show every state and every attempt, but never a signing
secret; the bearer token is shown only in the answer to its rotation.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as InputError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.simulator.catalog import Change, ChangeRefusedError, Kind
from app.simulator.faults import ApiMode
from app.simulator.options import EntityType
from app.simulator.payload import encode_json
from app.simulator.simulator import Simulator
from app.simulator.webhooks import Webhook

_MOST_CHANGES = 10_000
_LONGEST_DRAIN = 600.0
_MOST_LISTED = 1_000


class _Input(BaseModel):
    """Unknown members are refused, so that a slip of the pen does not pass for a wish."""

    model_config = ConfigDict(extra="forbid")


_InputT = TypeVar("_InputT", bound=_Input)


class Mutation(_Input):
    """Changes to make: how many, and where wanted of which kind, of which type and of which entity."""

    count: int = Field(default=1, ge=1, le=_MOST_CHANGES)
    kind: Kind | None = None
    entity_type: EntityType | None = None
    entity_id: str | int | None = None


class ApiSwitch(_Input):
    """How Jasper's API is to behave from now on."""

    mode: ApiMode


class TokenRotation(_Input):
    """The token that replaces the present one; a random one if none is given."""

    token: str | None = Field(default=None, min_length=1)


class Drain(_Input):
    """How long to wait at most, in seconds."""

    timeout: float = Field(default=30.0, gt=0, le=_LONGEST_DRAIN)


class StateQuery(_Input):
    """One collection whole, or a page of it by id."""

    entity_type: EntityType = "product"
    offset: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)


class HistoryQuery(_Input):
    """A stretch of a history, from after a sequence number on."""

    after: int = Field(default=0, ge=0)
    limit: int = Field(default=100, ge=1, le=_MOST_LISTED)


def control_routes(simulator: Simulator) -> list[Route]:
    """All routes, relative to `/_simulator`."""
    controls = Controls(simulator)
    return [
        Route("/", controls.overview),
        Route("/state", controls.state),
        Route("/changes", controls.changes),
        Route("/deliveries", controls.deliveries),
        Route("/webhooks", controls.webhooks),
        Route("/mutate", controls.mutate, methods=["POST"]),
        Route("/pause", controls.switch(simulator.pause), methods=["POST"]),
        Route("/resume", controls.switch(simulator.resume), methods=["POST"]),
        Route("/api", controls.api, methods=["POST"]),
        Route("/token", controls.token, methods=["POST"]),
        Route("/drain", controls.drain, methods=["POST"]),
        Route("/webhooks/{id}/load", controls.load, methods=["POST"]),
        Route("/webhooks/{id}/rotate-secret", controls.rotate_secret, methods=["POST"]),
    ]


class Controls:
    """The endpoints. Wrong input is answered with 422 and the reasons."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def overview(self, _request: Request) -> Response:
        """What the simulator is doing, in numbers."""
        return _answer(self._simulator.state())

    async def state(self, request: Request) -> Response:
        """The catalogue as it is now, which a receiver must arrive at, and the last states of what is gone."""
        query = _query(StateQuery, request)
        catalog = self._simulator.catalog
        items = catalog.entities(query.entity_type)
        end = None if query.limit is None else query.offset + query.limit
        return _answer(
            {
                "entity_type": query.entity_type,
                "total": len(items),
                "items": items[query.offset : end],
                "gone": catalog.gone(query.entity_type),
            }
        )

    async def changes(self, request: Request) -> Response:
        """The changes made, oldest first, without the entities."""
        query = _query(HistoryQuery, request)
        listed = [_summary(change) for change in self._simulator.changes if change.sequence > query.after]
        return _answer({"changes": listed[: query.limit], "has_more": len(listed) > query.limit})

    async def deliveries(self, request: Request) -> Response:
        """The latest attempts to deliver and their answers, oldest first."""
        query = _query(HistoryQuery, request)
        listed = [attempt for attempt in self._simulator.attempts if attempt["sequence"] > query.after]
        return _answer({"deliveries": listed[: query.limit], "has_more": len(listed) > query.limit})

    async def webhooks(self, _request: Request) -> Response:
        """All webhooks, on one page and without their secrets."""
        return _answer({"webhooks": [webhook.as_json(with_secret=False) for webhook in self._simulator.webhooks.all()]})

    async def mutate(self, request: Request) -> Response:
        """Make changes and submit their callbacks; 409 with those already made if one turns out impossible."""
        wanted = await _body(Mutation, request)
        made: list[dict[str, Any]] = []
        for _ in range(wanted.count):
            try:
                change = await self._simulator.change(
                    kind=wanted.kind,
                    entity_type=wanted.entity_type,
                    entity_id=None if wanted.entity_id is None else str(wanted.entity_id),
                )
            except ChangeRefusedError as exc:
                return _answer({"message": str(exc), "changes": made}, HTTPStatus.CONFLICT)
            made.append(_summary(change))
        return _answer({"changes": made})

    def switch(self, action: Callable[[], None]) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that does one thing and shows the outcome."""

        async def endpoint(_request: Request) -> Response:
            action()
            return _answer(self._simulator.state())

        return endpoint

    async def api(self, request: Request) -> Response:
        """Switch Jasper's API to trouble, or back to `up`."""
        self._simulator.faults.api_mode = (await _body(ApiSwitch, request)).mode
        return _answer(self._simulator.state())

    async def token(self, request: Request) -> Response:
        """Replace the bearer token; the one before is refused from this moment on."""
        wanted = await _body(TokenRotation, request)
        self._simulator.token = wanted.token or secrets.token_hex(20)
        return _answer({"token": self._simulator.token})

    async def drain(self, request: Request) -> Response:
        """Wait until nothing is left to come, and say whether that was reached in time."""
        wanted = await _body(Drain, request)
        try:
            async with asyncio.timeout(wanted.timeout):
                await self._simulator.drained()
        except TimeoutError:
            return _answer({"drained": False, **self._simulator.state()})
        return _answer({"drained": True, **self._simulator.state()})

    async def load(self, request: Request) -> Response:
        """Send a create for every entity of the webhook's type."""
        self._simulator.start_load(self._find(request))
        return _answer({"message": "The load has begun."}, HTTPStatus.ACCEPTED)

    async def rotate_secret(self, request: Request) -> Response:
        """Give the webhook a new signing secret behind its owner's back."""
        webhook = self._simulator.webhooks.rotate_secret(self._find(request))
        return _answer({"webhook": webhook.as_json(with_secret=False)})

    def _find(self, request: Request) -> Webhook:
        webhook = self._simulator.webhooks.find(request.path_params["id"])
        if webhook is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no webhook {request.path_params['id']}.")
        return webhook


def _summary(change: Change) -> dict[str, Any]:
    return {
        "sequence": change.sequence,
        "entity_type": change.entity_type,
        "entity_id": change.entity_id,
        "action": change.action,
        "kind": change.kind,
        "updated_at": change.entity["updated_at"],
    }


async def _body(model: type[_InputT], request: Request) -> _InputT:
    """The body as the endpoint wants it; an empty one means nothing but defaults."""
    raw = await request.body()
    try:
        return model.model_validate_json(raw or b"{}")
    except InputError as exc:
        raise _refusal(exc) from exc


def _query(model: type[_InputT], request: Request) -> _InputT:
    try:
        return model.model_validate(dict(request.query_params))
    except InputError as exc:
        raise _refusal(exc) from exc


def _refusal(exc: InputError) -> HTTPException:
    reasons = (f"{'.'.join(map(str, error['loc'])) or 'body'}: {error['msg']}" for error in exc.errors())
    return HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(reasons))


def _answer(content: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(encode_json(content, "compact"), status, media_type="application/json")
