"""The Python client against a running service: what a loop is given, what counts as done, and who gets it when."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import fields
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pytest

import jasper_receiver_client
from app.access.keys import Scope, create_key, revoke_key
from app.clock import utc_now
from app.entities.schemas import EntityRecord
from app.feed.schemas import EventRecord
from app.ledger.writer import Writer
from jasper_receiver_client import (
    Entity,
    Event,
    Feed,
    FeedError,
    Filters,
    KeyRefusedError,
    RequestRefusedError,
    read_exact_json,
)
from tests.builders import NOW, an_entity, an_event, events_of
from tests.http.conftest import ADMIN_KEY, Reader
from tests.http.writing import a_callback, slow_append

T = TypeVar("T")


@pytest.fixture
def feed(reader: Reader) -> Iterator[Callable[..., Feed]]:
    """Makes feeds of the running service, which are closed in the end."""
    made: list[Feed] = []

    def make(**options: Any) -> Feed:
        # In a thread that nobody can end, so it must end by itself where the service is gone.
        made.append(Feed(str(reader.http.base_url), options.pop("key", ADMIN_KEY), **{"patience": 10, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def aside(work: Callable[..., T], *arguments: Any) -> T:
    """The client waits as a thread does; the service runs on this loop."""
    async with asyncio.timeout(30):
        return await asyncio.to_thread(work, *arguments)


def take(feed: Feed, count: int, **options: Any) -> list[int]:
    """The numbers of the next events; the loop is left while it has the last of them in hand."""
    with closing(feed.follow(**options)) as events:
        return [event.sequence for event in islice(events, count)]


async def position(reader: Reader, name: str = "search") -> int:
    found: int = (await reader.get(f"/v1/consumers/{name}")).json()["position"]
    return found


def test_records_have_the_fields_of_the_service() -> None:
    assert [one.name for one in fields(Event)] == list(EventRecord.__struct_fields__)
    assert [one.name for one in fields(Entity)] == list(EntityRecord.__struct_fields__)


async def test_a_loop_is_given_the_events_of_the_feed(reader: Reader, feed: Callable[..., Feed]) -> None:
    row = await an_event(
        reader.engine,
        changed=["price"],
        changes='[{"op":"replace","path":"/price","from":52,"to":49},{"op":"add","path":"/x","to":1}]',
    )
    await an_event(reader.engine, occurred_at=None, delivery_id=None, data=None, source="reconciliation")
    first, second = await aside(lambda: list(islice(feed().follow(), 2)))
    assert first == Event(
        sequence=1,
        id=row["id"],
        type="product.updated",
        entity_type="product",
        action="update",
        entity_id="1001",
        occurred_at=NOW - timedelta(seconds=1),
        received_at=NOW,
        source="webhook",
        delivery_id=row["delivery_id"],
        action_inferred=False,
        stale=False,
        data={"id": 1001},
        changed=("price",),
        changes=first.changes,
    )
    replaced, added = first.changes
    assert (replaced.op, replaced.path, replaced.before, replaced.after) == ("replace", "/price", 52, 49)
    assert (added.op, added.before, added.after) == ("add", None, 1)
    assert (second.occurred_at, second.delivery_id, second.data, second.source) == (None, None, None, "reconciliation")


async def test_a_loop_pages_on_and_begins_behind_a_position(reader: Reader, feed: Callable[..., Feed]) -> None:
    await events_of(reader.engine, 7)
    assert await aside(lambda: take(feed(), 5, after=2, limit=2)) == [3, 4, 5, 6, 7]


async def test_filters_are_those_of_the_feed(reader: Reader, feed: Callable[..., Feed]) -> None:
    await an_event(reader.engine, entity_type="brand")
    await an_event(reader.engine, changed=["price"])
    await an_event(reader.engine, changed=["price"], stale=True)
    await an_event(reader.engine, entity_id="1002", action="delete", received_at=NOW + timedelta(hours=1))
    cases: list[tuple[Filters, list[int]]] = [
        ({}, [1, 2, 4]),
        ({"include_stale": True}, [1, 2, 3, 4]),
        ({"entity_type": "brand"}, [1]),
        ({"entity_type": ["brand", "product"], "action": "update"}, [1, 2]),
        ({"changed": "price", "include_stale": True}, [2, 3]),
        ({"entity_id": "1002"}, [4]),
        ({"since": NOW + timedelta(hours=1)}, [4]),
        ({"until": NOW + timedelta(seconds=1)}, [1, 2]),
    ]
    for wanted, sequences in cases:
        assert await aside(partial(take, feed(), len(sequences), **wanted)) == sequences, wanted
    with pytest.raises(ValueError, match="time zone"):
        feed().follow(since=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


async def test_an_event_comes_while_the_loop_waits(reader: Reader, feed: Callable[..., Feed]) -> None:
    waiting = asyncio.create_task(aside(lambda: take(feed(), 1, wait=20)))
    started = time.monotonic()
    while not waiting.done() and time.monotonic() < started + 0.5:
        await asyncio.sleep(0.05)
    assert not waiting.done()
    await an_event(reader.engine)
    async with asyncio.timeout(5):
        assert await waiting == [1]


async def test_numbers_keep_their_digits_where_that_is_asked_for(reader: Reader, feed: Callable[..., Feed]) -> None:
    await an_event(reader.engine, data='{"price": 1.10, "count": 7}')
    [event] = await aside(lambda: list(islice(feed(loads=read_exact_json).follow(), 1)))
    assert (str(event.data["price"]), event.data["count"]) == ("1.10", 7)


@pytest.mark.parametrize("options", [{}, {"loads": read_exact_json}], ids=["usual", "exact"])
async def test_a_number_that_python_reads_as_none_stops_nobody(
    reader: Reader, feed: Callable[..., Feed], options: dict[str, Any]
) -> None:
    digits = "9" * 5_000
    await an_event(reader.engine, data=f'{{"id": 1, "number": {digits}}}')
    [event] = await aside(lambda: list(islice(feed(**options).follow(), 1)))
    assert event.data["number"] == Decimal(digits)


async def test_what_cannot_be_read_is_told_as_such(reader: Reader, feed: Callable[..., Feed]) -> None:
    def refuse(_text: bytes) -> object:
        raise RecursionError

    await an_event(reader.engine)
    with pytest.raises(FeedError, match="cannot be read"):
        await aside(take, feed(loads=refuse), 1)


async def test_an_event_is_done_when_the_loop_asks_for_the_next(reader: Reader, feed: Callable[..., Feed]) -> None:
    """So the one in hand comes again, and what was before it does not."""
    await events_of(reader.engine, 5)
    assert await aside(take, feed(consumer="search"), 3) == [1, 2, 3]
    assert await position(reader) == 2
    assert await aside(take, feed(consumer="search"), 3) == [3, 4, 5]
    assert await position(reader) == 4


async def test_an_exception_in_the_loop_leaves_the_event_undone(reader: Reader, feed: Callable[..., Feed]) -> None:
    await events_of(reader.engine, 3)

    def work() -> None:
        with closing(feed(consumer="search").follow()) as events:
            for event in events:
                if event.sequence == 2:
                    raise LookupError

    with pytest.raises(LookupError):
        await aside(work)
    assert await position(reader) == 1


async def test_a_page_is_acknowledged_before_the_next_is_asked_for(reader: Reader, feed: Callable[..., Feed]) -> None:
    await events_of(reader.engine, 4)
    following = feed(consumer="search").follow(limit=2)
    assert [event.sequence for event in await aside(lambda: list(islice(following, 3)))] == [1, 2, 3]
    assert await position(reader) == 2  # as a process that is killed now leaves it
    await aside(following.close)


async def test_long_work_is_acknowledged_within_a_page(
    reader: Reader, feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jasper_receiver_client.feed._ACK_EVERY", 0)
    await events_of(reader.engine, 4)
    following = feed(consumer="search").follow()
    await aside(lambda: list(islice(following, 3)))
    assert await position(reader) == 2
    await aside(following.close)


async def test_a_consumer_moves_past_what_its_filters_skip(reader: Reader, feed: Callable[..., Feed]) -> None:
    await events_of(reader.engine, 4)
    waiting = asyncio.create_task(
        aside(lambda: take(feed(consumer="search"), 1, entity_type="brand", wait=0.1, limit=10))
    )
    async with asyncio.timeout(10):
        while (await reader.http.get("/v1/consumers/search")).status_code == 404 or await position(reader) < 4:
            await asyncio.sleep(0.02)
    await an_event(reader.engine, entity_type="brand")
    assert await waiting == [5]


async def test_a_consumer_can_be_moved(reader: Reader, feed: Callable[..., Feed]) -> None:
    await events_of(reader.engine, 3)
    search = feed(consumer="search")
    await aside(search.move, "latest")
    await an_event(reader.engine)
    assert await aside(take, search, 1) == [4]
    await aside(search.move, 1)
    assert await aside(take, search, 2) == [2, 3]
    await aside(search.move, "earliest")
    assert await aside(take, search, 1) == [1]


async def test_names_of_consumers_are_escaped(feed: Callable[..., Feed]) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        await aside(feed(consumer="a?b").move, 0)
    assert refused.value.problem["errors"][0]["parameter"] == "name"


async def test_a_parked_event_holds_nothing_up(reader: Reader, feed: Callable[..., Feed]) -> None:
    await events_of(reader.engine, 3)
    search = feed(consumer="search")

    def work() -> list[int]:
        done = []
        with closing(search.follow()) as events:
            for event in events:
                if event.sequence == 2:
                    search.park(event, "the price\0 is \ud800 " + "x" * 2000)
                    continue
                done.append(event.sequence)
                if event.sequence == 3:
                    return done
        return []

    assert await aside(work) == [1, 3]
    await aside(search.move, "earliest")
    assert await aside(take, search, 2) == [1, 3]
    [parked] = (await reader.get("/v1/consumers/search/parked")).json()["parked"]
    assert (parked["sequence"], len(parked["reason"])) == (2, 1000)
    await aside(search.move, "earliest")
    await aside(search.park, 3, "")
    assert await aside(take, search, 1) == [1]


async def test_pods_with_a_lease_handle_each_event_once_and_in_order(reader: Reader, feed: Callable[..., Feed]) -> None:
    await events_of(reader.engine, 40)
    _, key = await create_key(reader.engine, "pods", [Scope.READ, Scope.WRITE], now=utc_now())
    handled: list[int] = []

    def note(event: Event) -> None:
        handled.append(event.sequence)

    def pod() -> None:
        for event in feed(key=key, consumer="search").follow(lease=30, limit=4, wait=0.2):
            note(event)

    pods = [asyncio.create_task(aside(pod)) for _ in range(3)]
    async with asyncio.timeout(20):
        while await position(reader) < 40 if handled else True:
            await asyncio.sleep(0.02)
    await revoke_key(reader.engine, "pods", now=utc_now())  # which ends their loops
    for ended in await asyncio.gather(*pods, return_exceptions=True):
        assert isinstance(ended, KeyRefusedError)
    assert handled == list(range(1, 41))


async def test_a_page_goes_to_another_pod_when_the_lease_of_a_silent_one_is_over(
    reader: Reader, feed: Callable[..., Feed]
) -> None:
    """And the silent one, which was only slow, drops its page and goes on behind what the other did."""
    await events_of(reader.engine, 4)
    slow = feed(consumer="search").follow(lease=1)
    assert (await aside(next, slow)).sequence == 1
    assert await aside(lambda: take(feed(consumer="search"), 3, lease=30, wait=5)) == [1, 2, 3]
    assert (await aside(next, slow)).sequence == 3
    await aside(slow.close)


async def test_a_lease_is_kept_while_the_loop_goes_on(reader: Reader, feed: Callable[..., Feed]) -> None:
    """Work on a page takes twice as long as its lease, and no other pod is given any of it."""
    await events_of(reader.engine, 8)
    other: list[int] = []

    def work() -> list[int]:
        done = []
        with closing(feed(consumer="search").follow(lease=3)) as events:
            for event in events:
                time.sleep(0.75)
                done.append(event.sequence)
                if len(done) == 8:
                    break
        return done

    working = asyncio.create_task(aside(work))
    async with asyncio.timeout(40):
        while not working.done():
            answer = await reader.http.get("/v1/consumers/search/events")
            if answer.status_code == 200:  # before the page was taken, or after the last event
                other.append(len(answer.json()["events"]))
            await asyncio.sleep(0.02)
    assert await working == list(range(1, 9))
    assert set(other) <= {8, 1}, "an event was done, and its page was nobody's"


async def test_a_pod_that_leaves_the_loop_lets_go_of_the_page(reader: Reader, feed: Callable[..., Feed]) -> None:
    await events_of(reader.engine, 4)
    assert await aside(lambda: take(feed(consumer="search"), 1, lease=600)) == [1]
    started = time.monotonic()
    assert await aside(lambda: take(feed(consumer="search"), 2, lease=600)) == [1, 2]
    assert time.monotonic() < started + 10


@pytest.mark.parametrize(
    ("scopes", "options", "status"),
    [
        (None, {}, 401),
        ([Scope.WRITE], {}, 403),
        ([Scope.READ], {"consumer": "search"}, 403),
        ([Scope.WRITE], {"consumer": "search"}, 403),
    ],
)
async def test_a_key_that_does_not_fit_is_told_at_once(
    reader: Reader, feed: Callable[..., Feed], scopes: list[Scope] | None, options: dict[str, Any], status: int
) -> None:
    key = "wrong"
    if scopes is not None:
        _, key = await create_key(reader.engine, "misfit", scopes, now=utc_now())
    with pytest.raises(KeyRefusedError) as refused:
        await aside(take, feed(key=key, **options), 1)
    assert refused.value.status == status
    assert refused.value.type in {"/problems/key-missing", "/problems/scope-missing"}


async def test_a_consumer_that_was_forgotten_ends_the_loop(reader: Reader, feed: Callable[..., Feed]) -> None:
    await an_event(reader.engine)
    following = feed(consumer="search").follow()
    await aside(next, following)
    assert (await reader.http.delete("/v1/consumers/search")).status_code == 204
    with pytest.raises(RequestRefusedError) as refused:
        await aside(next, following)
    assert refused.value.status == 404


def test_arguments_that_do_not_go_together_are_told_before_anything_is_asked() -> None:
    nowhere = "http://127.0.0.1:1"
    with Feed(nowhere, "key") as own, Feed(nowhere, "key", consumer="search") as kept:
        with pytest.raises(ValueError, match="entity_id has no value"):
            next(own.follow(entity_id=[]))
        with pytest.raises(ValueError, match="lease"):
            own.follow(lease=5)
        with pytest.raises(ValueError, match="move"):
            kept.follow(after=5)
        with pytest.raises(ValueError, match="consumer"):
            own.park(1, "poison")
        with pytest.raises(ValueError, match="consumer"):
            own.move("latest")


async def test_a_snapshot_has_every_entity_and_may_be_read_again(
    reader: Reader, feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jasper_receiver_client.feed._SNAPSHOT_PAGE", 2)
    for entity_id in ("1001", "a/b ü", "c", "d", "e"):
        await an_entity(reader.engine, entity_id=entity_id, source_updated_at=NOW)
    await an_entity(reader.engine, entity_id="gone", deleted_at=NOW)
    snapshot = await aside(lambda: feed().snapshot("products"))
    assert snapshot.position == 6
    entities: list[Entity] = await aside(list, snapshot)
    assert [entity.entity_id for entity in entities] == ["1001", "a/b ü", "c", "d", "e"]
    assert (entities[0].data, entities[0].created_at, entities[0].source_updated_at) == ({"id": 1001}, NOW, NOW)
    assert await aside(list, snapshot) == entities
    everything = await aside(lambda: list(feed().snapshot("products", include_deleted=True)))
    assert [(one.entity_id, one.deleted_at) for one in everything][-1] == ("gone", NOW)
    assert list(await aside(lambda: feed().snapshot("brands"))) == []


async def test_a_snapshot_and_what_follows_it_make_the_state_however_many_write(
    reader: Reader, database: str, feed: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(7)
    monkeypatch.setattr("app.ledger.writer.append", slow_append(chance))
    monkeypatch.setattr("jasper_receiver_client.feed._SNAPSHOT_PAGE", 3)
    copy: dict[str, tuple[int, Any]] = {}

    async def write(writer: Writer, task: int) -> None:
        for number in range(12):
            await writer.commit(a_callback(task * 12 + number))

    def follow_on(last: int) -> None:
        for entity in snapshot:
            copy[entity.entity_id] = (entity.sequence, entity.data)
        with closing(feed().follow(after=snapshot.position, entity_type="product", wait=5)) as events:
            for event in events:
                before = copy.get(event.entity_id, (0, None))
                copy[event.entity_id] = max(before, (event.sequence, event.data), key=lambda one: one[0])
                if event.sequence >= last:
                    return

    async with AsyncExitStack() as held:
        writers = [await held.enter_async_context(Writer(database)) for _ in range(3)]
        await asyncio.gather(*(write(writers[task % 3], task) for task in range(6)))
        async with asyncio.TaskGroup() as group:
            writing = [group.create_task(write(writers[task % 3], task)) for task in range(6, 30)]
            snapshot = await aside(lambda: feed().snapshot("products"))
            reading = group.create_task(aside(lambda: follow_on(360)))
            await asyncio.wait(writing)
            await reading
    items = (await reader.get("/v1/products?limit=1000")).json()["items"]
    assert len(items) == 120
    assert copy == {item["entity_id"]: (item["sequence"], item["data"]) for item in items}


def test_the_client_needs_httpx_and_nothing_of_the_receiver(tmp_path: Path) -> None:
    """It is taken as a directory by services that have nothing else of this project."""
    package = Path(jasper_receiver_client.__file__).parent
    (tmp_path / package.name).symlink_to(package)
    script = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import httpx; own = set(sys.modules)\n"
        "import jasper_receiver_client as client\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - own} - set(sys.stdlib_module_names)\n"
        "print(*sorted(new)); print((sys.modules['app'] if 'app' in sys.modules else None))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "jasper_receiver_client\nNone\n"
    assert (package / "py.typed").exists()
