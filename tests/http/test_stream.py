"""`GET /v1/events/stream`: what pages give, as it comes; never a gap, at little cost, and gone when it has to be."""

import asyncio
import json
import random
import re
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from sqlalchemy import text

from app.access.keys import Scope, create_key, revoke_key
from app.clock import utc_now
from app.feed import queries
from app.ledger.writer import Writer
from tests.builders import NOW, an_event, events_of
from tests.conftest import served
from tests.http.conftest import ADMIN_KEY, Reader
from tests.http.sse import EventSource, Message, event_source
from tests.http.writing import a_callback, slow_append

SOON = 10.0
"""Seconds: far above what it takes."""

Set = Callable[..., None]


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Changes the module's times and sizes by name."""

    def change(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setattr(f"app.feed.stream._{name.upper()}", value)

    return change


def sequences(messages: list[Message]) -> list[int]:
    return [int(message.id) for message in messages]


async def ended(source: EventSource) -> list[Message]:
    async with asyncio.timeout(SOON):
        return await source.rest()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until an awaitable condition holds."""
    async with asyncio.timeout(SOON):
        while not await condition():
            await asyncio.sleep(0.02)


async def in_transactions(reader: Reader) -> int:
    """How many connections to the database are in a transaction, this one aside."""
    async with reader.engine.connect() as connection:
        busy: int | None = await connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state <> 'idle' AND pid <> pg_backend_pid()"
            )
        )
    return busy or 0


async def test_a_stream_tells_what_a_page_tells_byte_for_byte(reader: Reader) -> None:
    await an_event(
        reader.engine, data='{ "price":1.10,"big":1e400, "text":"\\u0000\\ud800\\n", "digits":' + "7" * 64 + "}"
    )
    await an_event(reader.engine, entity_type="brand", action="delete", data=None, occurred_at=None, delivery_id=None)
    await an_event(reader.engine, data='"line\u2028separator\u0085and \x0bmore"'.replace("\x0b", "\\u000b"))
    page = await reader.get("/v1/events")
    async with event_source(reader.http) as source:
        messages = await source.take(3)
    assert page.content == b'{"events":[' + b",".join(message.data.encode() for message in messages) + (
        b'],"after":%d,"has_more":false}' % page.json()["after"]
    )
    told = [(int(message.id), message.event) for message in messages]
    assert told == [(event["sequence"], event["type"]) for event in page.json()["events"]]


async def test_an_event_stands_on_one_line_although_its_text_has_several(reader: Reader) -> None:
    """Line ends between the tokens become spaces; whatever stands in a token is left alone."""
    await an_event(reader.engine, data='{\n\t"text":\r\n"a\\r\\nb",\r"price" : 1.10\n}', changes="[\n]")
    async with event_source(reader.http) as source:
        message = await source.next()
    assert '"data":{ \t"text":  "a\\r\\nb", "price" : 1.10 },' in message.data
    assert json.loads(message.data) == (await reader.get("/v1/events")).json()["events"][0]
    assert "\n" not in message.data


async def test_a_stream_is_neither_stored_nor_held_back_on_its_way(reader: Reader) -> None:
    async with event_source(reader.http) as source:
        headers = source.response.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"


async def test_a_stream_begins_with_the_oldest_kept_and_goes_on_with_what_comes(reader: Reader, constants: Set) -> None:
    """What comes is told because of its notification: nobody looks again by themselves here."""
    constants(poll=10_000)
    kept = await events_of(reader.engine, 3)
    async with event_source(reader.http) as source, asyncio.timeout(SOON):
        assert sequences(await source.take(3)) == [row["sequence"] for row in kept]
        for _ in range(3):
            row = await an_event(reader.engine)
            assert int((await source.next()).id) == row["sequence"]
    assert source.ids[0] == 0
    assert source.retry is not None
    assert 1000 <= source.retry <= 3000


async def test_an_event_of_which_nobody_was_notified_is_told_all_the_same(reader: Reader, constants: Set) -> None:
    constants(poll=0.05)
    async with event_source(reader.http) as source, asyncio.timeout(SOON):
        row = await an_event(reader.engine)
        await source.next()
        async with reader.engine.begin() as connection:
            copied = ", ".join(name for name in row if name not in {"sequence", "id"})
            await connection.execute(
                text(f"INSERT INTO events (sequence, id, {copied}) SELECT 100, gen_random_uuid(), {copied} FROM events")  # noqa: S608 - names from the table
            )
        assert int((await source.next()).id) == 100


async def test_a_stream_resumes_after_the_last_event_id_and_else_after_its_parameter(reader: Reader) -> None:
    rows = [row["sequence"] for row in await events_of(reader.engine, 5)]
    async with event_source(reader.http, f"after={rows[1]}") as source:
        assert sequences(await source.take(2)) == rows[2:4]
    async with event_source(reader.http, f"after={rows[1]}", last_event_id=source.last_id) as again:
        assert sequences(await again.take(1)) == rows[4:]
    async with event_source(reader.http, f"after={rows[3]}", last_event_id="0") as from_the_start:
        assert sequences(await from_the_start.take(5)) == rows


async def test_a_position_beyond_the_head_is_waited_for(reader: Reader) -> None:
    await events_of(reader.engine, 2)
    async with event_source(reader.http, "after=50") as source, asyncio.timeout(SOON):
        await an_event(reader.engine, sequence=50)
        await an_event(reader.engine, sequence=51)
        assert int((await source.next()).id) == 51


FILTERS = [
    "",
    "include_stale=true",
    "entity_type=product&entity_type=brand",
    "entity_type=category",
    "entity_id=2",
    "entity_id=2&entity_id=3&entity_type=product&include_stale=true",
    "action=create&action=delete",
    "changed=stock",
    "changed=name&changed=price",
    "since=2026-11-23T11:00:00.250Z",
    "until=2026-11-23T11:00:00.250Z",
    "since=2026-11-23T10:30:00Z&until=2026-11-23T11:30:00Z",
    "entity_id=2&changed=price&action=update",
]


async def a_mixture(reader: Reader) -> None:
    """Events of which each filter above passes some and skips some, the last ones skipped by most."""
    hours = [NOW + timedelta(hours=number) for number in range(3)]
    await an_event(reader.engine, entity_id="1", action="create", received_at=hours[0])
    await an_event(reader.engine, entity_id="2", changed=["price", "stock"], received_at=hours[1])
    await an_event(reader.engine, entity_id="2", changed=["name"], received_at=hours[1])
    await an_event(reader.engine, entity_type="brand", entity_id="2", action="delete", received_at=hours[2])
    await an_event(reader.engine, entity_type="category", entity_id="4", received_at=hours[2])
    await an_event(reader.engine, entity_id="3", stale=True, received_at=hours[0])


@pytest.mark.parametrize("live", [True, False], ids=["as they come", "from what is kept"])
async def test_every_filter_keeps_what_it_keeps_of_pages(reader: Reader, live: bool) -> None:
    """And the position goes past what it skips, so that a reader that comes back does not begin before it."""
    async with AsyncExitStack() as held, asyncio.timeout(60):
        if not live:
            await a_mixture(reader)
        sources = {query: await held.enter_async_context(event_source(reader.http, query)) for query in FILTERS}
        first = {query: asyncio.create_task(source.rest()) for query, source in sources.items()}
        await until(lambda: told(sources))
        if live:
            await a_mixture(reader)
        head = (await reader.get("/v1/events")).json()["after"]
        await until(lambda: told(sources, head))
        reader.app.state.drain()
        streamed = {query: [message.data for message in await task] for query, task in first.items()}
    paged = {}
    for query in FILTERS:
        page = (await reader.get(f"/v1/events?{query}")).json()
        paged[query] = [event["sequence"] for event in page["events"]]
        assert page["after"] == int(sources[query].last_id)
    assert {query: [json.loads(data)["sequence"] for data in found] for query, found in streamed.items()} == paged
    assert all(0 < len(found) < 6 for query, found in paged.items() if query != "include_stale=true")


async def told(sources: dict[str, EventSource], head: int = 0) -> bool:
    """Whether each stream has told a position that is not before `head`."""
    return all(source.ids and source.ids[-1] >= head for source in sources.values())


async def test_silence_is_broken_by_comments(reader: Reader, constants: Set) -> None:
    constants(keep_alive=0.1, poll=0.05)
    async with event_source(reader.http) as source:
        waiting = asyncio.create_task(source.next())

        async def commented() -> bool:
            return source.comments >= 3

        await until(commented)
        row = await an_event(reader.engine)
        assert int((await waiting).id) == row["sequence"]


async def test_open_streams_hold_no_connection_to_the_database(reader: Reader) -> None:
    """More of them than the pool has connections, and a plain reader is served all the same."""
    async with AsyncExitStack() as held, asyncio.timeout(30):
        sources = [await held.enter_async_context(event_source(reader.http)) for _ in range(25)]
        reading = [asyncio.create_task(source.next()) for source in sources]

        async def idle() -> bool:
            return await in_transactions(reader) == 0

        await until(idle)
        row = await an_event(reader.engine)
        assert {int((await message).id) for message in reading} == {row["sequence"]}
        assert len((await reader.get("/v1/events")).json()["events"]) == 1


async def test_streams_at_the_head_share_one_read(
    reader: Reader, constants: Set, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants(poll=10_000)
    reads = 0
    page = queries.page

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await page(*args, **options)

    async with AsyncExitStack() as held, asyncio.timeout(30):
        entities = ["", *(f"entity_id=1001&entity_id={number}" for number in range(19))]
        sources = [await held.enter_async_context(event_source(reader.http, query)) for query in entities]
        reading = [asyncio.create_task(source.next()) for source in sources]
        await asyncio.sleep(0)
        monkeypatch.setattr(queries, "page", counted)
        await an_event(reader.engine)
        await asyncio.gather(*reading)
    assert reads <= 2  # the listening connection may have announced itself meanwhile


@asynccontextmanager
async def paused(reader: Reader) -> AsyncIterator[socket.socket]:
    """A reader that has asked for a stream of 60 megabytes and takes nothing of it."""
    await events_of(reader.engine, 60, data=json.dumps("x" * 1_000_000))
    address = urlsplit(str(reader.http.base_url))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (address.hostname, address.port))
        request = f"GET /v1/events/stream HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\r\n"
        await loop.sock_sendall(connection, request.encode())
        yield connection


async def test_a_reader_that_stops_reading_is_not_read_for(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is asked for no more than fits on the way to the reader; what is left comes when it reads again."""
    pages: list[int] = []
    page = queries.page

    async def counted(*args: Any, **options: Any) -> Any:
        found = await page(*args, **options)
        pages.append(found.after)
        return found

    monkeypatch.setattr(queries, "page", counted)
    async with paused(reader) as connection:
        before = -1
        while before != len(pages):  # quiet for half a second
            before = len(pages)
            await asyncio.sleep(0.5)
        assert 1 <= len(pages) <= 20
        loop, received = asyncio.get_running_loop(), b""
        async with asyncio.timeout(60):
            while b"\nid: 60\n" not in received:
                received = received[-20:] + await loop.sock_recv(connection, 1_000_000)
    assert pages[:60] == list(range(1, 61))


async def test_a_reader_that_takes_nothing_for_longer_than_a_stream_lives_loses_its_place(
    reader: Reader, constants: Set
) -> None:
    constants(most_streams=1, life=(600, 900), patience=-899)  # cut after a second; it would not end itself before
    async with paused(reader):
        await until(lambda: refused(reader, times=0))


async def refused(reader: Reader, *, times: int) -> bool:
    """Whether another stream is refused, this many times of one."""
    async with reader.http.stream("GET", "/v1/events/stream?after=1000") as response:
        return (response.status_code == 503) is bool(times)


async def test_one_stream_too_many_is_told_to_come_again_and_may_when_another_has_hung_up(
    reader: Reader, constants: Set
) -> None:
    constants(most_streams=2)
    async with event_source(reader.http):
        async with event_source(reader.http):
            problem = await reader.problem(503, "/v1/events/stream")
            assert problem["type"] == "/problems/unavailable"
            assert (await reader.http.get("/v1/events/stream")).headers["retry-after"]
        await until(lambda: refused(reader, times=0))


async def test_a_stream_ends_itself_after_a_while_and_its_reader_resumes(reader: Reader, constants: Set) -> None:
    constants(life=(0.1, 0.2), poll=0.05)
    rows = [row["sequence"] for row in await events_of(reader.engine, 2)]
    async with event_source(reader.http) as source:
        assert sequences(await ended(source)) == rows
    row = await an_event(reader.engine)
    async with event_source(reader.http, last_event_id=source.last_id) as source:
        assert sequences(await ended(source)) == [row["sequence"]]


async def test_streams_end_at_once_when_the_process_stops(reader: Reader, constants: Set) -> None:
    constants(poll=10_000)
    async with AsyncExitStack() as held:
        sources = [await held.enter_async_context(event_source(reader.http)) for _ in range(5)]
        reading = [asyncio.create_task(source.rest()) for source in sources]
        await asyncio.sleep(0)
        reader.app.state.drain()
        async with asyncio.timeout(SOON):
            assert await asyncio.gather(*reading) == [[]] * 5


async def test_a_server_with_open_streams_stops_without_waiting_for_its_grace(reader: Reader, constants: Set) -> None:
    constants(poll=10_000)
    begun = time.monotonic()
    async with served(reader.app) as url:
        authorization = {"Authorization": f"Bearer {ADMIN_KEY}"}
        http = httpx.AsyncClient(base_url=url, headers=authorization)
        response = await http.send(http.build_request("GET", "/v1/events/stream"), stream=True)
        assert response.status_code == 200
    assert time.monotonic() - begun < SOON
    await response.aclose()
    await http.aclose()


@asynccontextmanager
async def with_key(reader: Reader, *scopes: Scope) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key of its own, named `streaming`."""
    _, key = await create_key(reader.engine, "streaming", scopes, now=utc_now())
    authorization = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=reader.http.base_url, headers=authorization, timeout=30) as http:
        yield http


async def test_the_streams_of_a_revoked_key_end(reader: Reader, constants: Set) -> None:
    """And those of a valid one go on when it is checked again."""
    constants(key_check=0.0, poll=0.05)
    async with with_key(reader, Scope.READ) as http, event_source(http) as source:
        for _ in range(2):
            row = await an_event(reader.engine)
            assert int((await source.next()).id) == row["sequence"]
        await revoke_key(reader.engine, "streaming", now=utc_now())
        assert await ended(source) == []


async def test_a_stream_needs_a_key_that_may_read(reader: Reader) -> None:
    await reader.problem(401, "/v1/events/stream", headers={"Authorization": ""})
    async with with_key(reader, Scope.WRITE) as http:
        assert (await http.get("/v1/events/stream")).status_code == 403


@pytest.mark.parametrize(
    ("query", "header", "parameter"),
    [
        ("after=-1", None, "after"),
        ("after=1&after=2", None, "after"),
        ("limit=1", None, "limit"),
        ("wait=1", None, "wait"),
        ("action=updated", None, "action.0"),
        ("", "x", "Last-Event-ID"),
        ("", "-1", "Last-Event-ID"),
        ("", "9223372036854775808", "Last-Event-ID"),
        ("", "", "Last-Event-ID"),
    ],
)
async def test_a_wrong_parameter_is_refused_by_name(
    reader: Reader, query: str, header: str | None, parameter: str
) -> None:
    headers = {} if header is None else {"Last-Event-ID": header}
    problem = await reader.problem(400, f"/v1/events/stream?{query}", headers=headers)
    assert [error["parameter"] for error in problem["errors"]] == [parameter]


async def test_a_stream_outlives_its_database(
    reader: Reader, database: str, postgres_server: str, constants: Set
) -> None:
    """While Postgres is away an open stream waits, and a new one is told to come again."""
    constants(poll=0.05, keep_alive=0.1)
    admin = await asyncpg.connect(postgres_server)
    name = re.findall(r"test_\w+", database)[0]
    async with event_source(reader.http) as source:
        first = asyncio.create_task(source.next())
        await admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)

        async def away() -> bool:
            return (await reader.http.get("/v1/events/stream")).status_code == 503

        await until(away)
        comments = source.comments

        async def commented() -> bool:
            return source.comments > comments + 1

        await until(commented)
        await admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        row = await an_event(reader.engine)
        async with asyncio.timeout(30):
            assert int((await first).id) == row["sequence"]
    await admin.close()


async def test_an_event_reaches_its_reader_within_100_ms_of_its_commit(reader: Reader) -> None:
    """At the median."""
    waits = []
    async with event_source(reader.http) as source:
        for _ in range(21):
            await an_event(reader.engine)
            committed = time.perf_counter()
            await source.next()
            waits.append(time.perf_counter() - committed)
    assert statistics.median(waits) < 0.1


async def test_streams_and_pages_agree_event_for_event_however_many_write(
    reader: Reader, database: str, constants: Set, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stays, one that comes back again and again, one with a filter, one that begins in the middle."""
    constants(poll=0.3, page_events=7)
    chance = random.Random(5)
    monkeypatch.setattr("app.ledger.writer.append", slow_append(chance))
    begins = {"": 0, "entity_id=1&entity_id=2": 0, "action=update": 100}
    sources: dict[str, EventSource] = {}
    again: list[str] = []

    async def come_back() -> None:
        position = "0"
        while len(again) < 240:
            async with event_source(reader.http, last_event_id=position) as source:
                for _ in range(min(chance.randrange(1, 9), 240 - len(again))):
                    message = await source.next()
                    again.append(message.data)
                    position = message.id

    async def write(writer: Writer, task: int) -> None:
        for number in range(10):
            await asyncio.sleep(chance.random() * 0.03)
            await writer.commit(a_callback(task * 10 + number))

    async with asyncio.timeout(60), AsyncExitStack() as held:
        for query, begin in begins.items():
            opened = event_source(reader.http, f"{query}&after={begin}".lstrip("&"))
            sources[query] = await held.enter_async_context(opened)
        reading = {query: asyncio.create_task(source.rest()) for query, source in sources.items()}
        async with Writer(database) as one, Writer(database) as other, asyncio.TaskGroup() as group:
            group.create_task(come_back())
            for task in range(24):
                group.create_task(write((one, other)[task % 2], task))
        head = (await reader.get("/v1/events?limit=1000")).json()["after"]
        await until(lambda: told(sources, head))
        reader.app.state.drain()
        seen = {query: [message.data for message in await task] for query, task in reading.items()}
    for query, begin in begins.items():
        page = await reader.get(f"/v1/events?limit=1000&after={begin}&{query}".rstrip("&"))
        whole = page.content.partition(b"[")[2].rpartition(b"]")[0].decode()
        assert ",".join(seen[query]) == whole, query
    assert again == seen[""]
    assert len(again) == 240
