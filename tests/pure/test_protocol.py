"""How answers leave the server: the head with the body, nothing later than the turn of the loop it was written in."""

import asyncio
from collections.abc import Iterable

import pytest

from app.protocol import JoiningTransport


class RecordingTransport(asyncio.Transport):
    """Notes what is sent and how it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[object] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.sent.append([bytes(data) for data in list_of_data])

    def close(self) -> None:
        self.sent.append("closed")

    def abort(self) -> None:
        self.sent.append("aborted")

    def is_closing(self) -> bool:
        return bool(self.sent)


@pytest.fixture
def below() -> RecordingTransport:
    return RecordingTransport()


@pytest.fixture
async def transport(below: RecordingTransport) -> JoiningTransport:
    return JoiningTransport(below, asyncio.get_running_loop())


async def test_head_and_body_are_sent_together(below: RecordingTransport, transport: JoiningTransport) -> None:
    transport.write(b"head")
    transport.write(b"body")
    assert below.sent == [[b"head", b"body"]]
    await asyncio.sleep(0)
    assert below.sent == [[b"head", b"body"]]


async def test_head_of_a_stream_does_not_wait_for_its_first_event(
    below: RecordingTransport, transport: JoiningTransport
) -> None:
    transport.write(b"head")
    assert below.sent == []
    await asyncio.sleep(0)
    assert below.sent == [b"head"]
    transport.write(b"event")
    await asyncio.sleep(0)
    assert below.sent == [b"head", b"event"]


async def test_nothing_but_one_piece_is_held_back(below: RecordingTransport, transport: JoiningTransport) -> None:
    """Else the peer's pace would not be felt before all was written."""
    for piece in (b"1", b"2", b"3", b"4", b"5"):
        transport.write(piece)
    assert below.sent == [[b"1", b"2"], [b"3", b"4"]]
    await asyncio.sleep(0)
    assert below.sent == [[b"1", b"2"], [b"3", b"4"], b"5"]


async def test_what_was_written_is_sent_before_the_connection_is_closed(
    below: RecordingTransport, transport: JoiningTransport
) -> None:
    transport.write(b"answer")
    transport.close()
    await asyncio.sleep(0)
    assert below.sent == [b"answer", "closed"]
    assert transport.is_closing()
