"""Reads a raw request body, up to a size and a time, and only while there is room for it in the process."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request

from app.errors import BodyTooLargeError, QueueFullError, RequestTimeoutError

SLOWEST_BODY = 10.0
"""Seconds a sender may take for its body: Jasper sends a few kilobytes, and a connection that drips holds memory."""


ROOM = 64 * 1024 * 1024
"""Bytes of bodies in the process at once, from their first byte to their commit, however many senders there are."""


class Room:
    """Bounds the bytes of all bodies that are being read or wait for their commit."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Room for one body: call what is yielded for each chunk. It is given back when the block ends.

        The call raises QueueFullError where there is none left.
        """
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if size > self._left:
                raise QueueFullError("the bodies that wait for their commit fill the memory set aside for them")
            held += size
            self._left -= size

        try:
            yield take
        finally:
            self._left += held


async def read_body(
    request: Request, *, limit: int, take: Callable[[int], None], patience: float = SLOWEST_BODY
) -> bytes:
    """The whole body as it came, without decoding any `Content-Encoding`; `take` is told the size of each chunk.

    Raises BodyTooLargeError as soon as the length or what was read shows it, RequestTimeoutError after `patience` seconds,
    what `take` raises, and Starlette's ClientDisconnect where the sender hung up.
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
                take(len(chunk))
                chunks.append(chunk)
    except TimeoutError as exc:
        raise RequestTimeoutError(f"the body did not arrive within {patience:g} s") from exc
    return b"".join(chunks)
