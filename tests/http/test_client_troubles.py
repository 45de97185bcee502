"""The Python client while the service is in trouble: what it waits out, for how long, and what it tells at once.

A server on a real socket that answers what a test tells it, in order, and writes down what it was asked.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from typing import Any

import pytest

from jasper_receiver_client import (
    Feed,
    FeedError,
    KeyRefusedError,
    PositionGoneError,
    RequestRefusedError,
    UnreachableError,
)

EVENT = {
    "sequence": 7,
    "id": "01932f3c-7a1e-7cc0-8d52-0c8f9c1f4e11",
    "type": "product.updated",
    "entity_type": "product",
    "action": "update",
    "entity_id": "1001",
    "occurred_at": None,
    "received_at": "2026-11-23T10:00:01.25Z",
    "source": "webhook",
    "delivery_id": None,
    "action_inferred": False,
    "stale": False,
    "data": None,
    "changed": [],
    "changes": [],
    "of_a_later_version": True,
}
PAGE = {"events": [EVENT], "after": 7, "has_more": False}
CONSUMER = {"name": "search", "position": 0}


@dataclass(frozen=True)
class Answer:
    """One answer, after it was held for so many seconds; status 0 breaks the connection off instead."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    held: float = 0.0


@dataclass
class Scripted:
    """The server: `asked` holds each request, with its body and when it came (monotonic seconds)."""

    url: str
    asked: list[tuple[str, Any, float]] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        return [line for line, _, _ in self.asked]

    @property
    def pauses(self) -> list[float]:
        """Seconds between each request and the next."""
        times = [at for _, _, at in self.asked]
        return [later - earlier for earlier, later in pairwise(times)]


@contextmanager
def scripted(*answers: Answer) -> Iterator[Scripted]:
    """A server that gives these answers, one a request, and then none any more."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            server.asked.append((f"{self.command} {self.path.partition('?')[0]}", body, time.monotonic()))
            answer = left.pop(0) if left else Answer(0)
            time.sleep(answer.held)
            if answer.status == 0:
                self.close_connection = True
                return
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = respond  # noqa: N815 - the names of http.server

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - likewise
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Scripted(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jasper_receiver_client.service._FIRST_PAUSE", 0.02)
    monkeypatch.setattr("jasper_receiver_client.feed._CALMEST_PACE", 0.05)


def first(url: str, **options: Any) -> int:
    with Feed(url, "key", **options) as feed, closing(feed.follow()) as events:
        return next(events).sequence


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with scripted(Answer(status), Answer(status, b"<html>"), Answer(200, PAGE)) as server:
        assert first(server.url) == 7
    assert len(server.asked) == 3


def test_a_connection_that_breaks_is_tried_again() -> None:
    with scripted(Answer(0), Answer(0), Answer(200, PAGE)) as server:
        assert first(server.url) == 7
    assert len(server.asked) == 3


class Clock:
    """Time in which nobody sleeps; `slept` is what would have been."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a service that comes back is not asked by all its readers at once."""
    clock = Clock()
    monkeypatch.setattr("jasper_receiver_client.service.time", clock)
    with scripted(*[Answer(503)] * 14, Answer(200, PAGE)) as server:
        first(server.url)
    longest = [min(0.02 * 2**number, 30) for number in range(14)]
    parts = [pause / most for pause, most in zip(clock.slept, longest, strict=True)]
    assert all(0.5 <= part <= 1 for part in parts)
    assert max(parts) - min(parts) > 0.1


@pytest.mark.parametrize("by_date", [False, True])
def test_the_service_says_how_long_to_wait(*, by_date: bool) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if by_date else "1"
    with scripted(Answer(429, None, {"Retry-After": when}), Answer(200, PAGE)) as server:
        first(server.url)
    assert 0.9 < server.pauses[0] < 4


@pytest.mark.parametrize("nonsense", ["soon", "-5", "1.5e9", "Mon, 99 Nov 2026 10:00:00 GMT"])
def test_nonsense_about_how_long_to_wait_is_passed_over(nonsense: str) -> None:
    header = {"Retry-After": nonsense.encode().decode("latin-1")}
    with scripted(Answer(503, None, header), Answer(200, PAGE)) as server:
        assert first(server.url) == 7
    assert server.pauses[0] < 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, RequestRefusedError), (401, KeyRefusedError), (403, KeyRefusedError), (404, RequestRefusedError)],
)
def test_what_would_come_again_is_told_at_once(status: int, error: type[RequestRefusedError]) -> None:
    problem = {"type": "/problems/some", "status": status, "detail": "in words"}
    with scripted(Answer(status, problem)) as server, pytest.raises(error, match="in words") as refused:
        first(server.url)
    assert len(server.asked) == 1
    assert (refused.value.status, refused.value.type, refused.value.problem) == (status, "/problems/some", problem)
    assert type(refused.value) is error


