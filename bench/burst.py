"""20,000 callbacks over 512 connections, while somebody reads the feed: what is answered, what is kept, what it takes."""

import asyncio
import time
from dataclasses import replace
from typing import Final

import httpx

from bench.load import PERCENTILES, Load, percentile
from bench.measure import Round, Stage, as_round, observe, rows_problem
from bench.postgres import row
from bench.processes import WebProcess
from bench.subjects.service import TEMPLATE, service

CALLBACKS: Final = 20_000
CONNECTIONS: Final = 512

_LONGEST = 180.0
_POLL = 0.05
_WAY = f"burst of {CALLBACKS:,} callbacks, {CONNECTIONS} connections"


async def burst(stage: Stage, key: str) -> list[Round]:
    """One burst upon the service: a round of its intake, and one of a reader that follows the feed meanwhile.

    A 503 is no failure of it, as Jasper comes again; a lost callback is, and so is a reader that gets no page.
    """
    subject = service()
    assert subject.rows is not None
    async with (
        stage.postgres.database("burst", template=TEMPLATE) as dsn,
        subject.running(stage.postgres, "burst", stage.directory) as processes,
    ):
        reader = asyncio.create_task(_follow(processes[0], key), name="reader")
        await stage.postgres.settle()
        load = Load(
            requests=str(stage.requests.path),
            ports=[processes[0].port],
            connections=CONNECTIONS,
            seconds=_LONGEST,
            count=CALLBACKS,
        )
        seen = await observe(stage.postgres, processes, load)
        answers = seen.answers
        reader.cancel()
        rows, distinct = await row(dsn, subject.rows)
        problem = rows_problem(acknowledged=answers.succeeded, failed=answers.failed, rows=rows, distinct=distinct)
        return [replace(as_round(subject.name, _WAY, seen), problem=problem), await reader]


async def _follow(process: WebProcess, key: str) -> Round:
    """Follow the feed until this is cancelled, without a pause while there is more; returns how long each page took."""
    latencies: list[float] = []
    answers: dict[str, int] = {}
    begun, after = time.perf_counter(), 0
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.port}", headers=headers, timeout=30) as http:
        try:
            while True:
                asked = time.perf_counter()
                has_more = False
                try:
                    response = await http.get("/v1/events", params={"after": after, "limit": 100})
                except httpx.TransportError as exc:
                    answers[type(exc).__name__] = answers.get(type(exc).__name__, 0) + 1
                else:
                    if response.is_success:
                        latencies.append(time.perf_counter() - asked)
                        page = response.json()
                        after, has_more = page["after"], page["has_more"]
                    else:
                        answers[str(response.status_code)] = answers.get(str(response.status_code), 0) + 1
                if not has_more:
                    await asyncio.sleep(_POLL)
        except asyncio.CancelledError:
            pass  # the burst is over
    latencies.sort()
    return Round(
        subject="reader",
        way=f"a reader that follows the feed, during the {_WAY}",
        rate=len(latencies) / (time.perf_counter() - begun),
        percentiles={share: percentile(latencies, share) for share in PERCENTILES} if latencies else {},
        longest=latencies[-1] if latencies else 0.0,
        succeeded=len(latencies),
        answers=answers,
        problem=None if latencies else "no page could be read",
    )
