"""Reconciliation against a real Postgres: differences come back exactly, nothing else, whatever happens meanwhile."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from datetime import timedelta
from random import Random

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.values import DeliveryStatus, EntityType
from app.errors import ConflictError, DatabaseUnavailableError
from app.reconciliation.store import Status
from tests.listed_jasper import World, a_world


@pytest.fixture
async def world(database: str, engine: AsyncEngine) -> AsyncIterator[World]:
    async with a_world(database, engine) as world:
        yield world


async def test_the_first_run_on_an_empty_database_is_the_initial_load(world: World) -> None:
    for number in range(1, 11):
        world.changed(number, price=1.10)
    done = await world.reconcile()

    assert (done.status, done.compared, done.created, done.updated, done.deleted) == (Status.SUCCEEDED, 10, 10, 0, 0)
    assert done.error is None
    assert done.finished_at is not None
    assert await world.state() == world.jasper.products
    assert await world.told_by() == sorted(("create", str(number)) for number in range(1, 11))
    again = await world.reconcile()
    assert (again.compared, again.created, again.updated, again.deleted) == (10, 0, 0, 0)
    assert again.id != done.id


async def test_what_was_missed_comes_back_exactly_and_nothing_else(world: World) -> None:
    for number in range(1, 21):
        await world.told("created", world.changed(number, price=number))
    head = await world.head()
    for number in (2, 9, 20):
        world.changed(number, price=0)
    world.deleted(5)
    world.deleted(19)
    world.changed(30)
    done = await world.reconcile()

    assert (done.compared, done.created, done.updated, done.deleted) == (19, 1, 3, 2)
    assert await world.told_by(head) == [
        ("create", "30"), ("delete", "19"), ("delete", "5"), ("update", "2"), ("update", "20"), ("update", "9"),
    ]  # fmt: skip
    [update] = [event for event in await world.events(head) if event["entity_id"] == "9"]
    assert update["changed"] == ["price", "updated_at"]
    assert await world.state() == world.jasper.products


async def test_a_list_that_leaves_members_out_is_no_difference_and_gaps_are_filled_from_the_single_item(
    world: World,
) -> None:
    world.jasper.fields = {"id", "updated_at"}
    for number in range(1, 8):
        await world.told("created", world.changed(number, price=number))
    head = await world.head()
    world.changed(4, price=0)
    world.changed(8, price=8)
    await world.reconcile()
    assert await world.told_by(head) == [("create", "8"), ("update", "4")]
    assert await world.state() == world.jasper.products
    assert set(world.jasper.singles_read) == {"1", "2", "3", "4", "8"}  # the samples, and what differs


async def test_items_that_the_list_carries_whole_are_not_asked_for_again(world: World) -> None:
    for number in range(1, 31):
        world.changed(number)
    await world.reconcile()
    assert sorted(world.jasper.singles_read) == ["1", "2", "3"]


async def test_formatting_is_no_difference(world: World) -> None:
    product = world.changed(1, price=1.5, size={"a": 1, "b": [1, 2.0]}, name="größer")
    text = '{"size": {"b":[1.0,2],"a":1e0}, "name": "gr\\u00f6\\u00dfer", "price": 1.50, "id": 1, "updated_at": "%s"}'
    await world.told("created", {"id": 1})
    await world.sql.execute("UPDATE events SET data = $1", text % product["updated_at"])
    await world.sql.execute("UPDATE entities SET data_sequence = sequence")
    done = await world.reconcile()
    assert (done.compared, done.updated) == (1, 0)


async def test_an_absence_is_believed_only_after_a_404_on_the_single_item(world: World) -> None:
    for number in range(1, 8):
        await world.told("created", world.changed(number))
    head = await world.head()
    world.jasper.hidden = {"2", "7"}
    world.changed(7, price=1)
    world.deleted(6)
    done = await world.reconcile()
    assert await world.told_by(head) == [("delete", "6"), ("update", "7")]
    assert (done.compared, done.updated, done.deleted) == (6, 1, 1)


@pytest.mark.parametrize("status", [500, 403, 429])
async def test_a_page_that_fails_deletes_nothing_and_fails_the_run_in_words(world: World, status: int) -> None:
    for number in range(1, 11):
        await world.told("created", world.changed(number))
    head = await world.head()
    world.deleted(1)
    world.jasper.trouble = lambda request: (
        httpx.Response(status, headers={"Retry-After": "1000"}, json={"message": "Oh."})
        if request.url.params.get("page") == "3"
        else None
    )
    done = await world.reconcile()
    assert (done.status, done.deleted) == (Status.FAILED, 0)
    assert done.error is not None
    assert f"({status})" in done.error
    assert "nothing was deleted" in done.error
    assert await world.told_by(head) == []


async def test_a_failing_404_check_deletes_nothing(world: World) -> None:
    for number in range(1, 8):
        await world.told("created", world.changed(number))
    world.deleted(5)
    world.deleted(6)
    world.jasper.trouble = lambda request: httpx.Response(500) if request.url.path.endswith("/6") else None
    done = await world.reconcile()
    assert (done.status, done.deleted) == (Status.FAILED, 0)
    assert len(await world.state()) == 7


async def test_more_deletions_than_allowed_wait_for_a_confirmation(world: World) -> None:
    for number in range(1, 21):
        await world.told("created", world.changed(number))
    for number in (1, 2, 3):
        world.deleted(number)
    world.changed(4, price=1)
    done = await world.reconcile(reconcile_most_deleted=0.1)
    assert (done.status, done.updated, done.deleted) == (Status.NEEDS_CONFIRMATION, 1, 0)
    assert done.error is not None
    assert "--force" in done.error
    assert len(await world.state()) == 20

    allowed = await world.reconcile(reconcile_most_deleted=0.15)
    assert (allowed.status, allowed.deleted) == (Status.SUCCEEDED, 3)
    world.deleted(5)
    world.deleted(6)
    assert (await world.reconcile(reconcile_most_deleted=0.1)).status is Status.NEEDS_CONFIRMATION
    forced = await world.reconcile(reconcile_most_deleted=0.1, force=True)
    assert (forced.status, forced.deleted) == (Status.SUCCEEDED, 2)
    assert await world.state() == world.jasper.products


async def test_a_jasper_that_shows_no_single_items_is_not_believed_to_have_lost_any(world: World) -> None:
    for number in range(1, 8):
        await world.told("created", world.changed(number))
    world.deleted(5)
    world.jasper.trouble = lambda request: httpx.Response(404) if "/products/" in request.url.path else None
    done = await world.reconcile()
    assert done.status is Status.FAILED
    assert done.error is not None
    assert "404" in done.error
    assert len(await world.state()) == 7


@pytest.mark.parametrize("moment", ["products", "products/2"], ids=["after the page", "after a single item"])
async def test_callbacks_that_arrive_after_jasper_has_answered_win(world: World, moment: str) -> None:
    """They carry no time, so that nothing but the order in which they came tells that they are newer."""
    world.jasper.page_size = 10
    world.jasper.fields = {"id", "price", "updated_at"}  # so that single items are asked for before anything is written
    for number in range(1, 7):
        await world.told("created", world.changed(number, price=1))
    for number in (1, 2, 9):
        world.changed(number, price=2)
    head = await world.head()
    callbacks = [
        ("updated", {"id": 1, "price": 3}),
        ("deleted", {"id": 2}),
        ("deleted", {"id": 3}),
        ("created", {"id": 9}),
    ]
    answer = world.jasper.answer

    async def answer_then_hear(request: httpx.Request) -> httpx.Response:
        response = await answer(request)
        while request.url.path.endswith(moment) and callbacks:
            await world.told(*callbacks.pop())
        return response

    world.jasper.answer = answer_then_hear  # type: ignore[method-assign]
    done = await world.reconcile()
    assert (done.status, callbacks) == (Status.SUCCEEDED, [])
    assert await world.told_by(head) == []
    assert len(await world.events(head)) == 4


async def test_a_deletion_that_was_found_gives_way_to_a_callback(world: World) -> None:
    """It arrives between the 404 and the deletion."""
    for number in range(1, 7):
        await world.told("created", world.changed(number))
    gone = [world.deleted(number) for number in (2, 3)]
    head = await world.head()

    async def hear(request: httpx.Request) -> None:
        if request.url.path.endswith("/3"):
            await world.told("updated", {"id": 2, "name": gone[0]["name"], "price": 5})

    world.jasper.before = hear
    done = await world.reconcile()
    assert done.deleted == 1
    assert await world.told_by(head) == [("delete", "3")]


async def test_what_jasper_itself_says_is_older_is_no_difference(world: World) -> None:
    """A replica or a cache of Jasper's may lag behind what its callbacks have told."""
    for number in range(1, 5):
        await world.told("created", world.changed(number, price=1))
    before = {key: dict(value) for key, value in world.jasper.products.items()}
    await world.told("updated", world.changed(1, price=2))
    await world.told("deleted", {**world.deleted(2), "deleted_at": None}, timestamp=world.now.isoformat())
    head = await world.head()
    world.jasper.products = before
    done = await world.reconcile()
    assert (done.created, done.updated, done.deleted) == (0, 0, 0)
    assert await world.told_by(head) == []