@pytest.mark.parametrize("answer", [Answer(404, b"<html>no</html>"), Answer(302, None, {"Location": "/login"})])
def test_what_something_in_between_answers_is_told_as_such(answer: Answer) -> None:
    with scripted(answer) as server, pytest.raises(RequestRefusedError, match="not the service's") as refused:
        first(server.url)
    assert (refused.value.status, refused.value.type) == (answer.status, "")


@pytest.mark.parametrize("consumer", [None, "search"])
def test_a_position_that_is_gone_says_where_the_whole_begins(consumer: str | None) -> None:
    gone = Answer(410, {"type": "/problems/gone", "status": 410, "detail": "removed", "oldest_after": 41})
    answers = [gone] if consumer is None else [Answer(200, CONSUMER), gone]
    with scripted(*answers) as server, pytest.raises(PositionGoneError, match="removed") as refused:
        first(server.url, consumer=consumer)
    assert refused.value.oldest_after == 41


def test_patience_ends() -> None:
    started = time.monotonic()
    with scripted(*[Answer(503)] * 50) as server, pytest.raises(UnreachableError, match="answered 503"):
        first(server.url, patience=0.5)
    assert time.monotonic() - started < 2
    with pytest.raises(UnreachableError, match="address"):
        first(server.url, patience=0.2)
    assert issubclass(UnreachableError, FeedError)


def test_patience_begins_with_the_trouble_and_not_with_the_wait_before_it() -> None:
    """A call is held for as long as the service was asked to, which may be longer than the patience."""
    with scripted(Answer(0, held=1.2), Answer(200, PAGE)) as server:
        first(server.url, patience=1.0)
    assert len(server.asked) == 2


def test_an_empty_answer_that_comes_at_once_is_not_asked_for_at_once_again() -> None:
    """As of a service that stops, and lets those go that wait."""
    empty = Answer(200, {"events": [], "after": 3, "has_more": False})
    with scripted(empty, empty, empty, Answer(200, PAGE)) as server:
        first(server.url)
    assert sum(server.pauses) > 3 * 0.05 - 0.02


def test_a_page_that_another_holds_is_asked_for_again() -> None:
    leased = Answer(409, {"type": "/problems/leased", "status": 409, "detail": "another"}, {"Retry-After": "60"})
    page = PAGE | {"lease_id": "5b2c6a0e-2a5d-4c1f-9b57-0d6f1c1f9a10"}
    answers = [Answer(200, CONSUMER), leased, leased, Answer(200, page), Answer(200, CONSUMER)]
    with (
        scripted(*answers) as server,
        Feed(server.url, "key", consumer="search") as feed,
        closing(feed.follow(lease=60)) as events,
    ):
        assert next(events).sequence == 7
        events.close()
    assert server.lines[1:4] == ["GET /v1/consumers/search/events"] * 3
    assert server.asked[4][1] == {"after": 6, "lease_id": page["lease_id"]}, "what was in hand is not done"


def test_an_acknowledgement_is_tried_again_until_it_is_heard() -> None:
    answers = [Answer(200, CONSUMER), Answer(200, PAGE), Answer(0), Answer(503), Answer(200, CONSUMER)]
    later = PAGE | {"events": [EVENT | {"sequence": 8}], "after": 8}
    with scripted(*answers, Answer(200, later)) as server, Feed(server.url, "key", consumer="search") as feed:
        with closing(feed.follow()) as events:
            assert [event.sequence for event in islice(events, 2)] == [7, 8]
        acks = [(line, body) for line, body, _ in server.asked if line.startswith("POST")]
    assert acks == [("POST /v1/consumers/search/ack", {"after": 7})] * 3


def test_a_loop_that_is_left_does_not_wait_for_a_service_that_is_gone() -> None:
    answers = [Answer(200, CONSUMER), Answer(200, PAGE | {"events": [EVENT, EVENT | {"sequence": 8}], "after": 8})]
    with scripted(*answers) as server, Feed(server.url, "key", consumer="search") as feed:
        following = feed.follow()
        assert [event.sequence for event in islice(following, 2)] == [7, 8]
        started = time.monotonic()
        following.close()
        assert time.monotonic() - started < 1
    assert server.asked[-1][:2] == ("POST /v1/consumers/search/ack", {"after": 7})


def test_a_feed_that_was_closed_first_leaves_quietly() -> None:
    answers = [Answer(200, CONSUMER), Answer(200, PAGE | {"lease_id": "5b2c6a0e-2a5d-4c1f-9b57-0d6f1c1f9a10"})]
    with scripted(*answers) as server:
        with Feed(server.url, "key", consumer="search") as feed:
            following = feed.follow(lease=5)
            next(following)
        following.close()
    assert len(server.asked) == 2
