"""What the pages of the dashboard show and do, and that whatever Jasper sends stays text."""

import asyncio
import html
import json
import re
import threading
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access.keys import Scope, revoke_key
from app.clock import utc_now
from app.dashboard import charts, feed, figures, queries
from app.dashboard.presentation import MOST_SHOWN
from app.db.engine import create_engine
from app.db.sealed import SealedCounts
from app.errors import DatabaseUnavailableError
from app.feed.filters import Filters
from app.intake import tally
from app.simulator import SimulatorOptions, running_simulator
from tests.http.conftest import PRODUCT, SECRET, Receiver, Start
from tests.http.dashboard import Visitor, a_key, stream, text_of, visiting
from tests.http.sse import EventSource, Message

SCRIPT = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture
async def visitor(receiver: Receiver) -> AsyncIterator[Visitor]:
    async with visiting(receiver) as visitor:
        await visitor.log_in()
        yield visitor


def product(number: int, **members: object) -> dict[str, object]:
    return {"event": "product.updated", "data": {"id": number, **members}}


async def deliveries(receiver: Receiver, **parameters: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = (await receiver.http.get("/v1/deliveries", params=parameters)).json()["deliveries"]
    return found


async def test_what_jasper_sends_is_shown_as_text_on_every_page(receiver: Receiver, visitor: Visitor) -> None:
    hostile = {"event": "product.updated", "data": {"id": SCRIPT, SCRIPT: SCRIPT, "name": SCRIPT}}
    await receiver.callback(hostile, x_secret=SECRET, x_other=SCRIPT)
    hostile["data"] |= {SCRIPT: "other", "name": "other"}  # type: ignore[operator]  # it is a dictionary
    await receiver.callback(hostile)
    await receiver.callback({SCRIPT: SCRIPT})
    await receiver.http.post("/callbacks/products", content=b"{}", headers={f"x-{'a' * 10}": SCRIPT})
    await receiver.http.put("/v1/consumers/search")
    await receiver.http.post("/v1/consumers/search/park", json={"sequence": 1, "reason": SCRIPT})
    kept = await deliveries(receiver)
    quarantined = await deliveries(receiver, status="quarantined")
    assert len(kept) == 3
    assert len(quarantined) == 1
    pages = {
        "/dashboard/feed": 2,
        f"/dashboard/feed?q={httpx.QueryParams({'q': SCRIPT})['q'][:20]}&entity_id=%3Cscript%3E": 1,
        "/dashboard/entities": 1,
        "/dashboard/consumers/search": 1,
        "/dashboard/quarantine": 0,
        "/dashboard/rejections": 0,
        **{f"/dashboard/deliveries/{one['id']}": 1 for one in kept},
    }
    for path, least in pages.items():
        page = await visitor.get(path)
        assert "<script>alert" not in page, path
        assert "<img src=x" not in page, path
        assert page.count("&lt;script&gt;") >= least, path
    entity = await visitor.get("/dashboard/entity", {"type": "product", "id": SCRIPT})
    assert "<script>alert" not in entity
    assert entity.count("&lt;script&gt;alert") > 5
    assert SECRET not in entity
    tried = await visitor.send("/dashboard/quarantine/try", mapping=json.dumps({"entity_id": [f"/{SCRIPT}"]}))
    assert tried.status_code == 200
    assert "<script>alert" not in tried.text
    for field, value in (("mapping", SCRIPT), ("mapping", '{"<script>": []}')):
        assert "<script>" not in (await visitor.send("/dashboard/quarantine/try", **{field: value})).text


async def test_a_payload_of_megabytes_is_shown_in_part_and_given_whole(receiver: Receiver, visitor: Visitor) -> None:
    name = "<script>" + "ü" * 2_400_000
    body = json.dumps(product(1001, name=name, price=1), ensure_ascii=False).encode()
    assert len(body) > 4_800_000
    await receiver.callback(body, x_secret=SECRET)
    await receiver.callback(json.dumps(product(1001, name=name + "!", price=2), ensure_ascii=False).encode())
    [first, _] = await deliveries(receiver)
    entity, evidence = "/dashboard/entity?type=product&id=1001", f"/dashboard/deliveries/{first['id']}"
    for path in ("/", "/dashboard/feed", "/dashboard/entities", entity, evidence):
        page = await visitor.get(path)
        assert len(page) < 10 * MOST_SHOWN, path
        assert "<script>" not in page
        assert ("only the beginning is shown" in page) == (path in {entity, evidence})
    whole = await visitor.http.get(f"/dashboard/deliveries/{first['id']}/body")
    assert whole.content == body
    assert whole.headers["content-disposition"].startswith("attachment")
    data = await visitor.http.get("/dashboard/entity/data?type=product&id=1001&as_of=1")
    assert data.json() == {"id": 1001, "name": name, "price": 1}
    assert data.headers["content-disposition"].startswith("attachment")
    assert data.headers["content-security-policy"].startswith("default-src 'none'")


async def test_a_nesting_too_deep_to_be_laid_out_breaks_no_page(receiver: Receiver, visitor: Visitor) -> None:
    deep = "[" * 5000 + "]" * 5000
    await receiver.callback(f'{{"event": "product.updated", "data": {{"id": 7, "deep": {deep}}}}}'.encode())
    [delivery] = await deliveries(receiver)
    assert deep in html.unescape(await visitor.get(f"/dashboard/deliveries/{delivery['id']}"))
    tried = await visitor.send("/dashboard/quarantine/try", mapping="[" * 10_000)
    assert tried.status_code == 400
    assert "it is no JSON" in tried.text


async def test_numbers_and_escapes_are_shown_as_they_came(receiver: Receiver, visitor: Visitor) -> None:
    await receiver.callback(
        b'{"event": "product.created", "data": {"id": 7, "price": 1.10, "big": 1e400, "odd": "\\ud800"}}'
    )
    await receiver.callback(
        b'{"event": "product.updated", "data": {"id": 7, "price": 1.250, "big": 1e401, "odd": "\\u0000"}}'
    )
    said = text_of(await visitor.get("/dashboard/entity?type=product&id=7"))
    for value in ("1.10 ", "1.250 ", "1e400", "1e401", '"\\ud800"', '"\\u0000"'):
        assert value in said, said


async def test_an_entity_shows_each_difference_and_its_state_at_any_event(receiver: Receiver, visitor: Visitor) -> None:
    for price in (1, 2, 3):
        await receiver.callback(product(7, price=price, updated_at=f"2026-11-23T10:00:0{price}Z"))
    await receiver.callback({"event": "product.deleted", "data": {"id": 7, "updated_at": "2026-11-23T10:00:09Z"}})
    page = await visitor.get("/dashboard/entity?type=product&id=7")
    assert re.findall(r"<del>(\d)</del>", page) == ["2", "1"]
    assert re.findall(r"<ins>(\d)</ins>", page) == ["3", "2"]
    assert "deleted then" in text_of(page)
    state = r'"price": (\d)'
    for sequence in (1, 2, 3):
        then = await visitor.get(f"/dashboard/entity?type=product&id=7&as_of={sequence}")
        assert re.findall(state, html.unescape(then)) == [str(sequence)]
    assert "had not been seen" in text_of(await visitor.get("/dashboard/entity?type=product&id=7&as_of=0"))


async def test_a_long_history_is_shown_page_by_page(receiver: Receiver, visitor: Visitor) -> None:
    for price in range(70):
        await receiver.callback(product(7, price=price))
    address: str | None = "/dashboard/entity?type=product&id=7"
    seen: list[int] = []
    while address:
        page = await visitor.get(address)
        seen += map(int, re.findall(r'class="muted seq">(\d+)<', page))
        found = re.search(r'href="([^"]+)">Earlier events', page)
        address = found and html.unescape(found.group(1))
    assert seen == list(range(70, 0, -1))


async def test_deliveries_are_listed_newest_first_by_status_and_page_by_page(
    receiver: Receiver, visitor: Visitor
) -> None:
    for number in range(60):
        await receiver.callback(product(number))
    await receiver.callback({"nothing": "to read"})
    await receiver.callback(product(3, updated_at="2026-11-23T10:00:00Z"))
    await receiver.callback(product(3, updated_at="2026-11-23T10:00:00Z"))
    kept = [one["id"] for one in await deliveries(receiver)]

    async def listed(status: str) -> list[str]:
        address, found = f"/dashboard/deliveries?status={status}", []
        while address:
            page = await visitor.get(address)
            found += re.findall(r'<th scope="row"><a href="/dashboard/deliveries/([^"]+)"', page)
            more = re.search(r'href="([^"]+)">Earlier ones', page)
            address = html.unescape(more.group(1)) if more else ""
        return found

    assert await listed("") == kept[::-1]
    assert await listed("quarantined") == [kept[60]]
    assert await listed("duplicate") == [kept[62]]
    assert await listed("accepted") == [one for one in kept[::-1] if one not in {kept[60], kept[62]}]


async def test_a_delivery_shows_its_evidence(receiver: Receiver, visitor: Visitor) -> None:
    await receiver.callback(PRODUCT)
    [kept] = await deliveries(receiver)
    said = text_of(await visitor.get(f"/dashboard/deliveries/{kept['id']}"))
    for evidence in (
        "proof of the secret header:x-secret",
        "entity id /data/id",
        "action /event",
        "accepted",
        '"Hoodie"',
    ):
        assert evidence in said
    assert SECRET not in said


async def test_a_mapping_is_tried_without_a_trace_and_then_reads_what_was_quarantined(
    receiver: Receiver, visitor: Visitor
) -> None:
    for number in (1, 2):
        await receiver.callback({"thing": {"key": number}, "what": "changed"})
    mapping = '{"entity_id": ["/thing/key"], "data": ["/thing"]}'
    before = await receiver.counts()
    tried = await visitor.send("/dashboard/quarantine/try", mapping=mapping)
    assert tried.status_code == 200
    assert re.findall(r"reads (\d) created or updated", text_of(tried.text)) == ["2", "1"]
    still = await visitor.send("/dashboard/quarantine/try", mapping="{}")
    assert text_of(still.text).count("still not") == 2
    assert await receiver.counts() == before
    assert len(await deliveries(receiver, status="quarantined")) == 2

    told = await visitor.do("/dashboard/quarantine/reprocess", mapping=mapping)
    assert told == "2 read again: 2 accepted, 0 duplicate, 0 quarantined."
    ids = [event["entity_id"] for event in (await receiver.http.get("/v1/events")).json()["events"]]
    assert ids == ["1", "2"]
    assert "Nothing is quarantined" in await visitor.get("/dashboard/quarantine")


@pytest.mark.parametrize("mapping", ["{", "[]", '{"price": ["/a"]}', '{"data": ["header:x"]}', '{"entity_id": ["id"]}'])
async def test_a_mapping_that_the_setting_would_not_take_is_not_tried_either(visitor: Visitor, mapping: str) -> None:
    for path in ("/dashboard/quarantine/try", "/dashboard/quarantine/reprocess"):
        response = await visitor.send(path, mapping=mapping)
        assert response.status_code == 400
        assert "mapping" in response.text


async def test_one_delivery_is_read_again(receiver: Receiver, visitor: Visitor) -> None:
    await receiver.callback({"nothing": "to read"})
    [kept] = await deliveries(receiver)
    told = await visitor.do(f"/dashboard/deliveries/{kept['id']}/reprocess")
    assert told.startswith("Read again. It is quarantined: ")
    assert "Read again" not in await visitor.get(f"/dashboard/deliveries/{kept['id']}"), "it is told once"


async def test_what_was_kept_apart_is_released(start: Start) -> None:
    custom = {"My-Header": "abc"}
    wrong = {"jasper_webhook_headers": custom, "jasper_signing_secret_location": "header:X-Wrong"}
    async with start(**wrong) as receiver, visiting(receiver) as visitor:
        await receiver.callback(PRODUCT, x_secret=SECRET, my_header="abc")
        await visitor.log_in()
        page = text_of(await visitor.get("/dashboard/unproven"))
        assert "my-header" in page
        assert "/data: object" in page
        assert "Hoodie" not in page
        assert (await visitor.do("/dashboard/unproven/release")).endswith("1 still unproven.")
    right = wrong | {"jasper_signing_secret_location": "header:X-Secret"}
    async with start(secret=None, **right) as receiver, visiting(receiver) as visitor:
        await visitor.log_in()
        told = await visitor.do("/dashboard/unproven/release")
        assert told == "Tried again: 1 accepted, 0 duplicate, 0 quarantined, 0 still unproven."
        assert await receiver.counts() == (1, 1)
        assert "Nothing is kept apart" in await visitor.get("/dashboard/unproven")


async def test_refusals_are_listed_with_names_and_without_values(receiver: Receiver, visitor: Visitor) -> None:
    await receiver.callback(PRODUCT, x_secret="a guess", x_more="a value")
    page = text_of(await visitor.get("/dashboard/rejections"))
    assert "the signing secret is nowhere in the callback" in page
    assert "x-more" in page
    assert "a value" not in page
    assert "a guess" not in page


async def test_consumers_show_their_lag_and_what_they_parked(receiver: Receiver, visitor: Visitor) -> None:
    for number in range(3):
        await receiver.callback(product(number))
    await receiver.http.put("/v1/consumers/search", json={"start": "earliest"})
    await receiver.http.post("/v1/consumers/search/park", json={"sequence": 2, "reason": "the price is no number"})
    assert re.search(r"search 0 3 \d+ s", text_of(await visitor.get("/dashboard/consumers")))
    page = text_of(await visitor.get("/dashboard/consumers/search"))
    assert re.search(r"2 product 1 2026-.* the price is no number", page)


async def test_the_overview_names_what_is_wrong_and_counts_what_was_answered(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "_FLUSH_INTERVAL", 0.02)
    monkeypatch.setattr(figures, "KEPT", 0.0)
    async with start() as receiver, visiting(receiver) as visitor:
        await visitor.log_in()
        assert "No callback in the last hour" in await visitor.get("/")
        for body in ({"nothing": "to read"}, PRODUCT, PRODUCT):
            await receiver.callback(body)
        await receiver.callback(PRODUCT, x_secret="a guess")
        await receiver.http.put("/v1/consumers/search", json={"start": 0})
        [event] = (await receiver.http.get("/v1/events")).json()["events"]
        await receiver.http.post("/v1/consumers/search/park", json={"sequence": event["sequence"], "reason": "no"})
        async with asyncio.timeout(10):
            while "Callbacks, last hour 4 " not in text_of(page := await visitor.get("/")):
                await asyncio.sleep(0.02)
        assert re.findall(r"<code>([a-z-]+)</code> in the runbook", page) == [
            *("quarantined", "callbacks-refused", "events-parked", "no-jasper", "proof-not-pinned")
        ]
        assert "All is well" not in page
        assert re.findall(r'class="links"><a href="([^"]+)">([^<]+)<', page)[:3] == [
            ("/dashboard/quarantine", "Quarantine"),
            ("/dashboard/rejections", "Rejections"),
            ("/dashboard/consumers", "Consumers"),
        ]
        assert "problem: 1 authentic callbacks could not be read" in text_of(page)
        assert "<code>jasper-receiver reprocess --status quarantined</code>" in page
        assert page.count("<svg") == 2
        for shown in ("hour", "day", "week", "nonsense"):
            table = text_of(await visitor.get("/", {"range": shown}))
            assert re.search(r"99 % 20\S+ \S+ 1 1 1 1 0 0 \d+ ms", table), shown


async def test_charts_are_drawn_once_for_all_who_look_and_callbacks_do_not_wait_for_them(
    receiver: Receiver, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[threading.Thread] = []
    go_on = threading.Event()

    def draw(*_: object) -> None:
        drawn.append(threading.current_thread())
        assert go_on.wait(10)

    monkeypatch.setattr(charts, "callbacks", draw)
    looks = [asyncio.create_task(visitor.get("/")) for _ in range(3)]
    async with asyncio.timeout(10):
        while not drawn:
            await asyncio.sleep(0.01)
    assert (await receiver.callback()).status_code == 200
    go_on.set()
    await asyncio.gather(*looks)
    await visitor.get("/")
    assert len(drawn) == 1
    assert drawn[0] is not threading.main_thread()
    await visitor.get("/", {"range": "week"})
    assert len(drawn) == 2
    monkeypatch.setattr(figures, "KEPT", 0.0)
    await visitor.get("/")
    assert len(drawn) == 3


async def test_the_overview_does_not_wait_until_all_sealed_values_are_counted(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def count(*_: object) -> SealedCounts:
        await go_on.wait()
        return SealedCounts(current=1, older=0, lost=7)

    monkeypatch.setattr("app.db.sealed.count", count)
    page = text_of(await visitor.get("/"))
    assert "Which encryption keys are needed is still being counted." in page
    go_on.set()
    async with asyncio.timeout(10):
        while "7 sealed values cannot be opened" not in page:
            page = text_of(await visitor.get("/"))
    assert "still being counted" not in page


async def test_figures_that_could_not_be_read_are_read_again(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise DatabaseUnavailableError("Postgres cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr(queries, "stretches", fail)
        assert (await visitor.http.get("/")).status_code == 503
    await visitor.get("/")


def sequence_of(message: Message) -> int:
    found = re.search(r'data-sequence="(\d+)"', json.loads(message.data))
    assert found
    return int(found.group(1))


async def rows(source: EventSource, count: int) -> list[int]:
    """The sequences of the next so many rows."""
    found: list[int] = []
    while len(found) < count:
        message = await source.next()
        if message.event == "row":
            found.append(sequence_of(message))
    return found


async def test_others_have_their_turn_between_the_rows_of_a_stream(
    receiver: Receiver, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        await receiver.callback(product(number))
    turns = 0
    seen: list[int] = []

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def note(*_: object, **__: object) -> str:
        seen.append(turns)
        return ""

    monkeypatch.setattr(feed, "fragment", note)
    others = asyncio.create_task(take_turns())
    _, reached, _ = await feed._next(engine, Filters(), "", 0)
    others.cancel()
    assert (reached, len(seen)) == (20, 20)
    assert len(set(seen)) == 20


async def test_the_stream_sends_rows_as_they_come_and_goes_on_where_it_was(
    receiver: Receiver, visitor: Visitor
) -> None:
    for number in range(3):
        await receiver.callback(product(number))
    async for source in stream(visitor, "after=1"):
        assert await rows(source, 2) == [2, 3]
        await receiver.callback(product(9, name=SCRIPT))
        message = await source.next()
        while message.event != "row":
            message = await source.next()
        assert "<script>" not in json.loads(message.data)
        assert sequence_of(message) == 4
    async for source in stream(visitor, "after=4", last_event_id="2"):  # as a browser comes back
        assert await rows(source, 2) == [3, 4]


async def test_the_stream_sends_what_passes_the_filters_and_moves_past_the_rest(
    receiver: Receiver, visitor: Visitor
) -> None:
    await receiver.callback({"event": "product.created", "data": {"id": 1, "name": "red kettle"}})
    await receiver.callback(product(2, name="blue kettle"))
    await receiver.callback(product(1, name="RED kettle"))
    async for source in stream(visitor, "q=Red+Kettle&action=update"):
        assert await rows(source, 1) == [3]
        message = await source.next()
        assert (message.event, message.data, message.id) == ("position", "3", "3")
    async for source in stream(visitor, "entity_id=2&changed="):
        assert await rows(source, 1) == [2]


async def test_the_stream_of_a_revoked_key_ends(
    receiver: Receiver, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_SESSION_CHECK", 0.0)
    async with visiting(receiver) as visitor:
        await visitor.log_in(await a_key(database, Scope.READ))
        async for source in stream(visitor):
            await source.next()
            engine = create_engine(database)
            await revoke_key(engine, "somebody", now=utc_now())
            await engine.dispose()
            assert [message.event for message in await source.rest()] in ([], ["position"])


async def test_streams_of_the_dashboard_count_among_those_of_the_process(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.feed.stream._MOST_STREAMS", 1)
    async for _ in stream(visitor):
        assert (await visitor.http.get("/dashboard/feed/stream")).status_code == 503
    async with asyncio.timeout(10):  # and the place of a reader who hung up is free again
        while True:
            async with visitor.http.stream("GET", "/dashboard/feed/stream") as response:
                if response.status_code == 200:
                    break
            await asyncio.sleep(0.02)


async def test_the_feed_filters_and_says_how_far_it_looked(receiver: Receiver, visitor: Visitor) -> None:
    for number in range(4):
        event = "product.updated" if number > 1 else "product.created"
        name = "100%_sure" if number == 2 else "unsure"
        await receiver.callback({"event": event, "data": {"id": number % 2, "price": number, "name": name}})

    async def shown(**query: str) -> list[int]:
        page = await visitor.get("/dashboard/feed", query)
        assert "Looked at everything that is kept" in page
        return [int(one) for one in re.findall(r'data-sequence="(\d+)"', page)]

    assert await shown() == [4, 3, 2, 1]
    assert await shown(action="update") == [4, 3]
    assert await shown(entity_id="1") == [4, 2]
    assert await shown(changed="price, nothing") == [4, 3]
    assert await shown(changed="name") == [3]
    assert await shown(q="100%_SURE") == [3]
    assert await shown(q="%") == [3], "signs of SQL are text"
    assert await shown(entity_type="brand") == []
    for query in ({"entity_type": "nothing"}, {"before": "x"}, {"before": "9" * 5000}, {"q": "x" * 201}, {"q": "\0"}):
        response = await visitor.http.get("/dashboard/feed", params=query)
        assert response.status_code == 400, query


async def test_registering_and_rotating_ask_first_and_then_do_it(start: Start) -> None:
    async with running_simulator(SimulatorOptions()) as simulator:
        jasper = {
            "jasper_api_url": f"{simulator.base_url}/api/v1",
            "jasper_api_token": simulator.options.token,
            "public_url": "http://127.0.0.1:9",
        }
        async with start(secret=None, **jasper) as receiver, visiting(receiver) as visitor:
            await visitor.log_in()
            told = await visitor.do("/dashboard/registrations/product/register")
            assert re.fullmatch(r"Webhook for product: (created|all was in order|confirmed)\.", told)

            async def webhook() -> str:
                [found] = (await receiver.http.get("/v1/webhooks")).json()["webhooks"]
                return str(found["webhook_id"])

            before = await webhook()
            question = await visitor.get("/dashboard/registrations/product/rotate")
            assert 'action="/dashboard/registrations/product/rotate"' in question
            assert await webhook() == before
            told = await visitor.do("/dashboard/registrations/product/rotate")
            assert told.startswith("Webhook for product: rotated its secret")
            assert await webhook() != before
            page = text_of(await visitor.get("/dashboard/registrations"))
            assert "a callback is lost to Jasper after 25 min" in page
            assert re.search(r"Last seen in order at Jasper (just now|\d+ s ago)", page)
            assert re.search(r"Last mended at Jasper .*rotated its secret.*, (just now|\d+ s ago)", page)
            assert "rotating" not in page
            await receiver.sql.execute("UPDATE registrations SET rotating_since = now(), mends_in_a_row = 3")
            page = text_of(await visitor.get("/dashboard/registrations"))
            assert "rotating" in page
            assert "3 looks in a row had to mend something" in page


async def test_what_jasper_refuses_is_told_in_its_words(start: Start) -> None:
    async with running_simulator(SimulatorOptions()) as simulator:
        jasper = {
            "jasper_api_url": f"{simulator.base_url}/api/v1",
            "jasper_api_token": "a-token-that-is-wrong",
            "public_url": "http://127.0.0.1:9",
        }
        async with start(secret=None, **jasper) as receiver, visiting(receiver) as visitor:
            await visitor.log_in()
            response = await visitor.send("/dashboard/registrations/product/register")
            assert response.status_code == 502
            assert "JASPER_API_TOKEN" in response.text
            assert "JASPER_API_TOKEN" in await visitor.get("/dashboard/registrations")
            assert "token refused" in await visitor.get("/dashboard/registrations")
            assert "<code>token-refused</code>" in await visitor.get("/")


async def test_every_kind_of_answer_is_counted_as_what_it_was(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_FLUSH_INTERVAL", 0.02)
    async with start(max_body_bytes=1000) as receiver:
        for body in (PRODUCT, PRODUCT, {"nothing": "to read"}, b"x" * 1001):
            await receiver.callback(body)
        await receiver.callback(PRODUCT, x_secret="a guess")
        await receiver.callback(PRODUCT, collection="brands")  # no secret is known for brands
        await receiver.callback(PRODUCT, collection="nothing")
        await receiver.http.get("/callbacks/products")

        async def counted() -> dict[str, int]:
            rows = await receiver.sql.fetch("SELECT outcome, sum(count)::int AS count FROM callback_minutes GROUP BY 1")
            return {row["outcome"]: row["count"] for row in rows}

        async with asyncio.timeout(10):
            while sum((await counted()).values()) < 7:
                await asyncio.sleep(0.02)
        assert await counted() == {
            "accepted": 1, "duplicate": 1, "quarantined": 1, "refused": 1, "put_off": 1, "invalid": 2,
        }  # fmt: skip


async def test_what_was_counted_last_is_kept_when_the_process_ends(start: Start) -> None:
    async with start() as receiver:
        await receiver.callback()
    async with start(secret=None) as receiver:
        assert await receiver.sql.fetchval("SELECT sum(count) FROM callback_minutes") == 1
