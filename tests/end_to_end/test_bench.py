"""The benchmark at work: it finds out who loses callbacks, counts what is refused, and runs from end to end."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.engine import reading
from app.domain.values import Delivery, EntityType, Entry
from app.entities import queries as entities
from app.feed import queries as feed
from app.feed.filters import Filters
from app.jasper.reading import interpret
from app.ledger.writer import Writer
from bench.fill import Past, fill, latest
from bench.load import Load, LoadError, send
from bench.measure import Round, Stage, Way
from bench.postgres import running_postgres
from bench.processes import ProcessError
from bench.products import FIRST_ID, bodies
from bench.requests import write_requests
from bench.subjects.web import HEADERS, TUNED

ROOT = Path(__file__).parents[2]
WAY = Way(name="intake", connections=8, seconds=0.8, warm_seconds=0.2)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A Postgres and callbacks of the benchmark's own."""
    tmp_path.chmod(0o755)
    requests = write_requests(tmp_path / "requests", ["POST /callbacks/products"] * 12_000, bodies(), HEADERS)
    async with running_postgres(tmp_path / "postgres") as postgres:
        yield Stage(postgres, requests, tmp_path)


async def measured(stage: Stage, fault: str, way: Way = WAY) -> Round:
    """One round of a receiver with this fault."""
    command = tuple(part.replace("bench.peers.tuned", "tests.end_to_end.losing_receiver") for part in TUNED.command)
    return await replace(TUNED, command=command, environment={"FAULT": fault}).measure(stage, way)


async def test_a_receiver_that_loses_or_doubles_is_disqualified(stage: Stage) -> None:
    sound = await measured(stage, "none")
    assert sound.problem is None
    assert sound.rate > 0
    assert sound.wal is not None
    assert sound.wal > 0.2
    assert sound.disk is not None
    assert sound.disk > 0.2
    assert sound.web_cpu is not None
    assert sound.postgres_cpu is not None
    assert 1e-6 < sound.postgres_cpu < 0.1
    assert 1e-6 < sound.web_cpu < 0.1

    assert "are lost" in ((await measured(stage, "answers first and forgets")).problem or "")
    assert "are there twice" in ((await measured(stage, "keeps twice")).problem or "")
    assert "are there twice" in ((await measured(stage, "keeps the neighbour's")).problem or "")
    with pytest.raises((ProcessError, LoadError)):
        await measured(stage, "dies")


async def test_what_is_refused_is_told_and_does_not_count(stage: Stage) -> None:
    found = await measured(stage, "refuses")
    assert found.problem is None
    [(answer, count)] = found.answers.items()
    assert answer == '503: (Retry-After) {"detail": "not now"}'
    assert count >= found.succeeded // 60


async def test_at_a_steady_rate_latency_counts_from_when_a_request_was_due(stage: Stage) -> None:
    """With one connection, whoever comes while an answer is late waits for it, and that wait is the receiver's fault."""
    steady = replace(WAY, connections=1, rate=100.0, seconds=2.0, warm_seconds=0.05)
    found = await measured(stage, "stalls", steady)
    assert found.problem is None
    assert found.longest > 0.4
    # Four requests of 200 met a stall themselves; the forty that were due during each of them waited, too.
    assert found.percentiles[0.5] > 0.05
    assert found.succeeded == 200


async def test_the_client_waits_for_every_answer_and_sends_each_request_once(stage: Stage) -> None:
    command = tuple(part.replace("bench.peers.tuned", "tests.end_to_end.losing_receiver") for part in TUNED.command)
    subject = replace(TUNED, command=command, environment={"FAULT": "none"})
    postgres = stage.postgres
    async with (
        postgres.database("counted", schema=TUNED.schema),
        subject.running(postgres, "counted", stage.directory) as [process],
    ):
        load = Load(requests=str(stage.requests.path), ports=[process.port], connections=16, seconds=30, count=500)
        answers = await send(load)
        rest = await send(replace(load, first=11_900, count=None))
    assert (answers.sent, answers.succeeded, answers.failed, answers.exhausted) == (500, 500, 0, False)
    assert (rest.sent, rest.succeeded, rest.exhausted) == (100, 100, True)


async def test_a_filled_past_is_one_that_the_ledger_goes_on_from(database: str, engine: AsyncEngine) -> None:
    past = Past(events=2_000, entities=100)
    await fill(database, past)
    [known] = latest(past, 1)
    assert known["id"] == FIRST_ID
    async with reading(engine) as connection:
        page = await feed.page(connection, Filters(), after=0, limit=1000)
        before = await entities.state(connection, EntityType.PRODUCT, past.busy_id)
        assert before is not None
        shown = await entities.with_data(connection, before)
        then = await entities.state_as_of(connection, EntityType.PRODUCT, past.busy_id, past.busy_every)
        rare = await feed.page(connection, Filters(changed=("note",)), after=0, limit=100)
    assert [event.sequence for event in page.events] == list(range(1, 1001))
    assert json.loads(bytes(shown.data)) == known
    assert shown.version == 2_000 // past.busy_every
    assert then is not None
    assert then.row.version == 1
    assert 5 <= len(rare.events) <= 10
    _holds_together([json.loads(_encoded(event.changes)) for event in rare.events])

    told_of_it = b'"product.updated","data":{"id":%d,' % FIRST_ID
    body = next(body for body in bodies(known=[known], first_id=FIRST_ID + past.entities) if told_of_it in body)
    headers = (("x-signing-secret", "[redacted]"),)
    now = datetime.now(UTC)
    delivery = Delivery(EntityType.PRODUCT, now, "127.0.0.1", headers, body, "header:x-signing-secret")
    async with Writer(database) as writer:
        told = interpret(EntityType.PRODUCT, headers, body, {})
        receipt = await writer.commit(Entry(EntityType.PRODUCT, told, now, delivery))
    assert receipt.status == "accepted"
    async with reading(engine) as connection:
        assert receipt.event_id is not None
        event = await feed.one(connection, receipt.event_id)
        after = await entities.state(connection, EntityType.PRODUCT, past.busy_id)
    assert event is not None
    assert event.sequence == past.events + 1
    assert not event.stale
    assert "updated_at" in event.changed
    assert len(event.changed) == 2, "the update is told against the filled state, and nothing else differs"
    assert after is not None
    assert after.row.version == shown.version + 1


def _encoded(raw: object) -> bytes:
    return bytes(memoryview(raw))  # type: ignore[arg-type] # msgspec.Raw is a buffer


def _holds_together(changes: list[list[dict[str, object]]]) -> None:
    for one in changes:
        assert [change["path"] for change in one] == ["/note", "/price", "/updated_at"]
        assert all(change["from"] != change["to"] for change in one)


def test_a_short_run_measures_what_it_was_asked_for(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    arguments = ["--rounds", "1", "--seconds", "0.5", "--connections", "8", "--directory", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--subject", "service", "--subject", "pgbench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(one["subject"], one["rounds"], one["problems"]) for one in report["summaries"]] == [
        ("service", 1, []),
        ("pgbench", 1, []),
    ]
    service, pgbench = report["summaries"]
    assert service["rate"]["median"] > 0
    assert pgbench["service_ratio"]["of_medians"] == service["rate"]["median"] / pgbench["rate"]["median"]
    assert set(service["percentiles"]) == {"0.5", "0.99", "0.999"}
    assert list(tmp_path.iterdir()) == []
