"""Jasper's API under `/api/v1`, as an ASGI application: ping, webhooks, and the lists of entities.

Documented by Jasper: the bearer token, `/ping`, the properties of `/webhooks`, paginated lists with `links` and `meta`,
and the statuses 401, 404 and 422. Assumed, from its Laravel house style: the wording of errors, `data` around
resources, 201 and 204, and `POST /webhooks/{id}/enable` and `/disable`. The `/changelogs` feed is left out, since
nothing of its format is documented. What belongs to the simulator alone lies apart, under `/_simulator/`.
"""

import hmac
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.simulator.control import control_routes
from app.simulator.faults import TroubledApi
from app.simulator.options import EntityType, SimulatorOptions
from app.simulator.payload import encode_json
from app.simulator.simulator import Simulator
from app.simulator.webhooks import ValidationError, Webhook

API_PATH = "/api/v1"
COLLECTIONS: dict[str, EntityType] = {
    "products": "product",
    "categories": "category",
    "brands": "brand",
    "concrete-entities": "concrete_entity",
}
_UPDATE_METHODS = {"put": ["PUT"], "patch": ["PATCH"], "both": ["PUT", "PATCH"], "none": []}
_MAX_BODY_BYTES = 1_000_000


def create_simulator(options: SimulatorOptions | None = None, *, simulator: Simulator | None = None) -> Starlette:
    """An ASGI application with a simulator inside, reachable as `app.state.simulator`.

    Its lifespan starts and stops the simulator. Where no lifespan is run (`httpx.ASGITransport`), or where the
    simulator is given, whoever uses it enters `async with simulator` instead. Raises CatalogError and OptionsError.
    """
    inner = simulator or Simulator(options)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if simulator is not None:
            yield
            return
        async with inner:
            yield

    api = JasperApi(inner)
    app = Starlette(
        routes=[
            Mount(
                API_PATH,
                routes=api.routes(),
                middleware=[
                    Middleware(TroubledApi, faults=inner.faults, options=inner.options),
                    Middleware(TokenRequired, simulator=inner),
                ],
            ),
            Mount("/_simulator", routes=control_routes(inner)),
        ],
        exception_handlers={HTTPException: _plain_error, ValidationError: _validation_error},
        lifespan=lifespan,
        max_body_size=_MAX_BODY_BYTES,
    )
    app.state.simulator = inner
    return app


class TokenRequired:
    """ASGI middleware that lets a request through only with the bearer token that holds at this moment."""

    def __init__(self, app: ASGIApp, *, simulator: Simulator) -> None:
        self._app = app
        self._simulator = simulator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        given = Request(scope).headers.get("authorization", "")
        if hmac.compare_digest(given.encode(), f"Bearer {self._simulator.token}".encode()):
            await self._app(scope, receive, send)
        else:
            await _json({"message": "Unauthenticated."}, HTTPStatus.UNAUTHORIZED)(scope, receive, send)


