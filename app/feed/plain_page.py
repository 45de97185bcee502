"""Plain pages of the feed: `GET /v1/events` as JSON and without filters, answered without FastAPI's machinery.

Its routing and dependencies took a third of the processor time of such a page. What is asked for in any other way, or wrongly,
is not taken here and comes to the route of the same address (`app.feed.router`), which is documented and answers the same to
the letter.
"""

from urllib.parse import parse_qsl

from pydantic import ValidationError
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from app.access.dependencies import holder
from app.access.keys import Scope as KeyScope
from app.feed.cloudevents import JSON, page_response
from app.feed.router import PATH, EventListParameters
from app.feed.waiting import page_when_there

_NAMES = {"after", "limit", "wait", "include_stale"}
_ACCEPTED = {JSON.encode(), b"*/*"}


class PlainPageRoute(BaseRoute):
    """Stands before the routes of the API, and takes nothing but plain pages."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether it is a plain page that is asked for; hands its parameters on."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "GET":
            return Match.NONE, {}
        if any(name == b"accept" and value not in _ACCEPTED for name, value in scope["headers"]):
            return Match.NONE, {}
        given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        parameters = dict(given)
        if len(parameters) != len(given) or not parameters.keys() <= _NAMES:
            return Match.NONE, {}
        try:
            return Match.FULL, {"parameters": EventListParameters.model_validate(parameters)}
        except ValidationError:
            return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the page, as the route would."""
        request = Request(scope, receive)
        query: EventListParameters = scope["parameters"]
        await holder(request, KeyScope.READ)
        page = await page_when_there(
            request, query, after=query.after, limit=query.limit, wait=query.wait, written=True
        )
        response = await page_response(request, page, JSON)
        await response(scope, receive, send)
