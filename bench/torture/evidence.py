"""Reads what the receivers have to show after a run, by their API alone, and puts it before the checker."""

import asyncio
import random
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from typing import Any

from bench.torture.changes import ATTEMPT_HEADER, Change, unreadable
from bench.torture.checker import Checker
from bench.torture.readers import Reader
from bench.torture.receiver import ReceiverProcess

_PAGE = 1000
_AT_ONCE = 8
_SAMPLE = 0.01


async def examine(
    receiver: ReceiverProcess, checker: Checker, changes: Mapping[int, Change], readers: list[Reader]
) -> None:
    """Check everything: deliveries, feed, state, and what the readers saw. Raises httpx.HTTPError."""
    await _deliveries(receiver, checker, changes)
    position = 0
    async for page in _pages(receiver, "/v1/events", include_stale="true"):
        for event in page["events"]:
            checker.event(event)
        position = page["after"]
    checker.end_of_feed()
    async for page in _pages(receiver, "/v1/products", include_deleted="true"):
        for entity in page["items"]:
            checker.entity(entity)
    checker.end_of_state()
    for reader in readers:
        await reader.reach(position)
        checker.reader(reader.name, reader.seen)


async def _deliveries(receiver: ReceiverProcess, checker: Checker, changes: Mapping[int, Change]) -> None:
    """Every delivery; those of which no sender was told, the quarantined ones and a few others whole."""
    chance = random.Random("deliveries")
    turn = asyncio.Semaphore(_AT_ONCE)

    async def whole(delivery_id: str) -> dict[str, Any]:
        async with turn:
            detail: dict[str, Any] = await receiver.get(f"/v1/deliveries/{delivery_id}")
            return detail

    async for page in _pages(receiver, "/v1/deliveries"):
        chosen = [
            record["id"]
            for record in page["deliveries"]
            if not checker.was_told(record["id"]) or record["status"] == "quarantined" or chance.random() < _SAMPLE
        ]
        details = dict(zip(chosen, await asyncio.gather(*map(whole, chosen)), strict=True))
        for record in page["deliveries"]:
            detail = details.get(record["id"])
            change = changes.get(_number(detail)) if detail else None
            checker.delivery(record, change.number if change else None)
            if detail and change and record["status"] == "quarantined":
                checker.kept(record, change.number, _body(detail), unreadable(change))
    checker.end_of_deliveries()


def _number(detail: Mapping[str, Any]) -> int:
    """The number of the change that a delivery is about; 0 where it does not say."""
    headers = dict(detail["headers"])
    return int(headers.get(ATTEMPT_HEADER.lower(), "0").partition(".")[0])


def _body(detail: Mapping[str, Any]) -> bytes:
    body: str = detail["body"]
    return b64decode(body) if detail["body_encoding"] == "base64" else body.encode()


async def _pages(receiver: ReceiverProcess, path: str, **parameters: str) -> AsyncIterator[dict[str, Any]]:
    """All pages of a list."""
    more: dict[str, Any] = {}
    while True:
        page = await receiver.get(path, limit=_PAGE, **parameters, **more)
        yield page
        if not page["has_more"]:
            return
        more = {"after": page["after"]}
