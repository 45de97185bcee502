"""HTTP/1.1 as uvicorn speaks it, with what it lacks: bounds, and answers that leave in one piece.

Connections are bounded in what they may send and how long they may take, because no proxy in front is certain.
"""

import asyncio
import logging
from typing import NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_log = logging.getLogger(__name__)

LARGEST_HEAD = 64 * 1024
"""Bytes of a request's line and headers."""

SLOWEST_HEAD = 10.0
"""Seconds from the connection, or a later request's first byte, to the end of the headers."""

SLOWEST_BODY = 15.0
"""Seconds from the end of the headers to the end of the body, whether or not anyone reads it. The callback endpoint is
less patient, so that its senders get an answer (`app.intake.body`)."""

SLOWEST_READER = 60.0
"""Seconds in which a peer has to take something of an answer that waits for it."""


class JoiningTransport(asyncio.Transport):
    """A transport that sends the head and the body of an answer together.

    Uvicorn writes them one after the other, and uvloop makes a system call of each, which is most of what sending costs. So
    what is written is held back until more follows, or until the event loop's turn ends. Nothing but one piece is ever held, so
    that the peer's pace is felt as before. It knows what uvicorn asks of a transport.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._held: bytes | bytearray | memoryview | None = None
        # Asked often, and not to be answered by way of here.
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.abort = transport.abort  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send what is held and this, or hold this."""
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.writelines((held, data))
        else:
            self._held = data
            self._loop.call_soon(self._let_go)

    def close(self) -> None:
        """Close, once everything is sent."""
        self._let_go()
        self._transport.close()

    def _let_go(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.write(held)


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 with the bounds that it lacks: on the size of a head, and on the time of everything.

    Who sends too large a head is told so; who is too slow is cut off, as no answer of ours would reach it.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a head."""
        super().connection_made(JoiningTransport(transport, self.loop))
        self._in_head = True
        self._head_size = 0
        self._deadline: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None
        self._expect_within(SLOWEST_HEAD)

    def data_received(self, data: bytes) -> None:
        """Take what came; a head that has become too large is refused."""
        while data and not self.transport.is_closing():
            size = len(data)
            if self._in_head:
                if self._deadline is None:
                    self._expect_within(SLOWEST_HEAD)
                size = LARGEST_HEAD - self._head_size
                if size == 0:
                    self.send_400_response(f"The head of a request may have {LARGEST_HEAD} bytes.")
                    return
                self._head_size += min(size, len(data))
            super().data_received(data[:size])
            data = data[size:]

    def on_headers_complete(self) -> None:
        """The body begins, if there is one."""
        self._in_head = False
        self._expect_within(SLOWEST_BODY)
        if self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        ):
            self._refuse_to_upgrade()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next request may begin; until it does, uvicorn's own time-out for idle connections counts."""
        self._in_head = True
        self._head_size = 0
        self._deadline = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The peer does not keep up."""
        super().pause_writing()
        self._taking = self.loop.call_later(SLOWEST_READER, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer has caught up."""
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        for timer in (self._watch, self._taking):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong, once, and close."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _refuse_to_upgrade(self) -> NoReturn:
        """The parser takes what follows for another protocol: the request would come without its body, as if it had none."""
        message = "A request that has a body cannot ask for another protocol; send it without Upgrade."
        _log.warning("request refused", extra={"reason": message})
        self.send_400_response(message)
        raise httptools.HttpParserError(message)

    def _expect_within(self, seconds: float) -> None:
        """Cut the connection off where what is expected has not come in time.

        One timer goes on through many requests and looks at the deadline when it rings: most are long over by then.
        """
        self._deadline = self.loop.time() + seconds
        if self._watch is None or self._watch.when() > self._deadline:
            self._watch_until(self._deadline)

    def _watch_until(self, moment: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self.loop.call_at(moment, self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        self._watch = None
        if self._deadline is None:
            return
        if self._deadline <= self.loop.time():
            self.transport.abort()
        else:
            self._watch_until(self._deadline)