async def test_deleted_here_but_there_again_is_brought_back(world: World) -> None:
    for number in (1, 2, 3, 4):
        await world.told("created", world.changed(number))
    for number in (1, 2):
        await world.told("deleted", world.jasper.products[str(number)], timestamp=world.now.isoformat())
    world.changed(1, price=7)
    world.jasper.hidden = {"2"}
    world.deleted(2)
    head = await world.head()
    await world.reconcile()
    assert await world.told_by(head) == [("create", "1")]
    assert await world.state() == world.jasper.products


async def test_a_repetition_of_what_was_told_before_is_not_swallowed(world: World) -> None:
    """Deleted by a callback that gave no time, restored in Jasper as it was, and the callback of that is lost."""
    for number in (1, 2):
        await world.told("created", world.changed(number))
    await world.told("deleted", {"id": 1})
    head = await world.head()
    done = await world.reconcile()
    assert done.created == 1
    assert await world.told_by(head) == [("create", "1")]
    assert await world.state() == world.jasper.products


async def test_what_was_deleted_by_reconciliation_comes_back_when_jasper_shows_it_again(world: World) -> None:
    """Whatever its updated_at says: Jasper itself said first that it was gone, and then that it is there."""
    for number in (1, 2, 3, 4):
        await world.told("created", world.changed(number))
    hidden = world.deleted(1)
    world.jasper.dated = world.now + timedelta(hours=1)
    await world.reconcile()
    assert "1" not in await world.state()
    world.jasper.products["1"] = hidden
    head = await world.head()
    await world.reconcile()
    assert await world.told_by(head) == [("create", "1")]
    assert await world.state() == world.jasper.products
    assert (await world.reconcile()).created == 0


