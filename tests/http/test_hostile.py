"""Hostile callers over real sockets: whatever comes, the service answers in its own words or not at all, and goes on.

What an authentic sender sends is kept as it came, however it is put on the wire.
"""

import asyncio
import gzip
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from urllib.parse import quote

import pytest

from app import protocol, serving
from app.intake import body as intake_body
from tests.builders import an_event
from tests.http.conftest import ADMIN_KEY, SECRET, Reader, Receiver, Start
from tests.http.wire import Wire, wire

BODY = b'{"event":"product.updated","data":{"id":1001,"name":"Hoodie"}}'
POST = f"POST /callbacks/products HTTP/1.1\r\nHost: here\r\nX-Secret: {SECRET}\r\n".encode()
GET = f"GET /v1/products/1001 HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {ADMIN_KEY}\r\n".encode()
END = b"Connection: close\r\n\r\n"


async def still_serves(receiver: Receiver) -> None:
    """The service answers and takes callbacks as if nothing had been."""
    assert (await receiver.http.get("/healthz")).status_code == 200
    receipt = (await receiver.callback({"id": 4711, "name": "the next one"})).json()
    assert receipt["status"] == "accepted"


def _head(line: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([line, b"Host: here", *headers, b"Connection: close", b"", b""])


def _post(*headers: bytes, body: bytes = b"") -> bytes:
    return POST + b"".join(header + b"\r\n" for header in headers) + END + body


NO_HTTP = {400}
SHAPES: dict[str, tuple[bytes, set[int]]] = {
    # No HTTP at all
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500, NO_HTTP),
    "NUL bytes": (b"\0" * 5_000, NO_HTTP),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", NO_HTTP),
    "SSH": (b"SSH-2.0-OpenSSH_9.9\r\n", NO_HTTP),
    "a version from the future": (_head(b"GET /healthz HTTP/9.9"), NO_HTTP),
    "an unknown method": (_head(b"BREW /callbacks/products HTTP/1.1"), NO_HTTP),
    "a lower-case method": (_head(b"get /healthz HTTP/1.1"), NO_HTTP),
    "TRACE": (_head(b"TRACE /callbacks/products HTTP/1.1", b"X-Secret: x"), {405}),
    # Targets
    "absolute form": (_head(b"GET http://evil.example/healthz HTTP/1.1"), {200}),
    "absolute form with a user": (_head(b"GET http://a:b@evil.example:1/v1/events HTTP/1.1"), {401}),
    "CONNECT": (_head(b"CONNECT evil.example:443 HTTP/1.1"), NO_HTTP | {404}),
    "CONNECT to a path": (_head(b"CONNECT /v1/events HTTP/1.1"), {405}),
    "OPTIONS *": (_head(b"OPTIONS * HTTP/1.1"), NO_HTTP | {404}),
    "dots": (_head(b"GET /v1/../healthz HTTP/1.1"), {404}),
    "escaped dots": (_head(b"GET /v1/%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), {404}),
    "dots at the assets of the docs": (_head(b"GET /static-offline-docs/..%2f..%2f..%2fetc/passwd HTTP/1.1"), {404}),
    "dots in a collection": (_head(b"POST /callbacks/products/.. HTTP/1.1"), {404}),
    "an escaped slash": (_head(b"POST /callbacks%2fproducts HTTP/1.1"), {404, 401}),
    "two slashes": (_head(b"GET //healthz HTTP/1.1"), {404}),
    "a backslash": (_head(b"GET /v1\\events HTTP/1.1"), {404}),
    "an escaped NUL": (_head(b"GET /v1/products/%00 HTTP/1.1"), {401}),
    "an escaped NUL at the end": (_head(b"GET /healthz%00 HTTP/1.1"), {404}),
    "overlong UTF-8": (_head(b"GET /%c0%ae%c0%ae/%c0%af HTTP/1.1"), {404}),
    "a line feed in the path": (_head(b"GET /v1/products/a%0d%0aSet-Cookie:%20a=b HTTP/1.1"), {401}),
    "broken escapes": (_head(b"GET /v1/products/%zz%1 HTTP/1.1"), {401}),
    "bytes beyond ASCII": (_head(b"GET /v1/products/\xc3\xa9\xff HTTP/1.1"), NO_HTTP | {401}),
    "a fragment": (_head(b"GET /healthz#x HTTP/1.1"), NO_HTTP | {200}),
    "a space": (_head(b"GET /health z HTTP/1.1"), NO_HTTP),
    "a long path": (_head(b"GET /v1/products/" + b"x" * 60_000 + b" HTTP/1.1"), {401}),
    "a path too long": (_head(b"GET /" + b"x" * 100_000 + b" HTTP/1.1"), NO_HTTP),
    "a long query": (_head(b"GET /v1/events?" + b"a=b&" * 15_000 + b" HTTP/1.1"), {401}),
    # Headers
    "no host": (b"GET /healthz HTTP/1.1\r\n" + END, {200}),
    "many headers": (_head(b"GET /healthz HTTP/1.1", *[b"a: b"] * 10_000), {200}),
    "too many headers": (_head(b"GET /healthz HTTP/1.1", *[b"a: b"] * 200_000), NO_HTTP),
    "a huge header": (_head(b"GET /healthz HTTP/1.1", b"a: " + b"b" * 5_000_000), NO_HTTP),
    "a huge name": (_head(b"GET /healthz HTTP/1.1", b"a" * 5_000_000 + b": b"), NO_HTTP),
    "a header without a colon": (_head(b"GET /healthz HTTP/1.1", b"nothing"), NO_HTTP),
    "a space before the colon": (_head(b"GET /healthz HTTP/1.1", b"Content-Length : 5"), NO_HTTP),
    "a folded header": (_head(b"GET /healthz HTTP/1.1", b"a: b", b"  c"), NO_HTTP),
    "NUL in a header": (_head(b"GET /healthz HTTP/1.1", b"a: b\0c"), NO_HTTP),
    "a bare line feed": (b"GET /healthz HTTP/1.1\nHost: here\n\n", NO_HTTP),
    "websocket": (
        _head(b"GET /v1/events HTTP/1.1", b"Upgrade: websocket", b"Sec-WebSocket-Key: x", b"Connection: Upgrade"),
        {401},
    ),
    "h2c": (
        _head(b"GET /healthz HTTP/1.1", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", b"Connection: Upgrade"),
        {200},
    ),
    "h2c with a body, of which the parser would keep nothing": (
        POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        NO_HTTP,
    ),
    # Lengths that two servers may read in two ways
    "length and chunks": (_post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nGET "), NO_HTTP),
    "chunks and length": (_post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"0\r\n\r\nGET "), NO_HTTP),
    "two lengths": (_post(b"Content-Length: 5", b"Content-Length: 6", body=b"12345"), NO_HTTP),
    "a length with a sign": (_post(b"Content-Length: +5", body=b"12345"), NO_HTTP),
    "a negative length": (_post(b"Content-Length: -5"), NO_HTTP),
    "a hexadecimal length": (_post(b"Content-Length: 0x5", body=b"12345"), NO_HTTP),
    "a list of lengths": (_post(b"Content-Length: 5, 5", body=b"12345"), NO_HTTP),
    "an endless length": (_post(b"Content-Length: " + b"9" * 50), NO_HTTP),
    "a length over the limit": (_post(b"Content-Length: 99999999999"), {413}),
    "an unknown transfer coding": (_post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), NO_HTTP),
    "chunked and then something else": (_post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), NO_HTTP),
    "a compressed transfer": (_post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), {200}),
    "a negative chunk": (_post(b"Transfer-Encoding: chunked", body=b"-1\r\n\r\n"), NO_HTTP),
    "an endless chunk size": (_post(b"Transfer-Encoding: chunked", body=b"f" * 40 + b"\r\n"), NO_HTTP),
    "the secret behind the body": (
        _head(b"POST /callbacks/products HTTP/1.1", b"Transfer-Encoding: chunked")
        + b"%x\r\n%b\r\n0\r\nX-Secret: %b\r\n\r\n" % (len(BODY), BODY, SECRET.encode()),
        {401},
    ),
    "a chunk that lies": (_post(b"Transfer-Encoding: chunked", body=b"3\r\n12345\r\n0\r\n\r\n"), NO_HTTP),
}


