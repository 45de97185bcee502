"""The dashboard in a real browser: followed, filtered, slid, by keyboard, on a phone, in the dark, with hostile products.

With RECORD_SCREENSHOTS=1 the last test writes the pictures of the docs.
"""

import asyncio
import json
import os
import random
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, Route, expect
from sqlalchemy import insert

from app.clock import utc_now
from app.dashboard import feed
from app.db.engine import create_engine
from app.db.tables import callback_minutes
from app.intake.tally import BOUNDS, Outcome
from app.simulator import SimulatorOptions, running_simulator
from tests.http.browser import Scheme, Window, chromium, needs_chromium, window
from tests.http.conftest import SECRET, Receiver, Start
from tests.http.test_reconciliations import beside, ended

pytestmark = needs_chromium

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "app/simulator/builtin/product.jsonl"
HEADER = {"My-Header": "abc"}
RECORDING = bool(os.environ.get("RECORD_SCREENSHOTS"))

PAGES = [
    *("/", "/?range=week", "/dashboard/feed", "/dashboard/feed?q=nothing+like+it", "/dashboard/entities"),
    *("/dashboard/entities?type=brand", "/dashboard/entity?type=product&id=1007"),
    *("/dashboard/entity?type=product&id=1007&as_of=7", "/dashboard/deliveries", "/dashboard/quarantine"),
    *("/dashboard/unproven", "/dashboard/rejections", "/dashboard/registrations", "/dashboard/reconciliations"),
    *("/dashboard/registrations/product/rotate", "/dashboard/consumers", "/dashboard/consumers/search"),
]

SCHEMES: list[tuple[Scheme, Literal["everything", "contrast"], str]] = [
    ("light", "everything", "rgb(244, 246, 248)"),
    ("dark", "contrast", "rgb(14, 19, 24)"),
]

PICTURES: list[tuple[str, str, Scheme, int, int]] = [
    ("overview", "/", "light", 1280, 900),
    ("feed", "/dashboard/feed", "dark", 1280, 800),
    ("entity", "/dashboard/entity?type=product&id=1007", "light", 1280, 800),
    ("phone", "/", "dark", 360, 800),
]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


def url_of(receiver: Receiver) -> str:
    return str(receiver.http.base_url).rstrip("/")


async def tell(receiver: Receiver, event: str, **data: Any) -> None:
    response = await receiver.callback({"event": f"product.{event}", "data": data}, x_secret=SECRET, my_header="abc")
    assert response.status_code == 200, response.text


async def furnish(receiver: Receiver, database: str) -> None:
    """A receiver some time into its work: a catalogue that changes, readers, trouble of every kind."""
    chance = random.Random(7)
    catalogue = [json.loads(line) for line in CATALOG.read_text().splitlines()]
    for one in catalogue:
        await tell(receiver, "created", **one)
    for _ in range(40):
        one = chance.choice(catalogue)
        match chance.choice(("price", "qty", "status")):
            case "price":
                one["price"] = round(float(one["price"]) * chance.uniform(0.9, 1.1), 2)
            case "qty":
                one["inventory"]["qty"] = chance.randrange(200)
            case _:
                one["status"] = chance.choice(("enabled", "disabled"))
        await tell(receiver, "updated", **one)
    knife = catalogue[6]
    for price in (84.5, 79.9, 82.0):
        knife["price"] = price
        await tell(receiver, "updated", **knife)
    await tell(receiver, "deleted", id=1003)
    for number in (1, 2):
        await receiver.callback({"thing": {"key": number}}, x_secret=SECRET, my_header="abc")
    await receiver.callback({"event": "product.updated", "data": {"id": 1}}, my_header="abc")
    await receiver.callback({"event": "product.updated", "data": {"id": 1}}, x_secret="a guess")
    for name, start in (("search", 60), ("shop", "latest"), ("prices", "earliest")):
        await receiver.http.put(f"/v1/consumers/{name}", json={"start": start})
    await receiver.http.post("/v1/consumers/search/park", json={"sequence": 61, "reason": "the price is no number"})
    await remember(database, chance)


