"""Reads a raw request body, up to a size and a time."""

import asyncio

from starlette.requests import Request

from app.errors import BodyTooLargeError, RequestTimeoutError

SLOWEST_BODY = 10.0
"""Seconds a sender may take for its body: Jasper sends a few kilobytes, and a connection that drips holds memory."""


async def read_body(request: Request, *, limit: int, patience: float = SLOWEST_BODY) -> bytes:
    """The whole body as it came, without decoding any `Content-Encoding`.

    Raises BodyTooLargeError as soon as the length or what was read shows it, RequestTimeoutError after `patience` seconds,
    and Starlette's ClientDisconnect where the sender hung up.
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > len(str(limit)) or int(length) > limit):
        raise BodyTooLargeError(f"the body has {length[:20]} bytes, but at most {limit} are accepted (MAX_BODY_BYTES)")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(patience):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise BodyTooLargeError(f"the body is larger than {limit} bytes (MAX_BODY_BYTES)")
                chunks.append(chunk)
    except TimeoutError as exc:
        raise RequestTimeoutError(f"the body did not arrive within {patience:g} s") from exc
    return b"".join(chunks)
