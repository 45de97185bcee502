"""Reads a raw request body, up to a size and a time, and only while there is room for it in the process."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from app.errors import BodyTooLargeError, QueueFullError, RequestTimeoutError

SLOWEST_BODY = 10.0
"""Seconds a sender may take for its body: Jasper sends a few kilobytes, and a connection that drips holds memory."""


ROOM = 64 * 1024 * 1024
"""Bytes of bodies in the process at once, from their first byte to their commit, however many senders there are."""


class Room:
    """Bounds the bytes of all bodies that are being read or wait for their commit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit

    @property
    def held(self) -> int:
        """Bytes that are in the process now."""
        return self._limit - self._left

    @property
    def left(self) -> int:
        """Bytes for which there is room now."""
        return self._left

    def take(self, size: int) -> None:
        """So many bytes are in the process from now on. Raises QueueFullError where there is no room for them."""
        if size > self._left:
            raise QueueFullError("the bodies that wait for their commit fill the memory set aside for them")
        self._left -= size

    def give_back(self, size: int) -> None:
        """So many bytes of what was taken are there no more."""
        self._left += size

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Room for one body: call what is yielded for each chunk. It is given back when the block ends.

        The call raises QueueFullError where there is none left.
        """
        held = 0

        def take(size: int) -> None:
            nonlocal held
            self.take(size)
            held += size

        try:
            yield take
        finally:
            self.give_back(held)


async def read_body(
    scope: Scope, receive: Receive, *, limit: int, take: Callable[[int], None], patience: float = SLOWEST_BODY
) -> bytes:
    """The whole body as it came, without decoding any `Content-Encoding`; `take` is told the size of each chunk.

    Raises BodyTooLargeError as soon as the length or what was read shows it, RequestTimeoutError where the rest does not
    follow its beginning within `patience` seconds, what `take` raises, and Starlette's ClientDisconnect where the sender
    hung up. (One of whom nothing comes at all is cut off by the server, see `app.protocol`: most bodies come in one piece,
    and a timer for each costs more than to read it.)
    """
    _check_length(scope, limit)
    body, is_whole = await _next_chunk(receive, limit, take)
    if is_whole:
        return body
    chunks = [body]
    left = limit - len(body)
    try:
        async with asyncio.timeout(patience):
            while not is_whole:
                chunk, is_whole = await _next_chunk(receive, left, take)
                left -= len(chunk)
                chunks.append(chunk)
    except TimeoutError as exc:
        raise RequestTimeoutError(f"the body did not arrive within {patience:g} s") from exc
    return b"".join(chunks)


def _check_length(scope: Scope, limit: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and (len(value) > len(str(limit)) or int(value) > limit):
            length = value[:20].decode()
            raise BodyTooLargeError(f"the body has {length} bytes, but at most {limit} are accepted (MAX_BODY_BYTES)")


async def _next_chunk(receive: Receive, left: int, take: Callable[[int], None]) -> tuple[bytes, bool]:
    """What comes next, and whether the body ends with it. `left` is how many bytes are still accepted."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    chunk: bytes = message.get("body", b"")
    if len(chunk) > left:
        raise BodyTooLargeError("the body is larger than what is accepted (MAX_BODY_BYTES)")
    take(len(chunk))
    return chunk, not message.get("more_body", False)
