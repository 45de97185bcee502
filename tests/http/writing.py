"""Callbacks for tests in which many write at once, and what makes their transactions overlap."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import asyncpg

from app.domain.values import Delivery, EntityType, Entry, Receipt
from app.jasper.reading import interpret
from app.ledger.append import append


def a_callback(number: int) -> Entry:
    """An update unlike all others, of one of so many products that transactions seldom wait for each other's rows."""
    now = datetime.now(UTC)
    body = json.dumps({"event": "product.updated", "id": number % 120, "delivery": number}).encode()
    delivery = Delivery(EntityType.PRODUCT, now, "127.0.0.1", (), body, "header:x-secret")
    return Entry(EntityType.PRODUCT, interpret(EntityType.PRODUCT, (), body, {}), now, delivery)


def slow_append(chance: random.Random) -> Callable[[asyncpg.Connection, Sequence[Entry]], Awaitable[list[Receipt]]]:
    """The ledger's `append`, with a pause between it and the commit in which others overtake, if they can."""

    async def slow(connection: asyncpg.Connection, entries: Sequence[Entry]) -> list[Receipt]:
        receipts = await append(connection, entries)
        await asyncio.sleep(chance.random() * 0.03)
        return receipts

    return slow