@pytest.mark.parametrize("word", ["created", "updated", "changed"])
async def test_a_late_callback_of_what_was_found_is_a_duplicate(world: World, word: str) -> None:
    await world.told("created", world.changed(1))
    missed = [world.changed(1, price=2), world.changed(2)]
    await world.reconcile()
    head = await world.head()
    for product in missed:
        receipt = await world.told(word, product)
        assert receipt.status is DeliveryStatus.DUPLICATE
        assert receipt.event_id is not None
    assert await world.head() == head


async def test_late_callbacks_from_before_a_deletion_that_was_found_do_not_bring_it_back(world: World) -> None:
    await world.told("created", world.changed(1))
    await world.told("created", world.changed(2))
    late = world.changed(1, price=2)
    world.deleted(1)
    world.jasper.dated = world.now
    await world.reconcile()
    assert await world.state() == world.jasper.products
    await world.told("updated", late)
    assert await world.state() == world.jasper.products
    assert (await world.told("deleted", {"id": 1})).status is DeliveryStatus.DUPLICATE
    world.jasper.products["1"] = late
    await world.told("created", world.changed(1, price=3))
    assert await world.state() == world.jasper.products


async def test_a_missed_change_within_the_second_of_the_last_event_is_no_stale_one(world: World) -> None:
    """The event told a time of its own that is later than the entity's."""
    product = world.changed(1, price=1)
    await world.told("created", product, timestamp=(world.now + timedelta(seconds=5)).isoformat())
    world.jasper.products["1"] = product | {"price": 2}
    await world.reconcile()
    assert await world.told_by() == [("update", "1")]
    assert (await world.state())["1"]["price"] == 2