def _check_words(status: int, headers: dict[str, str], body: bytes) -> None:
    """What holds for every answer."""
    assert status < 500 or status == 503
    for word in (b"Traceback", b'File "', b"app/", b"site-packages", SECRET.encode()):
        assert word not in body
    if status >= 400 and status not in NO_HTTP:  # 400 is the server's own, for what is no HTTP
        assert headers["content-type"] == "application/problem+json"
        problem = json.loads(body)
        assert problem["status"] == status
        assert not set(problem["instance"]) & set(' "\r\n\0')


async def test_whatever_comes_is_answered_in_our_words_and_the_service_goes_on(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {}
    for name, (data, statuses) in SHAPES.items():
        async with wire(receiver.http) as connection:
            await connection.send(data)
            answer = await connection.answer()
        # Who is still sending what nobody reads may find the connection gone before it reads the answer.
        if answer is None and (statuses != NO_HTTP or len(data) < 100_000):
            wrong[name] = "no answer"
        elif answer is not None:
            _check_words(*answer)
            if answer[0] not in statuses:
                wrong[name] = str(answer)
        assert (await receiver.http.get("/healthz")).status_code == 200
    assert wrong == {}
    assert "Exception in ASGI application" not in caplog.text
    assert await receiver.counts() == (1, 0)  # the compressed transfer, kept as it is and not read
    await still_serves(receiver)


# What an authentic sender may do on the wire


def _chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\n" + END + _chunked(*(bytes([byte]) for byte in BODY)),
            id="tiny chunks",
        ),
        pytest.param(
            POST
            + b"Transfer-Encoding: chunked\r\n"
            + END
            + b"%x;ext=%b\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(BODY), b"x" * 9_000, BODY),
            id="extensions and trailers",
        ),
        pytest.param(POST.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, id="HTTP/1.0"),
        pytest.param(
            POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n" % len(BODY) + END + BODY, id="expects nothing"
        ),
        pytest.param(b"\r\n\r\n" + POST + b"Content-Length: %d\r\n" % len(BODY) + END + BODY, id="empty lines first"),
        pytest.param(
            POST + b"a: b\r\n" * 5_000 + b"Content-Length: %d\r\n" % len(BODY) + END + BODY, id="many headers"
        ),
    ],
)
@pytest.mark.parametrize("piece", [1, 100_000])
async def test_a_callback_is_kept_as_it_came_however_it_is_put_on_the_wire(
    receiver: Receiver, request_: bytes, piece: int
) -> None:
    async with wire(receiver.http) as connection:
        for start in range(0, len(request_), piece if len(request_) < 5_000 else 5_000):
            await connection.send(request_[start : start + (piece if len(request_) < 5_000 else 5_000)])
        answer = await connection.answer()
        if answer is not None and answer[0] == 100:
            answer = await connection.answer()
    assert answer is not None
    assert json.loads(answer[2])["status"] == "accepted"
    [delivery] = (await receiver.http.get("/v1/deliveries")).json()["deliveries"]
    shown = (await receiver.http.get(f"/v1/deliveries/{delivery['id']}")).json()
    assert shown["body"] == BODY.decode()


