"""HEAD is answered as the GET of the same address, without its body (RFC 9110, section 9.3.2): monitors probe by it.

Starlette and FastAPI leave that to each route. The request's own line in the log still says HEAD.
"""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NEEDS_READER = re.compile(r"/v1/consumers/[^/]+/events")
"""Pages that may be leased to who asks: HEAD would take one from the others for nobody, and is refused."""


def takes_head(path: str) -> bool:
    """Whether a HEAD is answered as the GET of this path."""
    return not _NEEDS_READER.fullmatch(path)


class HeadAsGet:
    """Stands around the layers of the application, which see a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD" or not takes_head(scope["path"]):
            await self._app(scope, receive, send)
            return
        has_ended = False

        async def send_without_body(message: Message) -> None:
            nonlocal has_ended
            if message["type"] == "http.response.start":
                await send(message)
            elif not has_ended:
                has_ended = True  # with the first piece already, so that a stream goes on for nobody
                await send({"type": "http.response.body"})

        await self._app({**scope, "method": "GET"}, receive, send_without_body)
