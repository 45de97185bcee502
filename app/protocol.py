"""HTTP/1.1 as uvicorn speaks it, with what it lacks: bounds, answers that leave in one piece, and a shortcut past ASGI.

Connections are bounded in what they may send and how long they may take, because no proxy in front is certain.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import ClassVar, NoReturn, Protocol

import httptools
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

_log = logging.getLogger(__name__)

RawHeaders = Sequence[tuple[bytes, bytes]]
"""Headers as ASGI has them: (lower-case name, value)."""

Answer = Callable[[int, RawHeaders, bytes], None]
"""Sends an answer: its status, its headers (`content-length` among them) and its body."""


class Shortcut(Protocol):
    """Answers usual requests without ASGI, whose scope, task and messages take a fifth of a callback's time.

    It stands in the lifespan's state, as `shortcut`. What it is offered is a POST to one of its `urls` that has come whole,
    within a moment, on a connection that is idle otherwise.
    """

    urls: Collection[bytes]

    def __call__(self, url: bytes, headers: RawHeaders, client: str, body: bytes, answer: Answer) -> bool:
        """Take the request and call `answer`, now or later; or return False, and it goes the long way, through ASGI."""
        ...


LARGEST_HEAD = 64 * 1024
"""Bytes of a request's line and headers; and of what nobody reads between the pieces of its body and behind them."""

SLOWEST_HEAD = 10.0
"""Seconds from the connection, or a later request's first byte, to the end of the headers."""

SLOWEST_BODY = 15.0
"""Seconds from the end of the headers to the end of the body, whether or not anyone reads it. The callback endpoint is
less patient, so that its senders get an answer (`app.intake.body`)."""

SLOWEST_READER = 60.0
LEAST_TAKEN = 256 * 1024
"""Seconds in which a peer has to take so many bytes of an answer that waits for it, or all that is left."""

MOST_UNTAKEN = 128 * 1024 * 1024
"""Bytes of answers that wait for their readers, in the whole process. Beyond them whoever has waited longest is cut off: it is
no quick reader, and may come again."""

LONGEST_HELD_BACK = 0.05
"""Seconds in which the rest of a request has to follow its beginning for the shortcut: a proxy may send the head and the body
one after the other."""

MOST_HELD_BACK = 64 * 1024
MOST_PIECES = 16
"""Bytes and pieces of a body for the shortcut that comes in several. As many bytes uvicorn takes before anybody reads them."""


