"""The shortcut of callbacks: nobody can tell it from the long way, and only who is usual takes it."""

import asyncio
import gc
import json
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app import protocol
from app.db.engine import connect
from app.db.locks import Lock
from app.domain.values import Entry, Receipt
from app.errors import DatabaseUnavailableError
from app.intake import router, shortcut
from app.ledger.append import LOCK
from app.ledger.writer import Writer, WriterLimits
from app.protocol import ShortcutProtocol
from tests.http.conftest import SECRET, Receiver, Start
from tests.http.wire import Wire, wire

BODY = b'{"event":"product.updated","data":{"id":1001,"name":"Hoodie"}}'
"""Without a time: sent again it is a second change, and is answered as the first one was."""

MOST = 300
"""Bytes of a body, in these tests."""


class Watched:
    """What the server did: connections that began a request, and how many callbacks went the long way."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[ShortcutProtocol] = asyncio.Queue()
        self.went_the_long_way = 0


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    begin_request, receive_callback = ShortcutProtocol.begin_request, router.receive_callback

    def begin(self: ShortcutProtocol) -> None:
        begin_request(self)
        watched.begun.put_nowait(self)

    async def receive(*args: Any) -> Receipt:
        watched.went_the_long_way += 1
        return await receive_callback(*args)

    monkeypatch.setattr(ShortcutProtocol, "begin_request", begin)
    monkeypatch.setattr(router, "receive_callback", receive)
    return watched


@pytest.fixture
async def receiver(start: Start) -> AsyncIterator[Receiver]:
    async with start(max_body_bytes=MOST) as receiver:
        yield receiver


def a_head(
    *headers: str, size: int | None = len(BODY), line: str = "POST /callbacks/products HTTP/1.1", secret: str = SECRET
) -> bytes:
    length = [] if size is None else [f"Content-Length: {size}"]
    return "\r\n".join([line, "Host: here", f"X-Secret: {secret}", *length, *headers, "", ""]).encode()


def in_chunks(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n3\r\n%b\r\n0\r\n\r\n" % (len(body) - 3, body[:-3], body[-3:])


USUAL = {
    "as usual": (a_head(), BODY),
    "with a slash at the end": (a_head(line="POST /callbacks/products/ HTTP/1.1"), BODY),
    "no JSON": (a_head(size=7), b"no JSON"),
    "nothing": (a_head(size=0), b""),
    "in chunks": (a_head("Transfer-Encoding: chunked", size=None), in_chunks(BODY)),
    "the last on its connection": (a_head("Connection: close"), BODY),
    "HTTP/1.0": (a_head(line="POST /callbacks/products HTTP/1.0"), BODY),
    "with an id": (a_head("X-Request-ID: call-17"), BODY),
    "with an id that is none": (a_head("X-Request-ID: call 17"), BODY),
    "by way of a proxy": (a_head("X-Forwarded-For: 203.0.113.9, 127.0.0.1", "X-Forwarded-Proto: https"), BODY),
    "by way of several": (a_head("X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 198.51.100.4:4711"), BODY),
    "by way of a silent one": (a_head("X-Forwarded-For:"), BODY),
    "with its trace": (a_head("traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), BODY),
    "with bytes in a header": (a_head("X-Name: Caf\xe9"), BODY),
}
UNUSUAL = {
    "by a stranger": (a_head(secret="guessed-guessed-guessed-guessed"), BODY),
    "to an unknown collection": (a_head(line="POST /callbacks/orders HTTP/1.1"), BODY),
    "to a type without a secret": (a_head(line="POST /callbacks/brands HTTP/1.1"), BODY),
    "with a query": (a_head(line="POST /callbacks/products?a=b HTTP/1.1"), BODY),
    "no POST": (a_head(line="PUT /callbacks/products HTTP/1.1"), BODY),
    "too large": (a_head(size=MOST + 1), b"x" * (MOST + 1)),
}


async def answered(connection: Wire) -> tuple[object, ...]:
    """An answer without what differs from one to the next: its time, the ids that were made for it."""
    answer = await connection.answer()
    assert answer is not None
    status, headers, body = answer
    headers.pop("date")
    if len(headers["x-request-id"]) == 16:
        headers["x-request-id"] = "made up"
    told = json.loads(body)
    return status, headers, {name: value is None if name.endswith("_id") else value for name, value in told.items()}


async def kept(receiver: Receiver) -> list[dict[str, Any]]:
    """The deliveries, in the order in which they came, without what is each one's own."""
    rows = await receiver.sql.fetch(
        "SELECT d.*, e.data FROM deliveries d LEFT JOIN events e ON e.sequence = d.event_sequence ORDER BY d.received_at"
    )
    return [
        {name: value for name, value in row.items() if name not in {"id", "received_at", "event_sequence"}}
        for row in rows
    ]