async def trouble(receiver: Receiver) -> None:
    """Reconciliations that went wrong or are called for, and a retention that has overtaken a consumer."""
    await receiver.http.put("/v1/consumers/late", json={"start": 1})
    await receiver.sql.execute("UPDATE retention SET oldest_after = 5")
    await receiver.sql.execute(
        "INSERT INTO attendance VALUES ('category', now(), now() - interval '5 hours', now() - interval '3 hours')"
    )
    await receiver.sql.execute(
        "INSERT INTO reconciliations (id, entity_type, status, force, compared, created, updated, deleted, error,"
        " started_at, finished_at, first_sequence, stage) SELECT gen_random_uuid(), kind, status, false, 100000, 12, 340, 7,"
        " error, now() - interval '2 hours', now() - interval '1 hour', 1, 'delete' FROM (VALUES"
        " ('product', 'succeeded', NULL), ('brand', 'needs_confirmation', '9 of 12 are gone: `--force` deletes them'),"
        " ('category', 'failed', 'page 7: Jasper answered 500')) AS one (kind, status, error)"
    )
    await receiver.sql.execute(
        "UPDATE registrations SET rotating_since = now(), last_error = 'no', last_error_at = now()"
    )


async def remember(database: str, chance: random.Random) -> None:
    """Answers of the last week, as several replicas would have counted them."""
    now = utc_now().replace(second=0, microsecond=0)
    rows = []
    for minutes in [*range(1, 61), *range(65, 7 * 24 * 60, 45)]:
        busy = 40 + 25 * abs(180 - minutes % 360) / 180
        for outcome, share in (
            (Outcome.ACCEPTED, 1.0), (Outcome.DUPLICATE, 0.06), (Outcome.QUARANTINED, 0.01), (Outcome.PUT_OFF, 0.0)
        ):  # fmt: skip
            latencies = [0] * (len(BOUNDS) + 1)
            for _ in range(int(busy * share * chance.uniform(0.6, 1.4))):
                latencies[min(len(BOUNDS), max(0, int(chance.gauss(3, 1.2))))] += 1
            if sum(latencies):
                latencies[chance.choice((6, 7, 8))] += 1
                at = now - timedelta(minutes=minutes)
                rows.append({"minute": at, "entity_type": "product", "outcome": str(outcome),
                             "count": sum(latencies), "latencies": latencies})  # fmt: skip
    engine = create_engine(database)
    async with engine.begin() as connection:
        await connection.execute(insert(callback_minutes), rows)
    await engine.dispose()


@pytest.fixture
async def furnished(start: Start, database: str) -> AsyncIterator[Receiver]:
    async with running_simulator(SimulatorOptions()) as simulator:
        jasper = {
            "jasper_api_url": f"{simulator.base_url}/api/v1",
            "jasper_api_token": simulator.token,
            "public_url": "http://127.0.0.1:9",
        }
        async with start(jasper_webhook_headers=HEADER, **jasper) as receiver:
            async with asyncio.timeout(20):
                while "registered" not in (await receiver.http.get("/v1/webhooks")).text:
                    await asyncio.sleep(0.02)
            await furnish(receiver, database)
            yield receiver


async def shown(opened: Window) -> list[int]:
    """The sequences in the list of events, from the top."""
    rows = opened.page.locator("[data-feed] > li")
    return [int(one) for one in await rows.evaluate_all("rows => rows.map(row => row.dataset.sequence)")]


async def test_a_newcomer_gets_to_a_filtered_live_feed_with_the_keyboard_alone(
    receiver: Receiver, browser: Browser
) -> None:
    for number in (1, 2):
        await tell(receiver, "created", id=number, name=f"Kettle {number}")
    async with window(browser, url_of(receiver)) as opened:
        page, keys = opened.page, opened.page.keyboard
        await page.goto(opened.url)
        await keys.type("an-admin-key-of-some-length")  # the field has the focus
        await keys.press("Enter")
        await page.get_by_role("heading", name="Overview").wait_for()
        await keys.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        link = page.get_by_role("link", name="Live feed")
        for _ in range(4):
            await keys.press("Tab")
            if await link.evaluate("link => link === document.activeElement"):
                break
        await keys.press("Enter")
        await page.get_by_text("Live", exact=True).wait_for()
        assert await shown(opened) == [2, 1]

        await page.get_by_label("Changed field").focus()
        await keys.type("price")
        await keys.press("Enter")
        await page.wait_for_url("**changed=price**")
        await page.get_by_text("Live", exact=True).wait_for()
        assert await shown(opened) == []
        await tell(receiver, "updated", id=1, name="Kettle 1", price=49.0)
        await tell(receiver, "updated", id=2, name="Kettle, second")
        await tell(receiver, "updated", id=1, name="Kettle 1", price=47.5)
        await page.get_by_text("47.5").first.wait_for()
        assert await shown(opened) == [5, 3]
        summary = page.locator("[data-feed] summary").first
        await summary.focus()
        await keys.press("Enter")
        await expect(page.get_by_role("link", name="Its state then").first).to_be_visible()


