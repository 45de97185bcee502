"""Reading bodies: bounded in size, in time, and in what all of them together may hold."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message, Receive, Scope

from app.errors import BodyTooLargeError, QueueFullError, RequestTimeoutError
from app.intake.body import Room, read_body


def a_request(*chunks: bytes, length: str | None = None, then_hang: bool = False) -> tuple[Scope, Receive]:
    async def messages() -> AsyncIterator[Message]:
        for chunk in chunks:
            yield {"type": "http.request", "body": chunk, "more_body": True}
        if then_hang:
            await asyncio.Event().wait()
        yield {"type": "http.request", "body": b"", "more_body": False}

    headers = [] if length is None else [(b"content-length", length.encode())]
    return {"type": "http", "headers": headers}, messages().__anext__


async def read(request: tuple[Scope, Receive], *, limit: int = 10, room: int = 100, patience: float = 5) -> bytes:
    with Room(room).hold() as take:
        return await read_body(*request, limit=limit, take=take, patience=patience)


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert await read(a_request(b"12345", b"67890", length="10")) == b"1234567890"


async def test_a_body_over_the_limit_is_refused_as_soon_as_it_shows() -> None:
    with pytest.raises(BodyTooLargeError):
        await read(a_request(b"12345", b"678901", then_hang=True))


@pytest.mark.parametrize("length", ["11", "9" * 100])
async def test_a_length_over_the_limit_is_refused_before_anything_is_read(length: str) -> None:
    with pytest.raises(BodyTooLargeError):
        await read(a_request(length=length, then_hang=True))


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", "\u0663"])
async def test_a_length_that_is_no_number_decides_nothing(length: str) -> None:
    _, receive = a_request(b"1")
    scope = {"type": "http", "headers": [(b"content-length", length.encode())]}
    assert await read((scope, receive)) == b"1"


async def test_a_sender_that_dawdles_is_given_up() -> None:
    with pytest.raises(RequestTimeoutError):
        await read(a_request(b"1", then_hang=True), patience=0.01)


async def test_all_bodies_together_hold_no_more_than_there_is_room_for() -> None:
    room = Room(10)
    with room.hold() as take:
        take(6)
        with room.hold() as other:
            other(3)
            with pytest.raises(QueueFullError):
                other(2)
        with room.hold() as third:
            third(4)
    with room.hold() as take:
        take(10)