async def both_ways(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch, head: bytes, body: bytes
) -> int:
    """Send it in one piece and in two, and compare the answers. Returns how many took the shortcut."""
    async with wire(receiver.http) as connection:
        await connection.send(head + body)
        whole = await answered(connection)
    short = 1 - watched.went_the_long_way
    monkeypatch.setattr(protocol, "LONGEST_HELD_BACK", 0)
    watched.went_the_long_way = 0
    async with wire(receiver.http) as connection:
        await connection.send(head)
        while not watched.went_the_long_way and body:
            await asyncio.sleep(0)
        await connection.send(body)
        assert await answered(connection) == whole
    return short


@pytest.mark.parametrize("request_", USUAL.values(), ids=USUAL)
async def test_a_usual_callback_is_kept_and_answered_as_by_the_long_way(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch, request_: tuple[bytes, bytes]
) -> None:
    assert await both_ways(receiver, watched, monkeypatch, *request_) == 1
    by_shortcut, by_long_way = await kept(receiver)
    assert by_shortcut == by_long_way


@pytest.mark.parametrize("request_", UNUSUAL.values(), ids=UNUSUAL)
async def test_what_is_not_usual_goes_the_long_way(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch, request_: tuple[bytes, bytes]
) -> None:
    assert await both_ways(receiver, watched, monkeypatch, *request_) == 0


async def test_who_is_no_proxy_of_ours_cannot_name_another_caller(receiver: Receiver, watched: Watched) -> None:
    async with wire(receiver.http, source="127.0.0.2") as connection:
        await connection.send(a_head("X-Forwarded-For: 203.0.113.9") + BODY)
        await answered(connection)
    assert [row["client"] for row in await kept(receiver)] == ["127.0.0.2"]
    assert watched.went_the_long_way == 0


