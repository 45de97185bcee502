"""Plain pages of the feed: `GET /v1/events` as JSON and without filters, answered before the layers of the application.

These and FastAPI's routing and dependencies took a third of the processor time of such a page, and more of an empty one. What
is asked for in any other way, or wrongly, goes on to the route of the same address (`app.feed.router`), which is documented
and answers the same to the letter.
"""

from urllib.parse import parse_qsl

from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.dependencies import holder
from app.access.keys import Scope as KeyScope
from app.errors import ReceiverError
from app.feed.cloudevents import JSON, page_response
from app.feed.router import PATH, EventListParameters
from app.feed.waiting import page_when_there
from app.problems import instance_of, problem_response, unexpected_response

_NAMES = {"after", "limit", "wait", "include_stale"}
_ACCEPTED = {JSON.encode(), b"*/*"}
_OF_A_BODY = {b"content-length", b"transfer-encoding"}


class PlainPageDoor:
    """Takes plain pages, and hands everything else on to the layers behind it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        query = plain_page(scope)
        if query is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            await holder(request, KeyScope.READ)
            page = await page_when_there(
                request, query, after=query.after, limit=query.limit, wait=query.wait, written=True
            )
            response = await page_response(request, page, JSON)
        except ReceiverError as exc:
            response = problem_response(exc, instance_of(scope))
        except Exception as exc:  # noqa: BLE001 - the layers that would answer it stand behind this door
            response = unexpected_response(exc, scope)
        await response(scope, receive, send)


def plain_page(scope: Scope) -> EventListParameters | None:
    """Which page it is that is asked for; None where it is no plain page."""
    if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "GET":
        return None
    for name, value in scope["headers"]:
        if name in _OF_A_BODY or (name == b"accept" and value not in _ACCEPTED):
            return None
    given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    parameters = dict(given)
    if len(parameters) != len(given) or not parameters.keys() <= _NAMES:
        return None
    try:
        return EventListParameters.model_validate(parameters)
    except ValidationError:
        return None
