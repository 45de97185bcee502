"""Snapshot and follow: all pages of a collection, then the feed from the first one's `Feed-Position`: nothing is missed."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from app.db.engine import connect
from app.domain.values import Delivery, EntityType, Entry
from app.entities import queries
from app.jasper.reading import interpret
from app.ledger.writer import Writer
from tests.builders import an_entity, an_event
from tests.http.conftest import Reader
from tests.http.test_feed_order import Violations, check, whole_feed
from tests.http.writing import slow_append

ENTITIES = 40
TASKS = 30
EVENTS_EACH = 4


def a_change(chance: random.Random, number: int) -> Entry:
    """A change of one of some products, of which there are always some that are deleted, and come back."""
    now = datetime.now(UTC)
    action = chance.choice(["created", "updated", "updated", "deleted"])
    data = {"id": f"p{chance.randrange(ENTITIES):02}", "number": number}
    body = json.dumps({"event": f"product.{action}", "data": data, "delivery_id": str(number)}).encode()
    delivery = Delivery(EntityType.PRODUCT, now, "127.0.0.1", (), body, "header:x-secret")
    return Entry(EntityType.PRODUCT, interpret(EntityType.PRODUCT, (), body, {}), now, delivery)


@dataclass
class Copy:
    """A reader's copy of a collection, made as the guide says; `seen` is what the feed has told it."""

    reader: Reader
    position: int = 0
    entities: dict[str, tuple[int, Any]] = field(default_factory=dict)
    pages: int = 0
    is_taken: bool = False
    seen: list[tuple[int, str]] = field(default_factory=list)

    async def take(self) -> None:
        """All pages; the position is that of the first."""
        after: str | None = None
        while self.pages == 0 or after is not None:
            query = {"limit": 3} | ({} if after is None else {"after": after})
            answer = await self.reader.get("/v1/products", query)
            if self.pages == 0:
                self.position = int(answer.headers["Feed-Position"])
            self.pages += 1
            page = answer.json()
            self.entities |= {one["entity_id"]: (one["sequence"], one["data"]) for one in page["items"]}
            after = page["after"]
        self.is_taken = True

    async def follow(self, until: asyncio.Event) -> None:
        """The feed from there, to its end when nobody writes any more."""
        after = self.position
        while True:
            is_last = until.is_set()
            page = (await self.reader.get("/v1/events", {"after": after, "limit": 20, "wait": 0.1})).json()
            for event in page["events"]:
                self.seen.append((event["sequence"], event["id"]))
                self.entities.pop(event["entity_id"], None)
                if event["action"] != "delete":
                    self.entities[event["entity_id"]] = (event["sequence"], event["data"])
            after = page["after"]
            if is_last and not page["has_more"]:
                return


@asynccontextmanager
async def writing(database: str, chance: random.Random, copies: list[Copy]) -> AsyncIterator[asyncio.Event]:
    """Writers as in several replicas beside the block, until all copies have been taken, and somewhat longer.

    The event is set when all has been written.
    """
    written = asyncio.Event()
    numbers = count()

    async def write(writer: Writer) -> None:
        left = EVENTS_EACH
        while left:
            await asyncio.sleep(chance.random() * 0.02)
            await writer.commit(a_change(chance, next(numbers)))
            left -= all(copy.is_taken for copy in copies)

    async def leave_holes() -> None:
        connection = await connect(database, application_name="test")
        for _ in range(20):
            await connection.execute("SELECT nextval('event_sequence')")
            await asyncio.sleep(chance.random() * 0.03)
        await connection.close()

    async def write_all(writers: list[Writer]) -> None:
        await asyncio.gather(leave_holes(), *(write(writers[task % len(writers)]) for task in range(TASKS)))
        written.set()

    async with AsyncExitStack() as held:
        writers = [await held.enter_async_context(Writer(database)) for _ in range(3)]
        group = await held.enter_async_context(asyncio.TaskGroup())
        group.create_task(write_all(writers))
        yield written


async def test_a_copy_and_what_follows_it_miss_nothing_however_many_write(
    reader: Reader, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(17)
    monkeypatch.setattr("app.ledger.writer.append", slow_append(chance))
    copies = [Copy(reader) for _ in range(5)]

    async def keep(copy: Copy, begin: int, written: asyncio.Event) -> None:
        await reader.get("/v1/events", {"after": begin, "limit": 1, "wait": 30})
        await copy.take()
        await copy.follow(written)

    async with asyncio.timeout(90), writing(database, chance, copies) as written, asyncio.TaskGroup() as group:
        for number, copy in enumerate(copies, 1):
            group.create_task(keep(copy, 40 * number, written))

    feed = await whole_feed(reader.engine)
    items = (await reader.get("/v1/products", {"limit": 1000})).json()["items"]
    state = {item["entity_id"]: (item["sequence"], item["data"]) for item in items}
    assert 0 < len(state) < ENTITIES, "some are deleted"
    for copy in copies:
        assert 0 < copy.position < feed[-1][0], "it was taken while writers wrote"
        assert copy.pages > 1
        assert check(copy.seen, [one for one in feed if one[0] > copy.position]) == Violations()
        assert copy.entities == state


async def test_what_is_committed_while_a_page_is_made_stands_behind_its_position(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced, not hoped for: before the entities are looked at, and after."""
    read = queries.page

    async def page(*arguments: Any, **named: Any) -> Any:
        await an_event(reader.engine, entity_id="before")
        found = await read(*arguments, **named)
        await an_event(reader.engine, entity_id="after")
        return found

    await an_entity(reader.engine)
    monkeypatch.setattr(queries, "page", page)
    answer = await reader.get("/v1/products")
    assert [item["entity_id"] for item in answer.json()["items"]] == ["1001"]
    told = (await reader.get("/v1/events", {"after": answer.headers["Feed-Position"]})).json()["events"]
    assert [event["entity_id"] for event in told] == ["before", "after"]
