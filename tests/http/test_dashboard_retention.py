"""What the pages say where retention has been: what is gone, from where on everything is there, and no trace of the rest."""

import html
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from app.clock import utc_now
from app.db.engine import create_engine
from app.ledger.retention import remove_oldest_events
from tests.http.conftest import Receiver, Start
from tests.http.dashboard import Visitor, stream, text_of, visiting

ENTITY = "/dashboard/entity?type=product&id=7"


@pytest.fixture
async def receiver(start: Start, database: str) -> AsyncIterator[Receiver]:
    """Five events, the first three of which are removed; the state of entity 7 still stands on the third."""
    async with start(event_retention_days=30) as receiver:
        for number, price in ((7, 1), (8, 1), (7, 2), (8, 2), (7, 3)):
            await receiver.callback({"event": "product.updated", "data": {"id": number, "price": price}})
        await receiver.http.put("/v1/consumers/late", json={"start": 1})
        await receiver.http.put("/v1/consumers/soon", json={"start": 3})
        await receiver.http.put("/v1/consumers/prompt", json={"start": "latest"})
        await receiver.sql.execute(
            "UPDATE events SET received_at = received_at - make_interval(days => CASE WHEN sequence < 4 THEN 99 ELSE 28 END)"
        )
        engine = create_engine(database)
        assert await remove_oldest_events(engine, utc_now() - timedelta(days=30)) == 3
        await engine.dispose()
        yield receiver


@pytest.fixture
async def visitor(receiver: Receiver) -> AsyncIterator[Visitor]:
    async with visiting(receiver) as visitor:
        await visitor.log_in()
        yield visitor


async def test_a_state_that_is_kept_no_longer_is_a_page_that_leads_on(visitor: Visitor) -> None:
    gone = await visitor.http.get(f"{ENTITY}&as_of=1")
    assert gone.status_code == 410
    said = text_of(gone.text)
    assert "The state as of event 1 is kept no longer" in said
    assert "The events up to 3 have been removed" in said
    [oldest] = re.findall(r'href="([^"]+)">The oldest state that is kept', gone.text)
    assert '"price": 2' in text_of(await visitor.get(html.unescape(oldest)))
    assert re.findall(r'class="muted seq">(\d+)<', gone.text) == ["5"], "the history is there all the same"
    assert "What happened before event 4 is kept no longer" in said


async def test_what_is_removed_is_in_no_list(visitor: Visitor) -> None:
    for path in ("/dashboard/feed", "/dashboard/feed?q=price"):
        page = await visitor.get(path)
        assert re.findall(r'data-sequence="(\d+)"', page) == ["5", "4"], path
        assert "what is older than event 4 has been removed" in text_of(page)
    older = text_of(await visitor.get("/dashboard/feed?before=3"))
    assert "Those up to number 3 were removed" in older


async def test_a_stream_that_comes_back_too_late_says_what_it_cannot_show_and_goes_on(visitor: Visitor) -> None:
    async for source in stream(visitor, "after=0", last_event_id="1"):
        rows: list[str] = []
        while len(rows) < 3:
            message = await source.next()
            if message.event == "row":
                rows.append(json.loads(message.data))
        assert "The events from 2 to 3 were removed before they could be shown" in text_of(rows[0])
        assert [re.findall(r'data-sequence="(\d+)"', row) for row in rows[1:]] == [["4"], ["5"]]
    async for source in stream(visitor, "after=3"):
        message = await source.next()
        while message.event != "row":
            message = await source.next()
        assert 'data-sequence="4"' in json.loads(message.data)


async def test_consumers_show_what_retention_does_to_them(visitor: Visitor) -> None:
    said = text_of(await visitor.get("/dashboard/consumers"))
    removed_from = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.search(r"late 1 2 28 d overtaken (just now|\d+ s ago)", said), said
    assert re.search(rf"soon 3 2 28 d expiring {removed_from} (just now|\d+ s ago)", said), said
    assert re.search(r"prompt 5 0 – nothing unread", said), said
    late = text_of(await visitor.get("/dashboard/consumers/late"))
    assert "events that it has not read have been removed" in late
    assert "PUT /v1/consumers/late" in late
    soon = text_of(await visitor.get("/dashboard/consumers/soon"))
    assert re.search(rf"will be removed from {removed_from} UTC on", soon)
    prompt = text_of(await visitor.get("/dashboard/consumers/prompt"))
    assert "removed" not in prompt
