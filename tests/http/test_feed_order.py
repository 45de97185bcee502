"""The order of the feed under many writers: readers of every kind see each event once, in the order of its number.

The same checker is put to a scheme that draws numbers freely, and must tell what its readers lost.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import connect
from app.db.tables import event_sequence, events
from app.domain.values import Delivery, EntityType, Entry
from app.jasper.reading import interpret
from app.ledger.writer import Writer
from tests.builders import event_row
from tests.http.conftest import Reader

WRITERS = 3
TASKS = 36
EVENTS_EACH = 10

Seen = list[tuple[int, str]]

_DAWDLE = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(0.03 * random()); RETURN NULL; END'
"""
_DAWDLE_OVER_EVENTS = "CREATE TRIGGER dawdle AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION dawdle()"


@dataclass(frozen=True)
class Violations:
    """What a reader was not given, was given twice or more, and was given behind a later one."""

    lost: list[tuple[int, str]] = field(default_factory=list)
    repeated: list[tuple[int, str]] = field(default_factory=list)
    out_of_order: list[tuple[int, str]] = field(default_factory=list)


def check(seen: Seen, feed: Seen) -> Violations:
    """Compares what one reader was given, in the order it was given it, with the whole feed, read when all was over."""
    return Violations(
        lost=sorted(set(feed) - set(seen)),
        repeated=sorted({one for one in seen if seen.count(one) > 1}),
        out_of_order=[later for earlier, later in pairwise(seen) if later[0] < earlier[0]],
    )


def test_the_checker_tells_each_kind_of_violation() -> None:
    feed = [(1, "a"), (2, "b"), (3, "c")]
    assert check(feed, feed) == Violations()
    assert check([(1, "a"), (3, "c")], feed) == Violations(lost=[(2, "b")])
    assert check([(1, "a"), (2, "b"), (2, "b"), (3, "c")], feed) == Violations(repeated=[(2, "b")])
    assert check([(1, "a"), (3, "c"), (2, "b")], feed) == Violations(out_of_order=[(2, "b")])
    assert check([(1, "a"), (2, "x"), (3, "c")], feed).lost == [(2, "b")]