async def test_data_that_a_notification_left_out_is_filled_in(world: World) -> None:
    await world.told("created", {"id": 1})
    world.changed(1, price=1)
    assert (await world.reconcile()).updated == 1
    assert await world.state() == world.jasper.products


async def test_a_run_that_was_cut_off_goes_on_elsewhere_and_counts_nothing_twice(world: World) -> None:
    for number in range(1, 13):
        await world.told("created", world.changed(number))
    head = await world.head()
    for number in range(1, 13):
        world.changed(number, price=2)
    world.changed(20)
    world.deleted(5)

    async def cut_off(request: httpx.Request) -> None:
        if request.url.params.get("page") == "3":
            await world.sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'jasper-receiver ledger' AND datname = current_database()"
            )

    world.jasper.before = cut_off
    with pytest.raises(DatabaseUnavailableError):
        await world.reconcile()
    [left] = await world.sql.fetch("SELECT * FROM reconciliations")
    assert (left["status"], left["compared"], left["updated"]) == ("running", 6, 5 + 1)

    world.jasper.before = nothing_more
    world.jasper.calls.clear()
    done = await world.reconcile()
    assert done.id == left["id"]
    assert 1 not in world.jasper.pages_read
    assert 2 not in world.jasper.pages_read
    assert (done.compared, done.created, done.updated, done.deleted) == (12, 1, 11, 1)
    assert len(await world.told_by(head)) == 13
    assert await world.state() == world.jasper.products
    assert await world.sql.fetchval("SELECT count(*) FROM reconciled_entities") == 0


async def nothing_more(_request: httpx.Request) -> None:
    """Nothing happens any more."""


async def test_one_at_a_time_for_each_entity_type(world: World) -> None:
    world.changed(1)
    refused: list[str] = []

    async def another(request: httpx.Request) -> None:
        if "page" not in request.url.params and not refused:
            refused.append("…")
            with pytest.raises(ConflictError, match="already"):
                await world.reconcile()
            async with world.reconciler() as reconciler:
                await reconciler.look()
            refused.append("refused")

    world.jasper.before = another
    assert (await world.reconcile()).status is Status.SUCCEEDED
    assert refused[-1] == "refused"
    assert await world.sql.fetchval("SELECT count(*) FROM reconciliations") == 1


async def test_an_entity_that_moved_to_a_page_before_is_not_overlooked(world: World) -> None:
    """Something on a page that was read is deleted, so that the first of the next page moves there, unseen."""
    for number in range(1, 16):
        product = world.changed(number)
        if number not in {7, 8}:
            await world.told("created", product)
    head = await world.head()

    async def shift(request: httpx.Request) -> None:
        if request.url.params.get("page") == "3" and "1" in world.jasper.products:
            await world.told("deleted", world.deleted(1))

    world.jasper.before = shift
    done = await world.reconcile()
    assert await world.told_by(head) == [("create", "7"), ("create", "8")]
    assert done.compared == 15
    assert await world.state() == world.jasper.products


