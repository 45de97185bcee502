"""Compresses large answers for who accepts gzip; nothing that streams, and nothing whose size could tell a secret."""

from starlette.datastructures import Headers
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

COMPRESSED_FROM = 4 * 1024
"""Bytes of an answer from which on it is compressed, at the lowest level: 300 kB of events become a sixth in 2 ms, and a ninth
in 8 ms at the highest."""

AS_THEY_ARE = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "text/html")
"""Media types that are never compressed. The dashboard's pages repeat what a visitor was made to ask for beside the token of
their forms, so that their compressed size could tell the token letter by letter (the attack known as BREACH)."""


class Compression(GZipMiddleware):
    """Starlette's, but for who says `gzip;q=0`: Starlette takes that for an acceptance (RFC 9110, section 12.5.3)."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, minimum_size=COMPRESSED_FROM, compresslevel=1, exclude_content_types=AS_THEY_ARE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and _refuses_gzip(Headers(scope=scope).get("accept-encoding", "")):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _refuses_gzip(accepted: str) -> bool:
    for one in accepted.lower().split(","):
        coding, *parameters = (part.strip() for part in one.split(";"))
        if coding == "gzip":
            return any(value.startswith("q=0") and not value.strip("q=0.") for value in parameters)
    return False