class Following:
    """One reader of each kind, over real HTTP, from the first event until `stop` and the end of the feed."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.stopped = False
        self.seen: dict[str, Seen] = {}

    async def by_page(self) -> None:
        """Asks again and again, in small pages."""
        await self._follow("page", limit=7, wait=0)

    async def by_long_poll(self) -> None:
        """Waits for the next event to come."""
        await self._follow("long poll", limit=1000, wait=0.2)

    async def _follow(self, kind: str, *, limit: int, wait: float) -> None:
        seen = self.seen.setdefault(kind, [])
        after = 0
        while True:
            last_round = self.stopped
            answer = await self.reader.get("/v1/events", {"after": after, "limit": limit, "wait": wait})
            page = answer.json()
            seen += [(event["sequence"], event["id"]) for event in page["events"]]
            after = page["after"]
            if last_round and not page["has_more"]:
                return

    async def by_consumer(self, name: str, *, lease: int | None = None) -> None:
        """Reads the page behind the position that the service keeps, and acknowledges it."""
        seen = self.seen.setdefault(name, [])
        assert (await self.reader.http.put(f"/v1/consumers/{name}")).is_success
        asked = {"limit": 9, "wait": 0.05} | ({} if lease is None else {"lease": lease})
        while True:
            last_round = self.stopped
            answer = await self.reader.http.get(f"/v1/consumers/{name}/events", params=asked)
            if answer.status_code == 409 and lease is not None:
                continue
            assert answer.status_code == 200, answer.text
            page = answer.json()
            if lease is None or page["lease_id"]:
                seen += [(event["sequence"], event["id"]) for event in page["events"]]
                ack = {"after": page["after"], "lease_id": page["lease_id"]}
                answer = await self.reader.http.post(f"/v1/consumers/{name}/ack", json=ack)
                assert answer.status_code == 200, answer.text
            if last_round and not page["has_more"]:
                return


@asynccontextmanager
async def following(reader: Reader) -> AsyncIterator[dict[str, Seen]]:
    """Readers of every kind beside the block; what they saw is whole when it has ended."""
    all_of_them = Following(reader)
    async with asyncio.TaskGroup() as group:
        group.create_task(all_of_them.by_page())
        group.create_task(all_of_them.by_long_poll())
        group.create_task(all_of_them.by_consumer("alone"))
        for _ in range(3):
            group.create_task(all_of_them.by_consumer("shared", lease=60))
        yield all_of_them.seen
        all_of_them.stopped = True


async def whole_feed(engine: AsyncEngine) -> Seen:
    async with engine.connect() as connection:
        rows = await connection.execute(select(events.c.sequence, events.c.id).order_by(events.c.sequence))
        return [(sequence, str(event_id)) for sequence, event_id in rows]


def a_callback(chance: random.Random, number: int) -> Entry:
    now = datetime.now(UTC)
    body = json.dumps({"event": "product.updated", "id": chance.randrange(20), "delivery": number}).encode()
    delivery = Delivery(EntityType.PRODUCT, now, "127.0.0.1", (), body, "header:x-secret")
    return Entry(EntityType.PRODUCT, interpret(EntityType.PRODUCT, (), body, {}), now, delivery)


async def test_no_reader_misses_or_repeats_an_event_however_many_write(reader: Reader, database: str) -> None:
    """Writers as in several replicas, each with many callers, on a busy disk; and holes, as rolled back transactions leave.

    Their transactions take a while between the drawing of numbers and the commit, each a different while.
    """
    chance = random.Random(3)
    async with reader.engine.begin() as connection:
        await connection.execute(text(_DAWDLE))
        await connection.execute(text(_DAWDLE_OVER_EVENTS))

    async def write(writer: Writer, task: int) -> None:
        for number in range(EVENTS_EACH):
            await asyncio.sleep(chance.random() * 0.03)
            await writer.commit(a_callback(chance, task * EVENTS_EACH + number))

    async def leave_holes() -> None:
        connection = await connect(database, application_name="test")
        for _ in range(20):
            await connection.execute("SELECT nextval('event_sequence')")
            await asyncio.sleep(chance.random() * 0.03)
        await connection.close()

    async with asyncio.timeout(90), following(reader) as seen, AsyncExitStack() as opened:
        writers = [await opened.enter_async_context(Writer(database)) for _ in range(WRITERS)]
        await asyncio.gather(leave_holes(), *(write(writers[task % WRITERS], task) for task in range(TASKS)))

    feed = await whole_feed(reader.engine)
    assert len(feed) == TASKS * EVENTS_EACH
    assert feed[-1][0] > len(feed), "there are holes"
    assert {kind: check(given, feed) for kind, given in seen.items()} == {
        "page": Violations(),
        "long poll": Violations(),
        "alone": Violations(),
        "shared": Violations(),
    }


async def test_numbers_drawn_freely_lose_events_and_the_checker_tells_which(reader: Reader) -> None:
    """What a plain sequence does: a number is drawn, a later one is committed first, and no reader goes back for it.

    The order is forced, not hoped for: each late commit comes when every reader has been given a later number.
    """
    late: Seen = []
    async with asyncio.timeout(60), following(reader) as seen:
        for _ in range(4):
            async with naively_appended(reader.engine) as slow:
                async with naively_appended(reader.engine) as quick:
                    pass
                while len(seen) < 4 or not all(quick in given for given in seen.values()):
                    await asyncio.sleep(0.005)
            late.append(slow)

    feed = await whole_feed(reader.engine)
    assert (len(feed), set(late) < set(feed)) == (8, True)
    assert {kind: check(given, feed) for kind, given in seen.items()} == {
        "page": Violations(lost=late),
        "long poll": Violations(lost=late),
        "alone": Violations(lost=late),
        "shared": Violations(lost=late),
    }


@asynccontextmanager
async def naively_appended(engine: AsyncEngine) -> AsyncIterator[tuple[int, str]]:
    """An event whose number is drawn without the lock, in a transaction that is open as long as the block."""
    async with engine.begin() as connection:
        row = event_row(await connection.scalar(select(event_sequence.next_value())))
        await connection.execute(insert(events), row)
        yield row["sequence"], str(row["id"])