async def test_the_feed_pauses_resumes_and_comes_back_without_a_gap_or_a_repetition(
    receiver: Receiver, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_LIFE", 0.4)  # the stream breaks off again and again, and the browser comes back
    await tell(receiver, "created", id=1)
    async with window(browser, url_of(receiver)) as opened:
        await opened.log_in()
        await opened.open("/dashboard/feed")
        page = opened.page
        await page.get_by_text("Live", exact=True).wait_for()
        for number in range(2, 8):
            await tell(receiver, "created", id=number)
            await asyncio.sleep(0.3)  # so that some come while there is no stream
        await expect(page.locator("[data-feed] > li")).to_have_count(7)
        await page.get_by_role("button", name="Pause").click()
        await page.get_by_text("Paused").wait_for()
        await tell(receiver, "created", id=8)
        asked = len([one for one in opened.notebook.requests if "/feed/stream" in one])
        assert await shown(opened) == [7, 6, 5, 4, 3, 2, 1]
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator("[data-feed] > li")).to_have_count(8)
        assert await shown(opened) == [8, 7, 6, 5, 4, 3, 2, 1]
        streams = [one for one in opened.notebook.requests if "/feed/stream" in one]
        assert asked > 1
        assert len(streams) > asked


async def test_the_feed_survives_a_receiver_that_is_gone_for_a_while(
    receiver: Receiver, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser gives a stream up for good when the answer is none; then the page has to come back by itself."""
    monkeypatch.setattr(feed, "_LIFE", 0.5)
    await tell(receiver, "created", id=1)
    refused = asyncio.Event()

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503, body="")
        refused.set()

    async with window(browser, url_of(receiver)) as opened:
        page = opened.page
        await opened.log_in()
        await opened.open("/dashboard/feed")
        await page.get_by_text("Live", exact=True).wait_for()
        await page.route("**/feed/stream*", refuse)
        await refused.wait()
        await expect(page.locator("[data-feed-status]")).to_have_text("Reconnecting …")
        await tell(receiver, "created", id=2)
        monkeypatch.setattr(feed, "_LIFE", 600.0)
        await page.unroute("**/feed/stream*")
        await expect(page.locator("[data-feed] > li")).to_have_count(2)
        await page.get_by_text("Live", exact=True).wait_for()
        assert any("503" in one for one in opened.notebook.complaints)
        opened.notebook.complaints.clear()


async def test_an_entity_can_be_slid_back_in_time_with_the_keyboard(receiver: Receiver, browser: Browser) -> None:
    for price in (10, 11, 12, 13):
        await tell(receiver, "updated", id=7, price=price, updated_at=f"2026-11-23T10:00:{price}Z")
    async with window(browser, url_of(receiver)) as opened:
        await opened.log_in()
        await opened.open("/dashboard/entity?type=product&id=7")
        page = opened.page
        state, slider = page.get_by_role("region", name="Data"), page.get_by_role("slider", name="As of event")
        await expect(state).to_contain_text('"price": 13')
        await slider.focus()
        for price, sequence in ((12, 3), (11, 2), (10, 1)):
            await page.keyboard.press("ArrowLeft")
            await expect(state).to_contain_text(f'"price": {price}')
            assert (await slider.get_attribute("aria-valuetext") or "").startswith(f"{sequence}, 2")
            assert page.url.endswith(f"as_of={sequence}")
        await page.reload()
        await expect(state).to_contain_text('"price": 10')


async def test_a_hostile_product_runs_nothing_and_breaks_nothing(receiver: Receiver, browser: Browser) -> None:
    """The window's end checks that the policy had nothing to forbid."""
    attack = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"'`${window.hit = 1}"
    await tell(receiver, "created", id=1, name=attack, big="x" * 4_500_000)
    async with window(browser, url_of(receiver)) as opened:
        await opened.log_in()
        await opened.open("/dashboard/feed")
        await opened.page.get_by_text("Live", exact=True).wait_for()
        await tell(
            receiver, "updated", id=1, name=f"{attack} again", big="x" * 4_500_000
        )  # this one comes by the stream
        await expect(opened.page.locator("[data-feed] > li")).to_have_count(2)
        await expect(opened.page.locator("[data-feed] del").first).to_contain_text("<script>")
        [delivery, *_] = (await receiver.http.get("/v1/deliveries")).json()["deliveries"]
        for path in (
            "/dashboard/entity?type=product&id=1",
            "/dashboard/entities",
            f"/dashboard/deliveries/{delivery['id']}",
        ):
            await opened.open(path)
            await expect(opened.page.locator("body")).to_contain_text("<script>")
            assert await opened.page.evaluate("window.hit === undefined")
            assert await opened.page.locator("main script, main img").count() == 0


@pytest.mark.timeout(300)
async def test_axe_finds_nothing_wrong_with_any_page(furnished: Receiver, browser: Browser) -> None:
    """In the light by all rules; in the dark by that of contrast, as nothing else differs."""
    await trouble(furnished)
    gone = ["/dashboard/entity?type=product&id=1002&as_of=1", "/dashboard/feed?before=3", "/dashboard/consumers/late"]
    [delivery, *_] = (await furnished.http.get("/v1/deliveries?status=quarantined")).json()["deliveries"]
    wrong: dict[tuple[str, str], list[str]] = {}
    for scheme, of, ground in SCHEMES:
        async with window(browser, url_of(furnished), scheme=scheme) as opened:
            await opened.page.goto(opened.url)
            wrong[scheme, "login"] = await opened.violations(of=of)
            await opened.log_in()
            for path in [*PAGES, *gone, f"/dashboard/deliveries/{delivery['id']}", "/dashboard/nothing"]:
                await opened.page.goto(opened.url + path)
                await opened.page.evaluate(
                    "[...document.querySelectorAll('.event details')].slice(0, 2).forEach(one => { one.open = true; })"
                )
                wrong[scheme, path] = await opened.violations(of=of)
            await opened.open("/dashboard/quarantine")
            await opened.page.get_by_role("button", name="Try it").click()
            await opened.page.get_by_role("heading", name="How they would be read").wait_for()
            wrong[scheme, "trial"] = await opened.violations(of=of)
            await opened.open("/dashboard/reconciliations")
            assert await opened.page.locator(".notice.warn").count() == 2
            await opened.page.get_by_role("button", name="Reconcile brand and delete what is gone").click()
            await opened.page.get_by_role("heading", name="Reconcile and delete what is gone: brand?").wait_for()
            wrong[scheme, "confirm"] = await opened.violations(of=of)
            assert await opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
            opened.notebook.complaints[:] = [
                one for one in opened.notebook.complaints if "404" not in one and "410" not in one
            ]
    assert {place: found for place, found in wrong.items() if found} == {}


async def test_pages_of_an_empty_receiver_say_what_comes_next(receiver: Receiver, browser: Browser) -> None:
    async with window(browser, url_of(receiver)) as opened:
        await opened.log_in()
        for path in ("/", "/dashboard/feed", "/dashboard/entities", "/dashboard/deliveries", "/dashboard/quarantine",
                     "/dashboard/unproven", "/dashboard/rejections", "/dashboard/reconciliations",
                     "/dashboard/consumers"):  # fmt: skip
            await opened.open(path)
            empty = opened.page.locator(".empty:visible").first
            assert len(await empty.inner_text()) > 40, path
            assert await opened.violations() == []


async def test_every_page_fits_a_phone(furnished: Receiver, browser: Browser) -> None:
    await trouble(furnished)
    [delivery, *_] = (await furnished.http.get("/v1/deliveries")).json()["deliveries"]
    async with window(browser, url_of(furnished), width=360, height=740) as opened:
        await opened.log_in()
        for path in [*PAGES, f"/dashboard/deliveries/{delivery['id']}"]:
            await opened.open(path)
            assert await opened.page.evaluate("document.documentElement.scrollWidth") <= 360, path


async def test_without_scripts_everything_but_the_live_parts_works(furnished: Receiver, browser: Browser) -> None:
    async with window(browser, url_of(furnished), scripts=False) as opened:
        await opened.log_in()
        page = opened.page
        await page.get_by_role("link", name="Live feed").click()
        await page.get_by_label("Action").select_option("delete")
        await page.get_by_role("button", name="Filter").click()
        await page.get_by_text("1003").wait_for()
        assert await page.get_by_role("button", name="Pause").count() == 0
        await page.get_by_role("link", name="Quarantine").click()
        await page.get_by_label("Mapping").fill('{"entity_id": ["/thing/key"]}')
        await page.get_by_role("button", name="Read all again with it").click()
        await page.get_by_text("2 read again: 2 accepted").wait_for()
        await page.get_by_role("button", name="Log out").click()
        await page.get_by_label("API key").wait_for()


async def test_the_overview_keeps_itself_fresh_until_it_is_paused(receiver: Receiver, browser: Browser) -> None:
    async with window(browser, url_of(receiver)) as opened:
        await opened.page.clock.install()
        await opened.log_in()
        page = opened.page
        position = page.locator(".tiles dd").first
        await expect(position).to_have_text("0")
        await page.locator("main").focus()
        await tell(receiver, "created", id=1)
        await page.clock.run_for(10_000)
        await expect(position).to_have_text("1")
        await page.get_by_role("button", name="Pause updates").click()
        await tell(receiver, "created", id=2)
        await page.clock.run_for(60_000)
        await expect(page.get_by_role("button", name="Pause updates")).to_have_attribute("aria-pressed", "true")
        await expect(position).to_have_text("1")


@pytest.mark.parametrize("path", ["/", "/dashboard/reconciliations"])
async def test_a_page_that_cannot_be_updated_says_since_when_until_it_can(
    receiver: Receiver, browser: Browser, path: str
) -> None:

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503, body="")

    async def break_off(route: Route) -> None:
        await route.abort()

    async with window(browser, url_of(receiver)) as opened:
        page = opened.page
        await page.clock.install()
        await opened.log_in()
        await opened.open(path)
        await page.locator("main").focus()
        status = page.locator("main").get_by_role("status")
        await expect(status).to_have_text("")
        await page.route(opened.url + path, refuse)
        await page.clock.run_for(10_000)
        await expect(status).to_have_text(re.compile(r"^Not updated since \d\d:\d\d:\d\d UTC$"))
        told = await status.inner_text()
        assert await opened.violations() == []
        await page.route(opened.url + path, break_off)  # from now on instead of the other
        async with page.expect_event("requestfailed"):
            await page.clock.run_for(10_000)
        await expect(status).to_have_text(told)
        await page.unroute(opened.url + path)
        await page.clock.run_for(10_000)
        await expect(status).to_have_text("")
        opened.notebook.complaints[:] = [one for one in opened.notebook.complaints if "Failed to load" not in one]


