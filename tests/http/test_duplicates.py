"""One change that arrives several times at the same instant, at several replicas, in several spellings: one event."""

import asyncio
import json
from collections import Counter
from random import Random
from typing import Any

import httpx
import pytest

from tests.http.conftest import SECRET, Receiver, Start

STAMPED = {"id": 1, "name": "Größe", "price": "1.10", "updated_at": "2026-01-01T00:00:00Z"}


def respelled(value: Any, chance: Random) -> bytes:
    """The same JSON in another order of members, with other white space and other escapes."""
    if isinstance(value, dict):
        members = list(value.items())
        chance.shuffle(members)
        value = dict(members)
    separators = chance.choice([(",", ":"), (" , ", " : "), (",\n", ":\t")])
    return json.dumps(value, ensure_ascii=chance.random() < 0.5, separators=separators).encode()


async def send(receiver: Receiver, body: bytes, **headers: str) -> httpx.Response:
    return await receiver.callback(body, x_secret=SECRET, **headers)


def copies_of(kind: str, chance: Random) -> list[tuple[bytes, dict[str, str]]]:
    """Twelve ways in which one change may be sent."""
    match kind:
        case "a delivery id in the header":
            return [
                (respelled({"event": "product.updated", "id": 1, "attempt": attempt}, chance), {"x_delivery_id": "d-1"})
                for attempt in range(12)
            ]
        case "a delivery id in the body":
            body = {"event": "product.updated", "product_id": 1, "delivery_id": "d-1"}
            return [(respelled({**body, "attempt": attempt}, chance), {}) for attempt in range(12)]
        case "no id, the same data in new envelopes":
            envelopes: list[dict[str, object]] = [
                {"action": "update", "data": STAMPED},
                {"event": "product.updated", "product": STAMPED},
                {"topic": "products/update", "payload": STAMPED, "sent_at": 5},
            ]
            return [(respelled(chance.choice(envelopes), chance), {}) for _ in range(12)]
        case _:
            body = {"event": "product.updated", "id": 1, "timestamp": "2026-01-01T00:00:00Z"}
            return [(respelled(body, chance), {}) for _ in range(12)]


@pytest.mark.parametrize(
    "kind",
    [
        "a delivery id in the header",
        "a delivery id in the body",
        "no id, the same data in new envelopes",
        "no id, the same notification with its time",
    ],
)
async def test_copies_that_arrive_at_once_at_several_replicas_make_one_event(start: Start, kind: str) -> None:
    copies = copies_of(kind, Random(1))
    assert len({body for body, _ in copies}) > 5
    async with start() as one, start() as other, start() as third:
        replicas = [one, other, third]
        answers = await asyncio.gather(
            *(send(replicas[number % 3], body, **headers) for number, (body, headers) in enumerate(copies))
        )
        receipts = [answer.json() for answer in answers]
        assert Counter(receipt["status"] for receipt in receipts) == {"accepted": 1, "duplicate": 11}
        assert len({receipt["event_id"] for receipt in receipts}) == 1
        assert len({receipt["delivery_id"] for receipt in receipts}) == 12
        assert await one.counts() == (12, 1)
        originals = await one.sql.fetch("SELECT DISTINCT duplicate_of FROM deliveries WHERE status = 'duplicate'")
        accepted = [receipt["delivery_id"] for receipt in receipts if receipt["status"] == "accepted"]
        assert [str(row["duplicate_of"]) for row in originals] == accepted


async def test_the_database_itself_refuses_a_second_one(start: Start) -> None:
    """Whoever writes past the receiver's own look finds the key taken: it is unique for ever."""
    async with start() as receiver:
        await send(receiver, respelled({"action": "update", "data": STAMPED}, Random(1)))
        [key] = await receiver.sql.fetch("SELECT key FROM idempotency_keys")
        refused = await receiver.sql.fetchval(
            "WITH again AS (INSERT INTO idempotency_keys SELECT $1, 99 ON CONFLICT DO NOTHING RETURNING 1)"
            " SELECT count(*) = 0 FROM again",
            key["key"],
        )
        assert refused
        await receiver.sql.execute("DELETE FROM deliveries")
        await receiver.sql.execute("DELETE FROM events")
        again = await send(receiver, respelled({"action": "update", "data": STAMPED}, Random(2)))
        assert (again.json()["status"], again.json()["event_id"]) == ("duplicate", None)