async def test_pages_that_go_round_in_circles_fail_the_run(world: World) -> None:
    world.changed(1)
    number = 0

    def always_the_same(request: httpx.Request) -> httpx.Response | None:
        nonlocal number
        number += 1
        if request.url.path.endswith("/1"):
            return None
        return httpx.Response(
            200, json={"data": [world.jasper.products["1"]], "links": {"next": f"?page={number + 1}"}}
        )

    world.jasper.trouble = always_the_same
    done = await world.reconcile()
    assert done.status is Status.FAILED
    assert done.error is not None
    assert "circles" in done.error


async def test_empty_pages_without_end_fail_the_run(world: World) -> None:
    number = 0

    def empty(_request: httpx.Request) -> httpx.Response:
        nonlocal number
        number += 1
        return httpx.Response(200, json={"data": [], "links": {"next": f"?page={number + 1}"}})

    world.jasper.trouble = empty
    assert (await world.reconcile()).status is Status.FAILED
    assert number < 100


async def test_another_entity_in_place_of_the_one_that_was_asked_for_fails_the_run(world: World) -> None:
    for number in range(1, 8):
        await world.told("created", world.changed(number))
    world.jasper.hidden = {"6"}
    world.jasper.products["6"] = world.jasper.products["7"]
    done = await world.reconcile()
    assert done.status is Status.FAILED
    assert done.error is not None
    assert "asked for product 6 and answered with 7" in done.error


async def test_an_item_without_an_id_fails_the_run(world: World) -> None:
    world.changed(1)
    world.jasper.products["1"].pop("id")
    done = await world.reconcile()
    assert done.status is Status.FAILED
    assert done.error is not None
    assert "has no id" in done.error


async def test_the_operators_place_of_the_id_counts_here_too(world: World) -> None:
    """Else everything would seem to be missing, and to be gone."""
    world.changed(1, sku="A-1")
    world.jasper.products["A-1"] = world.jasper.products["1"]
    world.jasper.hidden = {"A-1"}
    done = await world.reconcile(jasper_payload_mapping={"entity_id": ("/data/sku",)})
    assert done.status is Status.SUCCEEDED, done.error
    assert await world.told_by() == [("create", "A-1")]


async def test_a_run_is_due_at_its_interval_and_begun_by_one_replica(world: World) -> None:
    world.changed(1)

    async def begun() -> int:
        async with world.reconciler(reconcile_interval=3600) as one, world.reconciler(reconcile_interval=3600) as two:
            await asyncio.gather(one.look(), two.look())
            while await world.sql.fetchval("SELECT count(*) FROM reconciliations WHERE status = 'running'"):
                await asyncio.sleep(0.01)
        return int(await world.sql.fetchval("SELECT count(*) FROM reconciliations"))

    assert await begun() == 1
    assert await begun() == 1
    await world.sql.execute("UPDATE reconciliations SET started_at = started_at - interval '1 hour'")
    assert await begun() == 2
    async with world.reconciler(reconcile_interval=3600) as late:
        with pytest.raises(ConflictError, match="quicker"):  # it had looked before the other one was through
            await late.start(EntityType.PRODUCT, only_if_due=True)
    async with world.reconciler() as never:
        await world.sql.execute("UPDATE reconciliations SET started_at = started_at - interval '1 hour'")
        await never.look()
    assert await world.sql.fetchval("SELECT count(*) FROM reconciliations") == 2


async def test_what_a_dead_process_left_unfinished_is_gone_on_with_unasked(world: World) -> None:
    for number in range(1, 8):
        world.changed(number)
    world.jasper.trouble = lambda _: httpx.Response(200, json={"data": []})
    await world.reconcile()
    await world.sql.execute("UPDATE reconciliations SET status = 'running', finished_at = NULL, stage = 'list'")
    world.jasper.trouble = lambda _: None
    async with world.reconciler() as reconciler:
        await reconciler.look()
        while await world.sql.fetchval("SELECT count(*) FROM reconciliations WHERE status = 'running'"):
            await asyncio.sleep(0.01)
    assert await world.state() == world.jasper.products