async def test_pipelined_callbacks_are_all_kept_and_answered_in_their_order(receiver: Receiver) -> None:
    bodies = [b'{"id":%d,"name":"x"}' % number for number in range(50)]
    async with wire(receiver.http) as connection:
        await connection.send(b"".join(POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies))
        answers = [await connection.answer() for _ in bodies]
    events = [json.loads(answer[2])["event_id"] for answer in answers if answer is not None]
    feed = (await receiver.http.get("/v1/events")).json()["events"]
    assert [event["id"] for event in feed] == events
    assert [event["entity_id"] for event in feed] == [str(number) for number in range(50)]


async def test_a_length_that_is_too_short_makes_no_second_callback(receiver: Receiver) -> None:
    """What is left over is no request."""
    async with wire(receiver.http) as connection:
        await connection.send(POST + b"Content-Length: 10\r\n\r\n" + BODY[:10])
        first = await connection.answer()
        await connection.send(BODY[10:])
        second = await connection.answer()
    assert first is not None
    assert json.loads(first[2])["status"] == "quarantined"
    assert second is not None
    assert second[0] == 400
    assert await receiver.sql.fetchval("SELECT body FROM deliveries") == BODY[:10]


async def test_who_is_told_of_its_commit_is_not_told_of_what_follows(receiver: Receiver) -> None:
    """It came together with what is no HTTP. Told of that alone, Jasper would send again what was committed."""
    async with wire(receiver.http) as connection:
        await connection.send(POST + b"Content-Length: %d\r\n\r\n%b}}\r\n\r\n" % (len(BODY), BODY))
        answer = await connection.answer()
        assert await connection.rest() == b""
    assert answer is not None
    assert (answer[0], answer[1]["connection"]) == (200, "close")
    assert json.loads(answer[2])["status"] == "accepted"
    assert await receiver.counts() == (1, 1)


