"""The client: sends prepared requests over kept-alive connections and measures the answers. A process of its own.

Two ways to send: as fast as answers come (a closed loop: each connection has one request under way), or at a steady rate
(an open loop: each request has its time, and its latency counts from there, whether or not a connection was free). It is one
loop around epoll, without an event loop or an HTTP library: most of its time is the kernel's, so that it takes little from
what it measures (the report says how much). Every request that was sent is accounted for: after the last one it waits for
all answers that are still to come, so the answers can be compared with the rows in the database to the last one.

`python -m bench.load` reads a Load as JSON from standard input and writes Answers to standard output.
"""

import asyncio
import gc
import math
import select
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.requests import Requests

PATIENCE = 30.0
"""Seconds after the last request within which its answer has to come."""

PERCENTILES = (0.5, 0.99, 0.999)

_BUFFER = 1024 * 1024
_LONGEST_HEAD = 16 * 1024
_SAMPLE = 300
_SECOND = 1_000_000_000


class LoadError(Exception):
    """The client could not do its work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send: requests from number `first` on, for `seconds` or until there were `count`, whichever is first.

    With `rate` (requests a second) it is an open loop. With `cycle` the requests begin anew at the end of the file;
    without, sending ends there. Connections are spread evenly over `ports`.
    """

    requests: str
    ports: list[int]
    connections: int
    seconds: float
    first: int = 0
    count: int | None = None
    rate: float | None = None
    cycle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came of a Load. Times in seconds; `percentiles` of the latency of 2xx answers by their share.

    `in_time` are the 2xx answers that came before the sending ended, `seconds` how long that was. `unanswered` are
    requests whose connection was closed or whose patience ran out. `samples` are the first words of an answer of each
    status that is no 2xx, `exhausted` says that the file was too short for the time.
    """

    sent: int
    statuses: dict[int, int]
    unanswered: int
    in_time: int
    seconds: float
    percentiles: dict[float, float]
    longest: float
    cpu: float
    exhausted: bool
    samples: dict[int, str] = field(default_factory=dict)

    @property
    def succeeded(self) -> int:
        """How many answers were 2xx."""
        return sum(count for status, count in self.statuses.items() if is_success(status))

    @property
    def failed(self) -> int:
        """How many requests were answered by something else, or not at all."""
        return self.sent - self.succeeded

    @property
    def rate(self) -> float:
        """2xx answers a second."""
        return self.in_time / self.seconds


def is_success(status: int) -> bool:
    """Whether a status is a 2xx."""
    return 200 <= status < 300


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of some values in ascending order that so large a share of them does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class _Connection:
    """One connection. `began` is when the request under way was, or should have been, sent; 0 where there is none."""

    __slots__ = ("began", "head", "missing", "port", "socket", "status")

    def __init__(self, port: int) -> None:
        self.port = port
        self.began = 0
        self.head = b""
        self.missing = 0
        self.status = 0
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        connected = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connected.settimeout(
            None
        )  # what is read is there, as epoll said, and what is sent fits into the kernel's buffer
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def renew(self) -> None:
        """Begin anew. Raises OSError where nobody listens any more."""
        self.socket.close()
        self.began, self.head, self.missing = 0, b"", 0
        self.socket = self._connect()


class _Client:
    """One run of the loop."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = Requests(Path(load.requests))
        available = len(self._requests) - load.first
        wanted = math.inf if load.count is None else load.count
        self._most = wanted if load.cycle else min(wanted, available)
        self._may_run_out = not load.cycle and available < wanted
        self._sent = 0
        self._under_way = 0
        self._unanswered = 0
        self._statuses: dict[int, int] = {}
        self._samples: dict[int, str] = {}
        self._latencies = array("Q")
        self._in_time = 0
        self._idle: deque[_Connection] = deque()
        self._due: deque[int] = deque()
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._deadline = 0

    def run(self) -> Answers:
        for number in range(self._load.connections):
            connection = _Connection(self._load.ports[number % len(self._load.ports)])
            self._watch(connection)
            self._idle.append(connection)
        gc.freeze()
        gc.disable()  # nothing here makes circles, and a collection would be taken for latency
        cpu = time.process_time()
        begun = time.perf_counter_ns()
        self._deadline = begun + int(self._load.seconds * _SECOND)
        ended = self._send_at_rate(begun) if self._load.rate else self._send_all(begun)
        self._drain()
        return self._answers(cpu=time.process_time() - cpu, seconds=(ended - begun) / _SECOND)

    def _send_all(self, begun: int) -> int:
        """The closed loop; returns when it ended."""
        now = begun
        while now < self._deadline and self._sent < self._most and self._connections:
            while self._idle and self._sent < self._most:
                self._send(self._idle.popleft(), time.perf_counter_ns())
            for descriptor, _ in self._epoll.poll((self._deadline - now) / _SECOND):
                if (connection := self._receive(descriptor)) is not None:
                    self._idle.append(connection)
                    if self._sent < self._most and time.perf_counter_ns() < self._deadline:
                        self._send(self._idle.pop(), time.perf_counter_ns())
            now = time.perf_counter_ns()
        return now

    def _send_at_rate(self, begun: int) -> int:
        """The open loop; returns when it ended. What found no free connection goes out as soon as there is one.

        However late this loop itself may be, nothing that was due is left out.
        """
        assert self._load.rate is not None
        step = _SECOND / self._load.rate
        wanted = min(self._most, math.ceil(self._load.seconds * self._load.rate))
        planned, now = 0, begun
        while (planned < wanted or self._due) and self._connections and now < self._deadline + PATIENCE * _SECOND:
            while planned < wanted and begun + int(planned * step) <= now:
                self._due.append(begun + int(planned * step))
                planned += 1
            self._send_due()
            pause = max(0.0, (begun + planned * step - now) / _SECOND) if planned < wanted else 1.0
            if planned < wanted or self._due:
                select.select((self._epoll,), (), (), pause)  # epoll itself counts in milliseconds
            self._take_answers(0)
            now = time.perf_counter_ns()
        return begun + int(planned * step)

    def _send_due(self) -> None:
        while self._due and self._idle:
            self._send(self._idle.popleft(), self._due.popleft())

    def _take_answers(self, seconds: float) -> None:
        """Read what has come, waiting for it so long."""
        for descriptor, _ in self._epoll.poll(seconds):
            if (connection := self._receive(descriptor)) is not None:
                self._idle.append(connection)

    def _drain(self) -> None:
        """Wait for the answers that are still to come."""
        give_up = time.perf_counter_ns() + int(PATIENCE * _SECOND)
        while self._under_way and time.perf_counter_ns() < give_up:
            self._take_answers(1)
        self._unanswered += self._under_way

    def _watch(self, connection: _Connection) -> None:
        descriptor = connection.socket.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._connections[descriptor] = connection

    def _send(self, connection: _Connection, began: int) -> None:
        number = self._load.first + self._sent
        connection.began = began
        self._sent += 1
        self._under_way += 1
        with suppress(OSError):  # what became of it is seen when it is read from
            connection.socket.sendall(self._requests[number % len(self._requests)])

    def _receive(self, descriptor: int) -> _Connection | None:
        """Read from a connection; returns it if it is free for the next request."""
        connection = self._connections[descriptor]
        try:
            count = connection.socket.recv_into(self._buffer)
        except OSError:
            count = 0
        if count == 0:
            return self._reconnect(descriptor, connection)
        if connection.missing:
            connection.missing -= count
        else:
            head = connection.head + bytes(self._view[: min(count, _LONGEST_HEAD)])
            end = head.find(b"\r\n\r\n")
            if end < 0:
                connection.head = head
                return None
            connection.status = int(head[9:12])
            connection.missing = _content_length(head[:end]) - (count + len(connection.head) - end - 4)
            if connection.missing > 0 and not is_success(connection.status):
                connection.head, connection.missing = head, 0  # it is looked at whole
                return None
            connection.head = b""
            if not is_success(connection.status) and connection.status not in self._samples:
                comes_again = "(Retry-After) " if b"\r\nretry-after:" in head[:end].lower() else ""
                self._samples[connection.status] = comes_again + head[end + 4 :][:_SAMPLE].decode(errors="replace")
        if connection.missing > 0:
            return None
        self._note(connection)
        return connection

    def _note(self, connection: _Connection) -> None:
        now = time.perf_counter_ns()
        status = connection.status
        self._statuses[status] = self._statuses.get(status, 0) + 1
        if is_success(status):
            self._latencies.append(now - connection.began)
            self._in_time += now <= self._deadline
        connection.began = 0
        self._under_way -= 1

    def _reconnect(self, descriptor: int, connection: _Connection) -> _Connection | None:
        """The other side closed it: whatever was under way stays unanswered."""
        if connection.began:
            self._unanswered += 1
            self._under_way -= 1
        else:
            self._idle.remove(connection)
        self._epoll.unregister(descriptor)
        del self._connections[descriptor]
        try:
            connection.renew()
        except OSError:
            return None
        self._watch(connection)
        return connection

    def _answers(self, *, cpu: float, seconds: float) -> Answers:
        ordered = sorted(self._latencies)
        return Answers(
            sent=self._sent,
            statuses=self._statuses,
            unanswered=self._unanswered,
            in_time=self._in_time,
            seconds=seconds,
            percentiles={share: percentile(ordered, share) / _SECOND for share in PERCENTILES} if ordered else {},
            longest=ordered[-1] / _SECOND if ordered else 0.0,
            cpu=cpu,
            exhausted=self._may_run_out and self._sent >= self._most,
            samples=self._samples,
        )


def _content_length(head: bytes) -> int:
    lower = head.lower()
    begin = lower.find(b"\r\ncontent-length:")
    if begin < 0:
        raise LoadError(f"an answer without Content-Length cannot be measured: {head[:200]!r}")
    end = lower.find(b"\r\n", begin + 2)
    return int(lower[begin + 17 : end if end > 0 else None])


async def send(load: Load) -> Answers:
    """Run the client as a process of its own. Raises LoadError with what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load"),
        cwd=Path(__file__).parents[1],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, said = await process.communicate(msgspec.json.encode(load))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise LoadError(said.decode(errors="replace"))
    return msgspec.json.decode(output, type=Answers)


def main() -> None:
    """The client as a process."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    try:
        answers = _Client(load).run()
    except (OSError, LoadError) as exc:
        sys.exit(f"requests could not be sent to {load.ports}: {exc}")
    sys.stdout.buffer.write(msgspec.json.encode(answers))


if __name__ == "__main__":
    main()
