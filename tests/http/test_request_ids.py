"""Each request has an id, which stands in its answer and in every line of the log that it causes."""

import json
import logging
import re
from collections.abc import Iterator

import pytest

from app import logs
from tests.http.conftest import SECRET, Receiver, Start

ASKED = [
    *("/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/events", "/v1/events?limit=wrong", "/v1/products/1"),
    *("/nowhere", "/callbacks/products", "/callbacks/nothing"),
]


class Lines(logging.Handler):
    """What is logged, as the JSON lines that it becomes."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def named(self, event: str) -> list[dict[str, object]]:
        return [line for line in map(json.loads, self.texts) if line["event"] == event]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The log from level debug on."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logs.configure("debug", "json")
    [handler] = root.handlers
    lines = Lines()
    lines.setFormatter(handler.formatter)
    for one in handler.filters:
        lines.addFilter(one)
    root.handlers = [lines]
    yield lines
    root.handlers = before
    root.setLevel(level)


@pytest.mark.parametrize("path", ASKED)
async def test_a_sane_id_is_taken_and_returned_whatever_the_answer(receiver: Receiver, path: str) -> None:
    response = await receiver.http.get(path, headers={"X-Request-ID": "order-7:a.b@c/d+e=f_G"})
    assert response.headers.get_list("x-request-id") == ["order-7:a.b@c/d+e=f_G"]


@pytest.mark.parametrize("path", ["/v1/events", "/callbacks/products"])
@pytest.mark.parametrize("given", ["", "two words", 'say "hello"', "x" * 129, "caf\xe9", "a\tb"])
async def test_an_id_that_is_not_sane_is_replaced(receiver: Receiver, path: str, given: str) -> None:
    response = await receiver.http.get(path, headers=[(b"X-Request-ID", given.encode("latin-1"))])
    assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])


async def test_each_request_without_an_id_gets_one_of_its_own(receiver: Receiver) -> None:
    answers = [await receiver.callback({"event": "product.updated", "id": number}) for number in range(3)]
    answers += [await receiver.http.get("/v1/events") for _ in range(3)]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 6


async def test_what_nobody_expected_is_answered_with_the_id_and_logged_with_it(
    receiver: Receiver, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr("app.intake.router.interpret", fail)
    monkeypatch.setattr("app.feed.plain_page.page_when_there", fail)
    monkeypatch.setattr("app.feed.router.page_when_there", fail)
    callback = await receiver.callback(x_secret=SECRET, x_request_id="one")
    events = await receiver.http.get("/v1/events", headers={"X-Request-ID": "two"})
    assert (callback.status_code, callback.headers["x-request-id"]) == (500, "one")
    assert (events.status_code, events.headers["x-request-id"]) == (500, "two")
    updates = await receiver.http.get("/v1/events?action=update", headers={"X-Request-ID": "three"})
    assert (updates.status_code, updates.headers["x-request-id"]) == (500, "three")
    assert callback.json()["type"] == events.json()["type"] == updates.json()["type"] == "/problems/internal-error"
    said = lines.named("request failed")
    assert [line["request_id"] for line in said] == ["one", "two", "three"]
    assert all("nobody expected this" in str(line["exception"]) for line in said)


async def test_every_line_of_a_request_carries_its_id_and_no_other(receiver: Receiver, lines: Lines) -> None:
    await receiver.callback(b"no json", x_secret=SECRET, x_request_id="unreadable")
    await receiver.callback(x_secret="wrong", x_request_id="refused")
    accepted = await receiver.callback(x_secret=SECRET, x_request_id="taken")
    await receiver.http.get("/v1/products/1", headers={"X-Request-ID": "read"})
    await receiver.http.get("/v1/deliveries")
    assert [line["request_id"] for line in lines.named("callback quarantined")] == ["unreadable"]
    assert [line["request_id"] for line in lines.named("callback rejected")] == ["refused"]
    [line] = lines.named("callback accepted")
    assert (line["request_id"], line["delivery_id"]) == ("taken", accepted.json()["delivery_id"])
    first, second = lines.named("request answered")
    assert (first["request_id"], first["path"], first["status"]) == ("read", "/v1/products/1", 404)
    assert second["request_id"] not in {"read", "taken", "refused", "unreadable"}


async def test_lines_tell_no_body_no_secret_and_no_query(start: Start, lines: Lines) -> None:
    async with start(jasper_webhook_headers={"X-Callback-Key": "of-jasper"}) as receiver:
        headers = {"x_secret": SECRET, "x_callback_key": "of-jasper"}
        await receiver.callback({"event": "product.updated", "id": 1, "name": "body-text"}, **headers)
        await receiver.callback(b'{"id": "body-text"', **headers)
        await receiver.callback({"id": "body-text"}, x_secret="guessed", x_callback_key="of-jasper")
        await receiver.http.get("/v1/events", params={"entity_id": "asked-for"})
    text = "\n".join(lines.texts)
    assert "callback accepted" in text
    for kept_quiet in (SECRET, "of-jasper", "body-text", "guessed", "asked-for", "an-admin-key"):
        assert kept_quiet not in text


async def test_accepted_callbacks_and_probes_have_lines_of_their_own_only_for_who_debugs(
    receiver: Receiver, lines: Lines
) -> None:
    logging.getLogger().setLevel("INFO")
    await receiver.callback(x_secret=SECRET)
    await receiver.http.get("/healthz")
    await receiver.http.get("/metrics")
    await receiver.http.get("/v1/events")
    assert [line["event"] for line in map(json.loads, lines.texts)] == ["request answered"]


async def test_the_method_that_is_logged_is_the_one_that_was_asked_for(receiver: Receiver, lines: Lines) -> None:
    await receiver.http.head("/v1/events")
    [line] = lines.named("request answered")
    assert (line["method"], line["path"], line["status"]) == ("HEAD", "/v1/events", 200)


async def test_a_flood_of_refused_callbacks_does_not_flood_the_log(receiver: Receiver, lines: Lines) -> None:
    for _ in range(3 * logs.MOST_ALIKE):
        await receiver.callback(x_secret="wrong")
    # The clock may turn to the next period once meanwhile.
    assert logs.MOST_ALIKE <= len(lines.named("callback rejected")) <= 2 * logs.MOST_ALIKE