async def test_who_asks_before_it_sends_its_body_is_told_to_go_on(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LONGEST_HELD_BACK", 20)
    async with wire(receiver.http) as connection:
        await connection.send(a_head("Expect: 100-continue"))
        answer = await connection.answer()
        assert answer is not None
        assert answer[0] == 100
        await connection.send(BODY)
        answer = await connection.answer()
    assert answer is not None
    assert answer[0] == 200
    assert watched.went_the_long_way == 1


async def test_who_does_not_read_its_answers_gets_no_more_of_them(receiver: Receiver, watched: Watched) -> None:
    async with wire(receiver.http) as connection:
        await connection.send(a_head() + BODY)
        await answered(connection)
        server = await watched.begun.get()
        server.pause_writing()
        await connection.send(a_head() + BODY)
        while await receiver.counts() != (2, 2):
            await asyncio.sleep(0.005)
        assert watched.went_the_long_way == 1  # which waits
        server.resume_writing()
        await answered(connection)


async def test_of_who_goes_away_in_the_middle_nothing_is_left(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(protocol, "LONGEST_HELD_BACK", 0.05)
    async with wire(receiver.http) as connection:
        await connection.send((a_head() + BODY)[:-1])
        server = await watched.begun.get()
    while not server.transport.is_closing():
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)  # longer than it would have been held back
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []
    assert watched.went_the_long_way == 0


async def test_who_cannot_be_committed_is_told_so_as_by_the_long_way(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(_self: Writer, _entry: Entry) -> asyncio.Future[Receipt]:
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        future.set_exception(DatabaseUnavailableError("Postgres did not commit", retry_after=10))
        return future

    async def counted() -> int:
        lines = (await receiver.http.get("/metrics")).text.splitlines()
        counts = [
            line for line in lines if line.startswith("jasper_receiver_callbacks_total{") and "database-unavail" in line
        ]
        return int(sum(float(line.rpartition(" ")[2]) for line in counts))

    monkeypatch.setattr(Writer, "submit", submit)
    before = await counted()
    assert await both_ways(receiver, watched, monkeypatch, a_head(), BODY) == 1
    assert await counted() == before + 2
    async with wire(receiver.http) as connection:
        await connection.send(a_head() + BODY)
        answer = await connection.answer()
    assert answer is not None
    assert (answer[0], answer[1]["retry-after"]) == (503, "10")
    assert (await watched.begun.get()).app_state["intake"].room.held == 0


@pytest.mark.parametrize("full", ["room", "queue"])
async def test_who_finds_no_room_is_put_off_by_the_long_way(
    receiver: Receiver,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    full: str,
) -> None:
    async with wire(receiver.http) as connection:
        await connection.send(a_head() + BODY)
        assert (await answered(connection))[0] == 200
        intake: router.Intake = (await watched.begun.get()).app_state["intake"]
        if full == "room":
            intake.room.take(intake.room.left)
        else:
            monkeypatch.setattr(intake.writer, "_limits", WriterLimits(queue_rows=0))
        await connection.send(a_head() + BODY)
        assert (await answered(connection))[0] == 503
    assert watched.went_the_long_way == 1
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_body_that_follows_its_head_at_once_still_takes_the_shortcut(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LONGEST_HELD_BACK", 20)
    async with wire(receiver.http) as connection:
        for _ in range(2):
            await connection.send(a_head())
            await watched.begun.get()
            await connection.send(BODY[:10])
            await connection.send(BODY[10:])
            answer = await connection.answer()
            assert answer is not None
            assert json.loads(answer[2])["status"] == "accepted"
    assert watched.went_the_long_way == 0


async def test_a_large_body_in_pieces_is_not_held_back(
    start: Start, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LONGEST_HELD_BACK", 20)
    body = json.dumps(
        {"event": "product.updated", "data": {"id": 1001, "name": "x" * 8 * protocol.MOST_HELD_BACK}}
    ).encode()
    async with start() as receiver, wire(receiver.http) as connection:
        await connection.send(a_head(size=len(body)))
        await watched.begun.get()
        await connection.send(body)
        answer = await connection.answer()
    assert answer is not None
    assert json.loads(answer[2])["status"] == "accepted"
    assert watched.went_the_long_way == 1


async def test_a_body_in_many_pieces_is_not_held_back(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may come together: tens of thousands of single bytes, of which each would be looked at with all before it."""
    monkeypatch.setattr(protocol, "LONGEST_HELD_BACK", 20)
    head, pieces = a_head("Transfer-Encoding: chunked", size=None), b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
    async with wire(receiver.http) as connection:
        await connection.send(head + pieces)
        while not watched.went_the_long_way:
            await asyncio.sleep(0.005)
        await connection.send(b"0\r\n\r\n")
        answer = await connection.answer()
    assert answer is not None
    assert json.loads(answer[2])["status"] == "accepted"


async def test_of_a_connection_that_is_gone_nothing_stays_in_memory(receiver: Receiver, watched: Watched) -> None:
    """Its last request, with the secret in it, would else be there until the collector looks, which is seldom."""
    gc.disable()
    try:
        async with wire(receiver.http) as connection:
            await connection.send(a_head() + BODY)
            await answered(connection)
            server = weakref.ref(await watched.begun.get())
            assert server() is not None
        async with asyncio.timeout(10):
            while server() is not None:
                await asyncio.sleep(0.005)
    finally:
        gc.enable()
    assert watched.went_the_long_way == 0


async def test_what_is_committed_while_the_service_ends_is_counted(
    start: Start, watched: Watched, database: str
) -> None:
    other = await connect(database, application_name="test")
    await other.execute("SELECT pg_advisory_lock($1)", Lock.FEED.key)
    async with start() as receiver:
        async with wire(receiver.http) as connection:
            await connection.send(a_head() + BODY)
            server = await watched.begun.get()
        while not server.transport.is_closing():
            await asyncio.sleep(0.005)
        writer: Writer = server.app_state["intake"].writer

        async def let_go() -> None:
            while writer.has_place:
                await asyncio.sleep(0.005)
            await other.execute("SELECT pg_advisory_unlock($1)", Lock.FEED.key)

        letting_go = asyncio.create_task(let_go())
    await letting_go
    assert await other.fetchval("SELECT sum(count) FROM callback_minutes WHERE outcome = 'accepted'") == 1
    await other.close()


async def test_whatever_goes_wrong_after_the_commit_the_caller_is_answered(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    for module in (shortcut, router):
        monkeypatch.setattr(module, "note_receipt", fail)
    assert await both_ways(receiver, watched, monkeypatch, a_head(), BODY) == 1
    assert await receiver.counts() == (2, 2)


async def test_a_sender_that_hangs_up_before_its_answer_has_told_what_it_told(
    receiver: Receiver, watched: Watched, database: str
) -> None:
    other = await connect(database, application_name="test")
    async with other.transaction():
        await other.execute(LOCK)
        async with wire(receiver.http) as connection:
            await connection.send(a_head() + BODY)
            server = await watched.begun.get()
            assert server.app_state["intake"].room.held == len(BODY)
        while not server.transport.is_closing():
            await asyncio.sleep(0.005)
    await other.close()
    async with asyncio.timeout(10):
        while await receiver.counts() != (1, 1):
            await asyncio.sleep(0.005)
        while server.app_state["intake"].room.held:
            await asyncio.sleep(0.005)
    assert watched.went_the_long_way == 0


async def test_what_goes_wrong_on_the_shortcut_is_put_right_by_the_long_way(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Entry:
        raise ZeroDivisionError

    monkeypatch.setattr(shortcut, "read", fail)
    async with wire(receiver.http) as connection:
        await connection.send(a_head() + BODY)
        answer = await connection.answer()
    assert answer is not None
    assert json.loads(answer[2])["status"] == "accepted"
    assert watched.went_the_long_way == 1
    assert [record.levelno for record in caplog.records if record.name == "app.protocol"] == [logging.ERROR]


@pytest.mark.parametrize("sent", [len(a_head()), len(a_head()) + 10])
async def test_who_has_begun_when_the_server_ends_may_come_to_its_end(
    receiver: Receiver, watched: Watched, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    monkeypatch.setattr(protocol, "LONGEST_HELD_BACK", 20)
    async with wire(receiver.http) as connection:
        await connection.send((a_head() + BODY)[:sent])
        (await watched.begun.get()).shutdown()
        await connection.send((a_head() + BODY)[sent:])
        answer = await connection.answer()
        assert await connection.rest() == b""
    assert answer is not None
    assert (answer[0], answer[1]["connection"]) == (200, "close")


async def test_who_waits_for_the_commit_when_the_server_ends_is_answered(
    receiver: Receiver, watched: Watched, database: str
) -> None:
    other = await connect(database, application_name="test")
    async with wire(receiver.http) as connection:
        async with other.transaction():
            await other.execute(LOCK)
            await connection.send(a_head() + BODY)
            (await watched.begun.get()).shutdown()
        answer = await connection.answer()
        assert await connection.rest() == b""
    await other.close()
    assert answer is not None
    assert (answer[0], answer[1]["connection"]) == (200, "close")
    assert watched.went_the_long_way == 0


async def test_requests_of_all_kinds_on_one_connection_are_answered_in_their_order(receiver: Receiver) -> None:
    stranger = a_head(secret="guessed-guessed-guessed-guessed") + BODY
    usual = a_head("X-Request-ID: a-usual-one") + BODY
    health = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"
    async with wire(receiver.http) as connection:
        for together in ([usual, health, usual], [stranger, usual], [usual, stranger], [health, usual], [usual]):
            await connection.send(b"".join(together))
            for request in together:
                answer = await connection.answer()
                assert answer is not None
                assert answer[0] == (401 if request is stranger else 200)
                assert (answer[1]["x-request-id"] == "a-usual-one") == (request is usual)
    assert await receiver.counts() == (6, 6)