class JoiningTransport(asyncio.Transport):
    """A transport that sends the head and the body of an answer together, and gives up on a peer that does not take them.

    Uvicorn writes them one after the other, and uvloop makes a system call of each, which is most of what sending costs. So
    what is written is held back until more follows, or until the event loop's turn ends. Nothing but one piece is ever held, so
    that the peer's pace is felt as before. It knows what uvicorn asks of a transport.
    """

    untaken: ClassVar[dict["JoiningTransport", int]] = {}
    """Those whose peers have not taken everything, longest first, and how many bytes wait in each."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._held: bytes | bytearray | memoryview | None = None
        self._taking: asyncio.TimerHandle | None = None
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

    def write_whole(self, data: bytes) -> None:
        """Send what is held and this, of which nothing more follows."""
        self._let_go()
        self._transport.write(data)

    def close(self) -> None:
        """Close, once everything is sent."""
        self._let_go()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self.expect_taking()

    def expect_taking(self) -> None:
        """Abort unless the peer takes what waits for it, at least as fast as it has to, from now on until `expect_nothing`."""
        if self._taking is None:
            waiting = self._transport.get_write_buffer_size()
            self.untaken[self] = waiting
            self._taking = self._loop.call_later(SLOWEST_READER, self._look_what_was_taken, waiting)
            while sum(self.untaken.values()) > MOST_UNTAKEN:
                slowest = next(iter(self.untaken))
                _log.warning(
                    "answer cut off",
                    extra={"bytes": self.untaken.pop(slowest), "reason": "too much waits for slow readers"},
                )
                slowest.abort()

    def expect_nothing(self) -> None:
        """All was taken, or the connection is gone."""
        self.untaken.pop(self, None)
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _look_what_was_taken(self, waited: int) -> None:
        self._taking = None
        if self._transport.get_write_buffer_size() > max(0, waited - LEAST_TAKEN):
            self.abort()
        else:
            self.expect_taking()

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
        self._joining = JoiningTransport(transport, self.loop)
        super().connection_made(self._joining)
        self._in_head = True
        self._beside = 0  # bytes since the last that were a body's
        self._deadline: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._expect_within(SLOWEST_HEAD)

    def data_received(self, data: bytes) -> None:
        """Take what came; a head that has become too large is refused, and so is too much around a body."""
        while data and not self.transport.is_closing():
            if self._in_head and self._deadline is None:
                self._expect_within(SLOWEST_HEAD)
            size = LARGEST_HEAD - self._beside
            if size == 0:
                self.send_400_response(
                    f"The head of a request may have {LARGEST_HEAD} bytes, and so may what stands around its body."
                )
                return
            self._beside += min(size, len(data))
            super().data_received(data[:size])
            data = data[size:]
        if self._deadline is None and self.timeout_keep_alive_task is None and self.is_idle:
            self._wait_for_next_request()

    def _wait_for_next_request(self) -> None:
        """Uvicorn does so from the answer on; but it gave that up where the rest of the body came after the answer."""
        if not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    @property
    def is_idle(self) -> bool:
        """Whether every request that came has its answer."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def on_message_begin(self) -> None:
        """A request begins, maybe together with the end of the one before."""
        super().on_message_begin()
        if self._deadline is None:
            self._expect_within(SLOWEST_HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. What comes like one behind a body is no header (RFC 9110, section 6.5.1), and nobody asked for it."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The body begins, if there is one."""
        self._in_head = False
        self._beside = 0
        self._expect_within(SLOWEST_BODY)
        if self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        ):
            self._refuse_to_upgrade()
        self.begin_request()

    def begin_request(self) -> None:
        """Hand the request to the application."""
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body has come."""
        self._beside = 0
        self.take_body(body)

    def take_body(self, body: bytes) -> None:
        """Hand a piece of the body to the application."""
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next request may begin; until it does, uvicorn's own time-out for idle connections counts."""
        self._in_head = True
        self._beside = 0
        self._deadline = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The peer does not keep up."""
        super().pause_writing()
        self._joining.expect_taking()

    def resume_writing(self) -> None:
        """The peer has caught up, though perhaps not with all that is to be sent before the connection closes."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._joining.expect_nothing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)  # which closes once more
        self._joining.expect_nothing()
        # What would keep it in memory, with its last request: a timer where it was reset, and a circle.
        self._unset_keepalive_if_required()
        self.cycle = None  # type: ignore[assignment]  # there is none any more

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong, once, and close. An answer that is due comes first, and is the last: it may be of a commit."""
        if self.transport.is_closing():
            return
        if self.is_idle or self.cycle.more_body:
            super().send_400_response(msg)
        else:
            self.cycle.keep_alive = False

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


class ShortcutProtocol(BoundedProtocol):
    """The same, with the shortcut for whom it is meant. Everything else goes the long way, as if there were none."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Nothing is held back at first."""
        super().connection_made(transport)
        self._shortcut: Shortcut | None = self.app_state.get("shortcut")
        self._held_back: list[bytes] | None = None
        self._held_size = 0
        self._patience: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Take what came; the rest of what is held back has to follow at once."""
        super().data_received(data)
        if self._held_back is not None and self._patience is None:
            self._patience = self.loop.call_later(LONGEST_HELD_BACK, self._go_the_long_way)

    def begin_request(self) -> None:
        """Hold back a request for which there is a shortcut, until the whole of it is there."""
        if (
            self._shortcut is not None
            and self.url in self._shortcut.urls
            and self.parser.get_method() == b"POST"
            and self.is_idle
            and not self.expect_100_continue
            and not self.flow.write_paused
        ):
            self._held_back = []
            self._held_size = 0
        else:
            super().begin_request()

    def take_body(self, body: bytes) -> None:
        """Hold back the body, too, but no large one and not many pieces."""
        if self._held_back is None:
            super().take_body(body)
            return
        self._held_back.append(body)
        self._held_size += len(body)
        pieces = len(self._held_back)
        if pieces > MOST_PIECES or (pieces > 1 and self._held_size > MOST_HELD_BACK):
            self._go_the_long_way()

    def on_message_complete(self) -> None:
        """Offer the whole request to the shortcut."""
        if self._held_back is not None:
            keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
            before, cycle = self.cycle, ShortCycle(self, keep_alive=keep_alive)
            self.cycle = cycle  # type: ignore[assignment]  # it has what uvicorn asks it for
            if self._take(b"".join(self._held_back), cycle.answer):
                self._hold_back_no_more()
            else:
                self.cycle = before
                self._go_the_long_way()
        super().on_message_complete()

    def shutdown(self) -> None:
        """What is held back has begun, and may come to its end."""
        self._go_the_long_way()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """There will be no rest."""
        self._hold_back_no_more()
        super().connection_lost(exc)

    def _go_the_long_way(self) -> None:
        held_back = self._hold_back_no_more()
        if held_back is not None:
            super().begin_request()
            for piece in held_back:
                super().take_body(piece)

    def _hold_back_no_more(self) -> list[bytes] | None:
        held_back, self._held_back = self._held_back, None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        return held_back

    def send_whole(self, data: bytes) -> None:
        """Send a whole answer at once."""
        self._joining.write_whole(data)

    def _take(self, body: bytes, answer: Answer) -> bool:
        assert self._shortcut is not None  # noqa: S101 - else nothing would have been held back
        try:
            return self._shortcut(self.url, self.headers, self._client(), body, answer)
        except Exception:  # noqa: BLE001 - whatever it is, the long way answers it
            _log.exception("the shortcut failed, the request goes the long way")
            return False

    def _client(self) -> str:
        """The address of the caller: who a trusted proxy says it is, as uvicorn's middleware has it, else the peer."""
        peer = self.client[0] if self.client else ""
        named = [value for name, value in self.headers if name == b"x-forwarded-for"]
        proxies: ProxyHeadersMiddleware = self.config.loaded_app
        if not named or peer not in proxies.trusted_hosts:
            return peer
        return proxies.trusted_hosts.get_trusted_client_address(b", ".join(named).decode("latin-1"))[0] or peer


class ShortCycle:
    """A request that takes the shortcut and its answer, with what uvicorn's protocol asks of a request under way."""

    __slots__ = ("_protocol", "disconnected", "keep_alive", "more_body", "response_complete")

    message_event = asyncio.Event()
    """Nobody waits for it."""

    def __init__(self, protocol: ShortcutProtocol, *, keep_alive: bool) -> None:
        self._protocol = protocol
        self.disconnected = False
        self.keep_alive = keep_alive
        self.more_body = True
        self.response_complete = False

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send the answer in one piece, if there is still someone to take it."""
        protocol = self._protocol
        self.response_complete = True
        if protocol.transport.is_closing():
            return
        parts = [STATUS_LINE[status]]
        for name, value in chain(protocol.server_state.default_headers, headers):
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        protocol.send_whole(b"".join(parts))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()
