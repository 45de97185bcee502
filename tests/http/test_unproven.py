"""Callbacks that were kept apart are taken in once their secret can be proven, as if they had only just been late."""

import asyncio
from typing import Any
from unittest.mock import patch

import pytest

from app.errors import DatabaseUnavailableError
from app.intake.unproven import UnprovenStore
from app.sealing import Sealer, generate_key
from tests.http.conftest import SECRET, Receiver, Start, problem_of

CUSTOM = {"My-Custom-Header": "abc123"}
WRONG = {"jasper_webhook_headers": CUSTOM, "jasper_signing_secret_location": "header:X-Wrong"}
"""Settings with a wrong idea of where the secret travels."""

RIGHT = {"jasper_webhook_headers": CUSTOM, "jasper_signing_secret_location": "body:/deep/er/secret"}


def a_change(price: int, secret: str = SECRET) -> dict[str, object]:
    return {"event": "product.updated", "data": {"id": 1, "price": price}, "deep": {"er": {"secret": secret}}}


async def keep_apart(receiver: Receiver, *bodies: object) -> None:
    for body in bodies:
        problem_of(await receiver.callback(body, my_custom_header="abc123"), 401)


async def release(receiver: Receiver) -> dict[str, Any]:
    response = await receiver.http.post("/v1/unproven/release")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def prices(receiver: Receiver) -> list[int]:
    return [event["data"]["price"] for event in (await receiver.http.get("/v1/events")).json()["events"]]


async def test_the_first_day_is_not_lost_to_a_wrong_idea_of_where_the_secret_travels(start: Start) -> None:
    async with start(**WRONG) as receiver:
        await keep_apart(receiver, a_change(1), a_change(2), "no event", a_change(9, secret="a-guess"))
        kept = (await receiver.http.get("/v1/unproven")).json()["unproven"]
        assert await release(receiver) == {"accepted": 0, "duplicate": 0, "quarantined": 0, "unproven": 4}
        assert (await receiver.http.get("/v1/unproven")).json()["unproven"] == kept
    async with start(**RIGHT) as receiver:
        assert await release(receiver) == {"accepted": 2, "duplicate": 0, "quarantined": 0, "unproven": 2}
        assert await prices(receiver) == [1, 2]
        left = (await receiver.http.get("/v1/unproven")).json()["unproven"]
        assert left == kept[2:]
        deliveries = (await receiver.http.get("/v1/deliveries")).json()["deliveries"]
        assert [(one["id"], one["received_at"], one["proof"]) for one in deliveries] == [
            (one["id"], one["received_at"], "body:/deep/er/secret") for one in kept[:2]
        ]
        [webhook] = (await receiver.http.get("/v1/webhooks")).json()["webhooks"]
        assert webhook["proof"] == "body:/deep/er/secret"
        for one in deliveries:
            shown = (await receiver.http.get(f"/v1/deliveries/{one['id']}")).text
            assert SECRET not in shown
            assert "abc123" not in shown
        assert await release(receiver) == {"accepted": 0, "duplicate": 0, "quarantined": 0, "unproven": 2}


async def test_what_came_again_meanwhile_is_a_duplicate_and_what_says_nothing_is_quarantined(start: Start) -> None:
    stamped = {"event": "product.updated", "data": {"id": 1, "price": 1, "updated_at": "2026-01-01T00:00:00Z"}}
    hidden = {"deep": {"er": {"secret": SECRET}}}
    async with start(**WRONG) as receiver:
        await keep_apart(receiver, {**stamped, **hidden}, hidden)
    async with start(**RIGHT) as receiver:
        again = await receiver.callback({**stamped, **hidden, "retry": 1}, my_custom_header="abc123")
        assert again.json()["status"] == "accepted"
        assert await release(receiver) == {"accepted": 0, "duplicate": 1, "quarantined": 1, "unproven": 0}
        assert await prices(receiver) == [1]