async def test_a_body_that_ends_before_its_length_is_not_kept(receiver: Receiver) -> None:
    async with wire(receiver.http) as connection:
        await connection.send(POST + b"Content-Length: 5000\r\n\r\n" + BODY)
    await still_serves(receiver)
    assert await receiver.counts() == (1, 1)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip"])
async def test_a_compressed_body_is_never_unpacked(receiver: Receiver, coding: str) -> None:
    """It is kept as the bytes it is: 100 MB of nothing stay 100 KB."""
    bomb = gzip.compress(b"\0" * 100_000_000, 1)
    refused = await receiver.callback(bomb, x_other="x", content_encoding=coding)
    assert refused.status_code == 401
    receipt = (await receiver.callback(bomb, x_secret=SECRET, content_encoding=coding)).json()
    assert receipt["status"] == "quarantined"
    assert await receiver.sql.fetchval("SELECT body FROM deliveries") == bomb


# Names and values that mean something elsewhere

TRAPS = {
    "right to left": "\u202e1001\u202c",
    "invisible": "10\u200b01",
    "joined": "\u200d1001\ufe0f",
    "a mark": "\ufeff1001",
    "composed": "caf\u00e9",
    "decomposed": "cafe\u0301",
    "Turkish": "\u0130I\u0131i",
    "Cyrillic": "\u0430\u0440\u0440\u04cf\u0435",
    "a skull": "\U0001f480",
    "tags": "\U000e0041\U000e007f",
    "no character": "\uffff\U0010ffff",
    "white space": " \t10\u00a001\u2028 ",
    "a line": "a\r\nSet-Cookie: a=b",
    "a path": "../../etc/passwd",
    "slashes": "a/b//c/",
    "escapes": "%2e%2e%2f%00%ff",
    "an address": "?x=1#y;z&after=2",
    "SQL": "1'; DROP TABLE events; --",
    "more SQL": '" OR 1=1 OR "',
    "a pattern": "%_\\%",
    "a null": "null",
    "markup": "<script>alert(1)</script>",
    "a template": "{{7*7}}${7*7}%{7*7}",
    "the longest": "\u00e9" * 256,
    "a route": "events",
}


async def test_ids_and_names_are_plain_text_and_come_back_as_they_were(receiver: Receiver) -> None:
    for text in TRAPS.values():
        entity = {"id": text, "name": text, text: {"note": text}}
        for action in ("created", "updated"):
            entity["price"] = action
            receipt = await receiver.callback({"event": f"product.{action}", "product": entity})
            assert receipt.json()["status"] == "accepted", text

        address = f"/v1/products/{quote(text, safe='')}"
        found = (await receiver.http.get(address)).json()
        assert (found["entity_id"], found["data"], found["version"]) == (text, entity, 2)
        for path, parameters in [(f"{address}/events", {}), ("/v1/events", {"entity_id": text})]:
            events = (await receiver.http.get(path, params=parameters)).json()["events"]
            assert [event["entity_id"] for event in events] == [text, text]

    everything = (await receiver.http.get("/v1/products")).json()["items"]
    ids = [item["entity_id"] for item in everything]
    assert sorted(ids) == sorted(TRAPS.values())
    one_by_one, after = [], ""
    while page := (
        await receiver.http.get("/v1/products", params={"limit": 1, "after": after} if after else {"limit": 1})
    ).json():
        one_by_one += [item["entity_id"] for item in page["items"]]
        if (after := page["after"]) is None:
            break
    assert one_by_one == ids