@pytest.mark.parametrize("path", ["/", "/dashboard/reconciliations"])
async def test_a_page_that_updates_itself_shows_the_login_once_the_session_is_over(
    receiver: Receiver, browser: Browser, path: str
) -> None:
    async with window(browser, url_of(receiver)) as opened:
        await opened.page.clock.install()
        await opened.log_in()
        await opened.open(path)
        await opened.page.locator("main").focus()
        await opened.page.context.clear_cookies()
        await opened.page.clock.run_for(10_000)
        await expect(opened.page.get_by_label("API key")).to_be_visible()


async def test_a_reconciliation_is_begun_with_the_keyboard_and_its_page_keeps_itself_fresh(
    start: Start, browser: Browser
) -> None:
    options = SimulatorOptions(rate=0, page_size=7)
    async with (
        beside(start, options, reconcile_rate=5) as (_, receiver),
        window(browser, url_of(receiver)) as opened,
    ):
        page, keys = opened.page, opened.page.keyboard
        await page.clock.install()
        await opened.log_in()
        await opened.open("/dashboard/reconciliations")
        table = page.get_by_role("region", name="Reconciliations, newest first")
        await expect(page.locator(".empty-title")).to_have_text("Nothing was reconciled yet")
        await page.get_by_label("Entity type").focus()
        for key in ("Tab", "Space", "Tab", "Enter"):  # with the box that asks for a second word
            await keys.press(key)
        await page.get_by_role("heading", name="Reconcile and delete what is gone: product?").wait_for()
        await page.get_by_role("link", name="Leave it").focus()
        await keys.press("Enter")
        await expect(page.locator(".empty-title")).to_have_text("Nothing was reconciled yet")
        await page.get_by_label("Entity type").focus()
        for key in ("Tab", "Tab", "Enter"):
            await keys.press(key)
        await expect(page.locator(".notice")).to_have_text("The reconciliation of product is running.")
        await expect(table).to_contain_text("running for")
        [begun] = (await receiver.http.get("/v1/reconciliations")).json()["reconciliations"]
        done = await ended(receiver, f"/v1/reconciliations/{begun['id']}")
        await page.locator("main").focus()
        await page.clock.run_for(10_000)
        await expect(table).to_contain_text(f"succeeded{done['compared']}{done['created']}00")


@pytest.mark.long
async def test_pictures_for_the_docs(furnished: Receiver, browser: Browser, tmp_path: Path) -> None:
    directory = ROOT / "docs/images" if RECORDING else tmp_path
    directory.mkdir(exist_ok=True)
    for name, path, scheme, width, height in PICTURES:
        async with window(browser, url_of(furnished), scheme=scheme, width=width, height=height) as opened:
            await opened.log_in()
            await opened.open(path)
            if name == "feed":
                await opened.page.get_by_text("Live", exact=True).wait_for()
            picture = directory / f"dashboard-{name}.png"
            await opened.page.screenshot(path=picture)
            assert 10_000 < picture.stat().st_size < 200_000