async def test_one_that_is_stopped_by_hand_ends_as_failed(world: World) -> None:
    world.changed(1)
    asked = asyncio.Event()

    async def hang(_request: httpx.Request) -> None:
        asked.set()
        await asyncio.Event().wait()

    world.jasper.before = hang
    running = asyncio.create_task(world.reconcile())
    await asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    [row] = await world.sql.fetch("SELECT * FROM reconciliations")
    assert row["status"] == "failed"
    assert "stopped by hand" in row["error"]


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_was_missed_and_whatever_happens_meanwhile_both_sides_end_equal(world: World, seed: int) -> None:
    """Random states on both sides; while the list is read, Jasper changes and tells of it. Events are the differences."""
    chance = Random(seed)
    world.jasper.page_size = chance.randint(1, 7)
    world.jasper.fields = chance.choice([None, {"id", "updated_at"}, {"id", "updated_at", "price"}])
    ids = list(range(1, 41))
    for number in chance.sample(ids, 30):
        await world.told("created", world.changed(number, price=chance.randint(1, 3)))
    expected = {}
    for number in ids:
        here, kind = str(number) in world.jasper.products, chance.random()
        if here and kind < 0.2:
            world.deleted(number)
            expected[str(number)] = "delete"
        elif here and kind < 0.5:
            world.changed(number, price=chance.randint(4, 6))
            expected[str(number)] = "update"
        elif not here and kind < 0.5:
            world.changed(number)
            expected[str(number)] = "create"
    world.jasper.dated = world.now
    head = await world.head()
    touched: set[str] = set()

    async def change_something(_request: httpx.Request) -> None:
        if chance.random() < 0.4 or len(touched) > 12:
            return
        number = chance.choice(ids)
        touched.add(str(number))
        if str(number) not in world.jasper.products:
            await world.told("created", world.changed(number, price=chance.randint(7, 9)))
        elif chance.random() < 0.4:
            await world.told("deleted", world.deleted(number), timestamp=world.now.isoformat())
        else:
            await world.told("updated", world.changed(number, price=chance.randint(7, 9)))
        world.jasper.dated = world.now

    world.jasper.before = change_something
    done = await world.reconcile()
    assert done.status is Status.SUCCEEDED, done.error
    assert await world.state() == world.jasper.products
    told = await world.told_by(head)
    # Of an entity that changed meanwhile either may have been first; of all others nothing is missing and nothing is too much.
    assert [(a, i) for a, i in told if i not in touched] == sorted(
        (a, i) for i, a in expected.items() if i not in touched
    )
    assert {i for _, i in told} <= set(expected)
    assert len(told) == len({i for _, i in told})
    before = await world.head()
    world.jasper.before = nothing_more
    await world.reconcile()
    assert await world.head() == before


async def test_a_hundred_pages_leave_nothing_behind(world: World) -> None:
    world.jasper.page_size = 1
    for number in range(1, 101):
        world.changed(number)
    await world.reconcile()
    assert await world.sql.fetchval("SELECT count(*) FROM reconciled_entities") == 0
    assert world.jasper.pages_read == list(range(1, 101))


async def test_only_the_newest_runs_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.reconciliation.run.KEPT", 3)
    for _ in range(6):
        await world.reconcile()
    assert await world.sql.fetchval("SELECT count(*) FROM reconciliations") <= 4


async def test_memory_does_not_grow_with_the_catalogue(world: World) -> None:
    world.jasper.page_size = 25

    async def peak(first: int, last: int) -> int:
        for number in range(first, last + 1):
            world.changed(number, description="x" * 4000)
        gc.collect()
        tracemalloc.start()
        assert (await world.reconcile()).created == last - first + 1
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    await peak(1, 10)  # whatever is made once
    small = await peak(11, 300)
    assert await peak(301, 1500) < 1.5 * small