async def test_filters_are_plain_text_and_never_a_command(reader: Reader) -> None:
    await an_event(reader.engine)
    for text in TRAPS.values():
        for parameter in ("entity_id", "changed"):
            assert (await reader.get("/v1/events", {parameter: text})).json()["events"] == []
        for parameter in ("entity_type", "action", "since", "until", "after", "limit", "wait", "include_stale"):
            problem = await reader.problem(400, "/v1/events", params={parameter: text})
            assert problem["errors"][0]["parameter"].startswith(parameter)
    assert len((await reader.get("/v1/events")).json()["events"]) == 1


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00.000001Z", "9999-12-31T23:59:59.999998Z"])
async def test_the_ends_of_time_come_back_as_they_were(receiver: Receiver, time: str) -> None:
    for action in ("created", "updated"):
        payload = {"event": f"product.{action}", "timestamp": time, "data": {"id": 1, "name": action}}
        assert (await receiver.callback(payload)).json()["status"] == "accepted"
    for event in (await receiver.http.get("/v1/events")).json()["events"]:
        assert event["occurred_at"] == time
    assert (await receiver.http.get("/v1/products/1")).json()["source_updated_at"] == time


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
async def test_the_first_and_the_last_moment_there_is_are_no_times(receiver: Receiver, time: str) -> None:
    """Many systems write them for "none", and Postgres would take them for infinity."""
    for number in range(2):
        payload = {"event": "product.updated", "timestamp": time, "data": {"id": 1, "name": number}}
        assert (await receiver.callback(payload)).json()["status"] == "accepted"
    events = (await receiver.http.get("/v1/events")).json()["events"]
    assert [event["occurred_at"] for event in events] == [None, None]


# Slow callers

Bound = Callable[[str, float], None]


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Bound:
    """Sets one of the times that connections have."""
    return lambda name, seconds: monkeypatch.setattr(protocol, name, seconds)


async def drip(connection: Wire, data: bytes, pause: float = 0.02, *, whole: bool = False) -> None:
    """Send the bytes for ever, each by itself or all of them together; nothing where there is nothing to send."""
    while data:
        for piece in [data] if whole else [bytes([byte]) for byte in data]:
            await connection.send(piece)
            await asyncio.sleep(pause)


@pytest.mark.parametrize("line", [b"", b"\r\n", b"a: b\r\n"], ids=["silence", "empty lines", "headers"])
async def test_a_head_that_does_not_end_is_cut_off(reader: Reader, bound: Bound, line: bytes) -> None:
    """Also on a connection that has served a request before, and however often a little of it comes."""
    bound("SLOWEST_HEAD", 0.5)
    async with wire(reader.http) as connection:
        if line:
            await connection.send(GET + b"\r\n")
            assert await connection.answer() is not None
            await connection.send(b"GET / HTTP/1.1\r\n" if line.strip() else b"")
        dripping = asyncio.create_task(drip(connection, line))
        assert await connection.rest() == b""
        dripping.cancel()


async def test_a_head_that_begins_behind_another_request_has_as_little_time(reader: Reader, bound: Bound) -> None:
    bound("SLOWEST_HEAD", 1.5)
    async with wire(reader.http) as connection:
        await connection.send(GET + b"\r\nGET / HTTP/1.1\r\n")
        assert await connection.answer() is not None
        assert await connection.rest() == b""


