"""How answers leave the server: the head with the body, nothing later than the turn of the loop it was written in.

And what becomes of who does not take them.
"""

import asyncio
from collections.abc import Iterable

import pytest
import uvicorn
from uvicorn.server import ServerState

from app import protocol
from app.protocol import LEAST_TAKEN, BoundedProtocol, JoiningTransport


class RecordingTransport(asyncio.Transport):
    """Notes what is sent and how it is closed. `waiting` says how much the peer has not taken, each time that is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[object] = []
        self.waiting = [0]

    def get_write_buffer_size(self) -> int:
        return self.waiting.pop(0) if len(self.waiting) > 1 else self.waiting[0]

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

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SLOWEST_READER", 0.01)


async def until_aborted(below: RecordingTransport) -> None:
    async with asyncio.timeout(5):
        while below.sent[-1:] != ["aborted"]:
            await asyncio.sleep(0.005)


@pytest.mark.usefixtures("impatient")
async def test_who_does_not_take_its_last_answer_cannot_keep_the_connection(
    below: RecordingTransport, transport: JoiningTransport
) -> None:
    """However little it is: what waits below the mark at which a server stops writing is told to nobody."""
    below.waiting = [1]
    transport.write(b"answer")
    transport.close()
    await until_aborted(below)


@pytest.mark.usefixtures("impatient")
async def test_who_takes_a_long_answer_slowly_gets_all_of_it(
    below: RecordingTransport, transport: JoiningTransport
) -> None:
    seen = below.waiting = [LEAST_TAKEN * left for left in range(20, 0, -1)] + [0] * 3
    transport.expect_taking()
    async with asyncio.timeout(5):
        while len(seen) > 1:
            await asyncio.sleep(0.005)
    transport.expect_nothing()
    await asyncio.sleep(0.05)
    assert below.sent == []


@pytest.mark.usefixtures("impatient")
async def test_who_takes_too_little_is_given_up(below: RecordingTransport, transport: JoiningTransport) -> None:
    below.waiting = [LEAST_TAKEN * 3, LEAST_TAKEN * 2, LEAST_TAKEN + 1]
    transport.expect_taking()
    await until_aborted(below)
    assert below.waiting == [LEAST_TAKEN + 1]


async def test_of_a_connection_that_is_lost_nothing_is_expected(below: RecordingTransport) -> None:
    """Though uvicorn closes it once more, and what the peer did not take may still be there."""
    config = uvicorn.Config(lambda: None, log_config=None, access_log=False, ws="none")
    config.load()
    server = BoundedProtocol(config, ServerState(), {})
    server.connection_made(below)
    below.waiting = [50]
    server.connection_lost(None)
    assert server._joining not in JoiningTransport.untaken
    assert server._joining._taking is None


async def test_what_waits_for_slow_readers_is_bounded_in_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may have megabytes, and there may be any number of readers."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(JoiningTransport, "untaken", {})
    monkeypatch.setattr(protocol, "MOST_UNTAKEN", 100)
    peers = [RecordingTransport() for _ in range(3)]
    transports = [JoiningTransport(peer, loop) for peer in peers]
    for peer in peers:
        peer.waiting = [60]
    transports[0].expect_taking()
    transports[1].expect_taking()
    assert [peer.sent for peer in peers] == [["aborted"], [], []]  # who has waited longest
    for transport in transports[:2]:
        transport.expect_nothing()
    transports[2].expect_taking()
    assert peers[2].sent == []
    transports[2].expect_nothing()
    assert not JoiningTransport.untaken


@pytest.mark.usefixtures("impatient")
async def test_who_has_taken_everything_is_left_alone(below: RecordingTransport, transport: JoiningTransport) -> None:
    below.waiting = [5]
    transport.expect_taking()
    transport.expect_nothing()
    await asyncio.sleep(0.05)
    assert below.sent == []
