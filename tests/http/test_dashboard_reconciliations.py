"""Reconciliations at the dashboard: begun, watched, offered where one is called for, and never forced by a slip."""

import asyncio
import re

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access.keys import Scope
from app.domain.values import EntityType
from app.reconciliation import store
from app.reconciliation.store import Reconciliation, Status
from app.simulator import Simulator, SimulatorOptions
from tests.http.conftest import Receiver, Start
from tests.http.dashboard import Visitor, a_key, text_of, visiting
from tests.http.test_reconciliations import beside, catalogue

PATH = "/dashboard/reconciliations"
FORMS = f'method="post" action="{PATH}"'


async def until(visitor: Visitor, words: str) -> str:
    """What the page says, once it says so."""
    async with asyncio.timeout(20):
        while not re.search(words, said := text_of(await visitor.get(PATH))):
            await asyncio.sleep(0.02)
    return said


async def events(receiver: Receiver) -> list[str]:
    found = (await receiver.http.get("/v1/events", params={"limit": 1000})).json()["events"]
    return [event["type"] for event in found]


async def away(receiver: Receiver) -> None:
    await receiver.sql.execute(
        "INSERT INTO attendance VALUES ('product', now(), '2026-11-24 08:00Z', '2026-11-24 10:00Z')"
        " ON CONFLICT (entity_type) DO UPDATE SET away_from = excluded.away_from, away_until = excluded.away_until"
    )


async def one_waits_for_a_word(simulator: Simulator, visitor: Visitor) -> str:
    """Reconcile, have Jasper lose a product unheard, reconcile again: what the page says once that has stopped."""
    await visitor.log_in()
    await visitor.do(PATH, entity_type="product")
    await until(visitor, "succeeded")
    await simulator.change(kind="gone", entity_type="product")
    await visitor.do(PATH, entity_type="product")
    return await until(visitor, "needs confirmation")


async def test_one_is_begun_by_the_form_and_watched_on_the_page(start: Start) -> None:
    async with (
        beside(start, SimulatorOptions(rate=0, page_size=7), reconcile_rate=5) as (simulator, receiver),
        visiting(receiver) as visitor,
    ):
        await visitor.log_in()
        assert "Nothing was reconciled yet" in await visitor.get(PATH)
        assert await visitor.do(PATH, entity_type="product") == "The reconciliation of product is running."
        said = await until(visitor, r"product running 7 7 0 0 running for \d+ s")
        again = await visitor.send(PATH, entity_type="product")
        assert (again.status_code, "being reconciled already" in again.text) == (409, True)
        await simulator.change(kind="gone", entity_type="product")
        count = len(catalogue(simulator))
        said = await until(visitor, "succeeded")
        assert re.search(rf"product succeeded {count + 1} {count + 1} 0 0 2026|product succeeded {count} ", said), said


async def test_what_is_gone_is_deleted_only_after_a_second_word(start: Start) -> None:
    async with (
        beside(start, SimulatorOptions(rate=0), reconcile_most_deleted=0) as (simulator, receiver),
        visiting(receiver) as visitor,
    ):
        said = await one_waits_for_a_word(simulator, visitor)
        assert "Product : the last one stopped, and deleted nothing." in said
        assert "the last reconciliation stopped" in text_of(await visitor.get("/"))

        question = await visitor.send(PATH, entity_type="product", force="true")
        assert question.status_code == 200
        assert "Reconcile and delete what is gone: product?" in question.text
        assert "product.deleted" not in await events(receiver)
        assert text_of(await visitor.get(PATH)).count("2026-") == said.count("2026-"), "nothing was begun"

        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', question.text.partition("<h1>")[2]))
        del fields["csrf"]
        await visitor.do(PATH, **fields)
        said = await until(visitor, "product succeeded .* product needs confirmation")
        assert "stopped" not in said
        assert (await events(receiver)).count("product.deleted") == 1


async def test_one_that_ends_while_the_page_is_made_does_not_contradict_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    latest = store.latest

    async def ended_since(engine: AsyncEngine) -> dict[EntityType, Reconciliation]:
        return {name: one.model_copy(update={"status": Status.RUNNING}) for name, one in (await latest(engine)).items()}

    async with (
        beside(start, SimulatorOptions(rate=0), reconcile_most_deleted=0) as (simulator, receiver),
        visiting(receiver) as visitor,
    ):
        await one_waits_for_a_word(simulator, visitor)
        monkeypatch.setattr(store, "latest", ended_since)
        assert "Product : the last one stopped" in text_of(await visitor.get(PATH))


async def test_one_is_offered_where_callbacks_may_be_lost_until_it_has_made_good_for_that(start: Start) -> None:
    async with beside(start, SimulatorOptions(rate=0)) as (_, receiver), visiting(receiver) as visitor:
        await visitor.log_in()
        assert "some may be lost" not in await visitor.get(PATH)
        await away(receiver)
        page = await visitor.get(PATH)
        assert "no callback could be taken from 2026-11-24 08:00:00 to 2026-11-24 10:00:00 UTC" in text_of(page)
        assert page.count(FORMS) == 2
        assert "no callback could be taken from 2026-11-24 08:00:00" in text_of(await visitor.get("/"))
        await visitor.do(PATH, entity_type="product")
        assert "some may be lost" not in await until(visitor, "succeeded")


async def test_who_only_reads_sees_them_and_is_offered_none(start: Start, database: str) -> None:
    async with beside(start, SimulatorOptions(rate=0)) as (_, receiver), visiting(receiver) as visitor:
        await away(receiver)
        await visitor.log_in(await a_key(database, Scope.READ))
        page = await visitor.get(PATH)
        assert "some may be lost" in page
        assert FORMS not in page
        assert (await visitor.send(PATH, entity_type="product")).status_code == 403
        assert (await receiver.http.get("/v1/reconciliations")).json() == {"reconciliations": []}


async def test_what_fails_says_so_and_words_of_jasper_stay_text(start: Start) -> None:
    options = SimulatorOptions(rate=0)
    async with beside(start, options, jasper_api_token="wrong") as (_, receiver), visiting(receiver) as visitor:
        await visitor.log_in()
        await visitor.do(PATH, entity_type="product")
        assert "JASPER_API_TOKEN" in await until(visitor, "product failed")
        await receiver.sql.execute("UPDATE reconciliations SET error = '<script>alert(1)</script>` & `<b>'")
        page = await visitor.get(PATH)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;<code> &amp; </code>&lt;b&gt;" in page
        assert "<script>alert" not in page + await visitor.get("/")


@pytest.mark.parametrize("entity_type", ["", "shoe", "<script>"])
async def test_a_type_that_there_is_not_is_refused(receiver: Receiver, entity_type: str) -> None:
    async with visiting(receiver) as visitor:
        await visitor.log_in()
        response = await visitor.send(PATH, entity_type=entity_type)
        assert response.status_code == 400
        assert "<script>" not in response.text


async def test_without_a_jasper_there_is_nothing_to_compare_with(receiver: Receiver) -> None:
    async with visiting(receiver) as visitor:
        await visitor.log_in()
        page = await visitor.get(PATH)
        assert "set JASPER_API_URL" in page
        assert FORMS not in page
        assert (await visitor.send(PATH, entity_type="product")).status_code == 409