async def test_a_late_release_never_overrides_what_was_told_after_it(start: Start) -> None:
    async with start(**WRONG) as receiver:
        await keep_apart(receiver, a_change(1))
    async with start(**RIGHT) as receiver:
        assert (await receiver.callback(a_change(2), my_custom_header="abc123")).json()["status"] == "accepted"
        assert (await release(receiver))["accepted"] == 1
        assert (await receiver.http.get("/v1/products/1")).json()["data"]["price"] == 2
        assert await prices(receiver) == [2]


async def test_a_release_that_broke_off_takes_nothing_in_twice(start: Start) -> None:
    """The commit is there, the removal is not: nothing in the payload would tell its second event from a second change."""
    async with start(**WRONG) as receiver:
        await keep_apart(receiver, a_change(1), a_change(2))
    async with start(**RIGHT) as receiver:
        with patch.object(UnprovenStore, "remove", side_effect=DatabaseUnavailableError("broken off")):
            problem_of(await receiver.http.post("/v1/unproven/release"), 503)
        assert await prices(receiver) == [1]
        assert (await release(receiver))["accepted"] == 2
        assert await prices(receiver) == [1, 2]
        assert (await receiver.http.get("/v1/unproven")).json()["unproven"] == []


async def test_two_releases_at_once_take_each_callback_in_once(start: Start) -> None:
    async with start(**WRONG) as receiver:
        await keep_apart(receiver, *(a_change(number) for number in range(10)))
    async with start(**RIGHT) as one, start(**RIGHT) as other:
        await asyncio.gather(release(one), release(other), release(one))
        assert await prices(one) == list(range(10))
        assert await one.counts() == (10, 10)


async def test_one_that_cannot_be_opened_stays_for_the_day_its_key_is_back(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(**WRONG) as receiver:
        await keep_apart(receiver, a_change(1))
        sealed = await receiver.sql.fetchval("SELECT sealed FROM unproven")
        await receiver.sql.execute("UPDATE unproven SET sealed = $1", Sealer([generate_key()]).seal(b'[[], ""]'))
    async with start(**RIGHT) as receiver:
        assert await release(receiver) == {"accepted": 0, "duplicate": 0, "quarantined": 0, "unproven": 1}
        assert "cannot be opened" in caplog.text
        await receiver.sql.execute("UPDATE unproven SET sealed = $1", sealed)
        assert (await release(receiver))["accepted"] == 1


async def test_what_only_a_header_tells_apart_is_kept_apart_twice(start: Start) -> None:
    async with start(**WRONG) as receiver:
        for action in ("product.created", "product.deleted", "product.deleted"):  # the last one is a retry
            hidden = {"id": 1, "deep": {"er": {"secret": SECRET}}}
            answer = await receiver.callback(hidden, my_custom_header="abc123", x_event=action)
            problem_of(answer, 401)
    async with start(**RIGHT) as receiver:
        assert (await release(receiver))["accepted"] == 2
        events = (await receiver.http.get("/v1/events")).json()["events"]
        assert [event["action"] for event in events] == ["create", "delete"]


async def test_what_an_old_secret_proved_when_it_came_is_taken_in_after_the_secret_was_rotated(start: Start) -> None:
    async with start(**WRONG) as receiver:
        await keep_apart(receiver, a_change(1))
    for number in range(2):  # the first one retires the secret, the second one forgets what is over
        async with start(secret=f"the-secret-after-{number}", **WRONG) as receiver:
            await receiver.sql.execute("UPDATE retiring_credentials SET accepted_until = least(accepted_until, now())")
            await keep_apart(receiver, a_change(9))  # with a secret that is over
    async with start(secret="the-last-secret", **RIGHT) as receiver:
        assert (await release(receiver))["accepted"] == 1
        assert await prices(receiver) == [1]
    async with start(secret="yet-another-secret", **WRONG) as receiver:
        assert await receiver.sql.fetchval("SELECT count(*) FROM unproven") == 1