@pytest.mark.parametrize("path", [b"/nowhere", b"/callbacks/products"])
@pytest.mark.parametrize(
    ("begin", "piece"),
    [(b"1;", b"x" * 1_000), (b"1\r\nx\r\n0\r\na: ", b"x" * 1_000), (b"1\r\nx\r\n0\r\n", b"a: b\r\n" * 200)],
    ids=["extension", "trailer", "trailers"],
)
async def test_what_stands_around_a_body_cannot_go_on_for_ever(
    receiver: Receiver, bound: Bound, path: bytes, begin: bytes, piece: bytes
) -> None:
    """Nobody reads it, and so nobody holds it up."""
    bound("SLOWEST_BODY", 3_600)
    bound("LARGEST_HEAD", 4_096)
    async with wire(receiver.http) as connection:
        await connection.send(b"POST %b HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n" % path + begin)
        dripping = asyncio.create_task(drip(connection, piece, pause=0, whole=True))
        await connection.rest()
        dripping.cancel()


async def test_who_was_answered_before_its_body_had_ended_cannot_stay_for_ever(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "KEEP_ALIVE", 0.2)
    async with start() as receiver, wire(receiver.http) as connection:
        await connection.send(b"POST /nowhere HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n\r\n")
        assert await connection.answer() is not None
        await connection.send(b"12345")
        assert await connection.rest() == b""


async def test_a_waiting_reader_is_not_taken_for_a_slow_sender(reader: Reader, bound: Bound) -> None:
    for name in ("SLOWEST_HEAD", "SLOWEST_BODY", "SLOWEST_READER"):
        bound(name, 0.3)
    async with wire(reader.http) as connection:
        for _ in range(2):
            await connection.send(GET.replace(b"/v1/products/1001", b"/v1/events?wait=1") + b"\r\n")
            answer = await connection.answer()
            assert answer is not None
            assert answer[0] == 200


async def test_a_body_that_does_not_end_is_408_where_someone_reads_it(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert intake_body.SLOWEST_BODY < protocol.SLOWEST_BODY
    monkeypatch.setitem(intake_body.read_body.__kwdefaults__ or {}, "patience", 0.3)
    async with wire(receiver.http) as connection:
        await connection.send(POST + b"Content-Length: 5000\r\n\r\n")
        dripping = asyncio.create_task(drip(connection, b"x"))
        answer = await connection.answer()
        assert await connection.rest() == b""
        dripping.cancel()
    assert answer is not None
    _check_words(*answer)
    assert answer[0] == 408
    await still_serves(receiver)


@pytest.mark.parametrize("path", [b"/nowhere", b"/callbacks/nothing", b"/callbacks/products"])
async def test_a_body_that_nobody_reads_is_cut_off(receiver: Receiver, bound: Bound, path: bytes) -> None:
    """The answer came long before, so the body would else go on for ever."""
    bound("SLOWEST_BODY", 0.5)
    async with wire(receiver.http) as connection:
        await connection.send(b"POST %b HTTP/1.1\r\nHost: here\r\nContent-Length: 99999999999\r\n\r\n" % path)
        answer = await connection.answer()
        dripping = asyncio.create_task(drip(connection, b"x" * 1_000))
        assert await connection.rest() == b""
        dripping.cancel()
    assert answer is not None
    _check_words(*answer)
    assert answer[0] in {404, 413}


async def test_a_peer_that_takes_nothing_is_cut_off(reader: Reader, bound: Bound) -> None:
    bound("SLOWEST_READER", 0.5)
    for _ in range(3):
        await an_event(reader.engine, data='"' + "x" * 5_000_000 + '"')
    async with wire(reader.http, receive_buffer=4_096) as connection:
        await connection.send(GET.replace(b"/v1/products/1001", b"/v1/events") + b"\r\n")
        await asyncio.sleep(2)
        assert len(await connection.rest()) < 15_000_000
    assert len((await reader.get("/v1/events")).content) > 15_000_000


async def test_many_slow_connections_hold_nobody_up(receiver: Receiver) -> None:
    async with AsyncExitStack() as held:
        for number in range(200):
            connection = await held.enter_async_context(wire(receiver.http))
            await connection.send([b"POST /callb", POST, POST + b"Content-Length: 5000000\r\n\r\n{"][number % 3])
        async with asyncio.timeout(5):
            await still_serves(receiver)
