"""Answers of servers that nobody vouches for: bounded in size and in time."""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: its status, its headers, and its body, cut where it is too long."""

    status: int
    headers: httpx.Headers
    body: bytes


async def ask(
    http: httpx.AsyncClient, method: str, url: str, *, json: Any = None, within: float, at_most: int
) -> Answer:
    """One request; the answer has to end `within` seconds, and is read up to `at_most` bytes.

    Raises httpx.HTTPError, also where it takes too long.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(within), http.stream(method, url, json=json) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) >= at_most:
                    break
    except TimeoutError as exc:
        raise httpx.ReadTimeout(f"no answer within {within:g} seconds") from exc
    return Answer(response.status_code, response.headers, bytes(body[:at_most]))