class JasperApi:
    """The endpoints of the documented API."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._options = simulator.options

    def routes(self) -> list[Route]:
        """All routes, relative to the base path."""
        return [
            Route("/ping", self.ping),
            Route("/webhooks", self.list_webhooks, methods=["GET"]),
            Route("/webhooks", self.create_webhook, methods=["POST"]),
            # One route, so that a verb that is switched off gets 405 and not 404.
            Route(
                "/webhooks/{id}",
                self.one_webhook,
                methods=["GET", "DELETE", *_UPDATE_METHODS[self._options.update_verb]],
            ),
            Route("/webhooks/{id}/enable", self.switch_webhook(enabled=True), methods=["POST"]),
            Route("/webhooks/{id}/disable", self.switch_webhook(enabled=False), methods=["POST"]),
            Route("/{collection}", self.list_entities),
            Route("/{collection}/{id}", self.show_entity),
        ]

    async def ping(self, _request: Request) -> Response:
        """The time, in the words that Jasper's documentation shows."""
        now = datetime.now(UTC)
        return self._answer({"time": f"{now:%a %b} {now.day} {now:%H:%M:%S} UTC {now:%Y}"})

    async def list_webhooks(self, request: Request) -> Response:
        """A page of the webhooks, in the order of their creation."""
        return self._page(request, [self._shown(webhook) for webhook in self._simulator.webhooks.all()])

    async def create_webhook(self, request: Request) -> Response:
        """A new webhook, with its signing secret."""
        webhook = self._simulator.create_webhook(await _properties(request))
        return self._resource(webhook.as_json(with_secret=True), HTTPStatus.CREATED)

    async def one_webhook(self, request: Request) -> Response:
        """Show, update or delete a webhook."""
        webhook = self._find_webhook(request)
        if request.method == "DELETE":
            self._simulator.webhooks.delete(webhook)
            return Response(status_code=HTTPStatus.NO_CONTENT)
        if request.method in {"PUT", "PATCH"}:
            properties = await _properties(request)
            webhook = self._simulator.webhooks.update(webhook, properties, whole=request.method == "PUT")
        return self._resource(self._shown(webhook))

    def switch_webhook(self, *, enabled: bool) -> Callable[[Request], Any]:
        """An endpoint that enables or disables a webhook."""

        async def switch(request: Request) -> Response:
            webhook = self._find_webhook(request)
            webhook = self._simulator.webhooks.update(webhook, {"enabled": enabled}, whole=False)
            return self._resource(self._shown(webhook))

        return switch

    async def list_entities(self, request: Request) -> Response:
        """A page of a collection, in the order of the ids."""
        entities = self._simulator.catalog.entities(_entity_type(request))
        if self._options.list_failing_page and _page_number(request) == self._options.list_failing_page:
            return _json({"message": "Server Error"}, HTTPStatus.INTERNAL_SERVER_ERROR)
        return self._page(request, entities, fields=[name for name in self._options.list_fields.split(",") if name])

    async def show_entity(self, request: Request) -> Response:
        """One entity; 404 where it is gone or never was."""
        entity = self._simulator.catalog.find(_entity_type(request), request.path_params["id"])
        if entity is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"No query results for {request.path_params['id']}.")
        return self._resource(entity)

    def _find_webhook(self, request: Request) -> Webhook:
        webhook = self._simulator.webhooks.find(request.path_params["id"])
        if webhook is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"No query results for webhook {request.path_params['id']}.")
        return webhook

    def _shown(self, webhook: Webhook) -> dict[str, Any]:
        return webhook.as_json(with_secret=self._options.repeat_secret)

    def _resource(self, resource: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
        return self._answer({"data": resource} if self._options.wrap_resources else resource, status)

    def _page(self, request: Request, items: Sequence[Mapping[str, Any]], *, fields: Sequence[str] = ()) -> Response:
        """The page that `?page=` asks for; anything that is no page number is the first, as in Laravel."""
        wanted_size = request.query_params.get("per_page", "")
        size = min(int(wanted_size), 1000) if _is_counting_number(wanted_size) else self._options.page_size
        page = _page_number(request)
        last = max(1, math.ceil(len(items) / size))
        start = (page - 1) * size
        shown = items[start : start + size]
        if fields:
            shown = [{name: item[name] for name in fields if name in item} for item in shown]
        path = str(request.url.replace(query="", fragment=""))

        def link(number: int) -> str:
            return f"{path}?page={number}"

        following = link(page + 1) if page < last else None
        links = {"first": link(1), "last": link(last), "prev": link(page - 1) if page > 1 else None, "next": following}
        meta = {
            "current_page": page,
            "from": start + 1 if shown else None,
            "last_page": last,
            "path": path,
            "per_page": size,
            "to": start + len(shown) if shown else None,
            "total": len(items),
        }
        content: dict[str, Any] | list[Any]
        match self._options.list_style:
            case "laravel":
                content = {"data": shown, "links": links, "meta": meta}
            case "links":
                content = {"data": shown, "links": links}
            case "meta":
                content = {"data": shown, "meta": meta}
            case "flat":
                content = {"data": shown, "next_page_url": following, **meta}
            case "bare":
                content = list(shown)
        return self._answer(content)

    def _answer(self, content: Mapping[str, Any] | Sequence[Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
        return Response(encode_json(content, self._options.json_style), status, media_type="application/json")


def _is_counting_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10 and int(text) > 0  # noqa: PLR2004


def _page_number(request: Request) -> int:
    wanted = request.query_params.get("page", "")
    return int(wanted) if _is_counting_number(wanted) else 1


def _entity_type(request: Request) -> EntityType:
    try:
        return COLLECTIONS[request.path_params["collection"]]
    except KeyError:
        path = request.url.path.lstrip("/")
        raise HTTPException(HTTPStatus.NOT_FOUND, f"The route {path} could not be found.") from None


async def _properties(request: Request) -> dict[str, Any]:
    """The members of the body. What is no JSON object has none, so that the validation says what is missing."""
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _json(content: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode_json(content, "compact"), status, headers=headers, media_type="application/json")


async def _plain_error(_request: Request, exc: Exception) -> Response:
    if not isinstance(exc, HTTPException):
        raise exc
    return _json({"message": exc.detail}, exc.status_code, exc.headers)


async def _validation_error(_request: Request, exc: Exception) -> Response:
    if not isinstance(exc, ValidationError):
        raise exc
    return _json({"message": str(exc), "errors": exc.errors}, HTTPStatus.UNPROCESSABLE_ENTITY)
