"""What Prometheus is told: true, bounded, cheap to ask for, and told also while Postgres is away."""

import asyncio
import timeit
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from app import scrape
from app.clock import utc_now
from app.db.engine import reading
from app.db.tables import attendance, consumers, parked_events, reconciliations, registrations, retention, unproven
from app.deliveries import queries as delivery_queries
from app.domain.values import DeliveryStatus, EntityType
from app.ids import new_id
from app.intake.router import _RECEIVED
from app.metrics import CALLBACK_SECONDS
from app.registration.store import RegistrationStore
from app.scrape import MOST_CONSUMERS, LedgerView
from app.sealing import Sealer, generate_key
from tests.builders import NOW, a_delivery, an_event
from tests.http.conftest import ADMIN_KEY, SECRET, Receiver, Start
from tests.postgres.plans import pages_read

PREFIX = "jasper_receiver_"

Numbers = Mapping[tuple[str, str], float]


async def numbers(http: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    """Every sample by its name, without our prefix, and its labels."""
    response = await http.get("/metrics", headers={"Authorization": ""})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name.removeprefix(PREFIX), ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def steps(before: Numbers, after: Numbers, name: str) -> dict[str, float]:
    """By how much each series of a counter has grown, where it has."""
    return {
        labels: value - before.get((found, labels), 0)
        for (found, labels), value in after.items()
        if found == name and value != before.get((found, labels), 0)
    }


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the database says is read for each answer."""
    monkeypatch.setattr(scrape, "LedgerView", partial(LedgerView, kept=0.0))


async def test_callbacks_are_counted_by_collection_and_by_what_came_of_them(receiver: Receiver) -> None:
    before = await numbers(receiver.http)
    await receiver.callback()
    await receiver.callback()
    await receiver.callback(b"no json", x_secret=SECRET)
    await receiver.callback(x_secret="wrong")
    await receiver.callback(collection="brands")
    await receiver.callback(collection="nothing")
    await receiver.http.get("/callbacks/products")
    after = await numbers(receiver.http)
    assert steps(before, after, "callbacks_total") == {
        "products,accepted": 1,
        "products,duplicate": 1,
        "products,quarantined": 1,
        "products,not-authentic": 1,
        "products,method-not-allowed": 1,
        "brands,secret-unknown": 1,
        "unknown,not-found": 1,
    }
    assert steps(before, after, "callback_seconds_count") == {"": 3}
    assert sum(steps(before, after, "batch_entries_sum").values()) == 3
    assert sum(steps(before, after, "commit_seconds_count").values()) == 3


async def test_rejections_are_counted_by_reason(start: Start) -> None:
    async with start(jasper_webhook_headers={"X-Callback-Key": "of-jasper"}) as receiver:
        before = await numbers(receiver.http)
        await receiver.callback(x_secret=SECRET)
        await receiver.callback(x_callback_key="of-jasper")
        await receiver.callback(x_callback_key="of-jasper", x_secret="wrong")
        after = await numbers(receiver.http)
    assert steps(before, after, "rejections_total") == {"header": 1, "secret": 2}


async def test_failures_of_keys_are_counted_by_reason(receiver: Receiver) -> None:
    before = await numbers(receiver.http)
    await receiver.http.get("/v1/events", headers={"Authorization": ""})
    await receiver.http.get("/v1/events", headers={"Authorization": "Bearer wrong"})
    after = await numbers(receiver.http)
    assert steps(before, after, "key_failures_total") == {"missing": 1, "wrong": 1}
    assert steps(before, after, "requests_total") == {"2xx": 1, "4xx": 2}


@pytest.mark.usefixtures("fresh")
async def test_what_the_database_holds_is_told(start: Start, engine: AsyncEngine) -> None:
    events = [await an_event(engine, received_at=utc_now() - timedelta(seconds=100)) for _ in range(3)]
    for _ in range(2):
        await a_delivery(engine, status="quarantined", reason="no JSON")
    await a_delivery(engine)
    async with engine.begin() as connection:
        await connection.execute(insert(consumers).values(name="search", position=1, updated_at=NOW))
        await connection.execute(insert(consumers).values(name="done", position=3, updated_at=NOW))
        await connection.execute(
            insert(parked_events).values(consumer="search", sequence=1, reason="poison", parked_at=NOW)
        )
        await connection.execute(
            insert(unproven).values(
                id=new_id(),
                entity_type="product",
                received_at=NOW,
                client="",
                digest=b"1",
                header_names=[],
                size=1,
                outline=[],
                sealed=b"",
            )
        )
        await connection.execute(
            insert(registrations).values(
                entity_type="brand",
                state="failed",
                retry_policy="linear",
                minimum_retry_interval=300,
                retry_limit=5,
                last_callback_at=utc_now() - timedelta(seconds=1000),
            )
        )
        runs = [("product", "succeeded", 500), ("product", "failed", 50), ("brand", "running", None)]
        for entity_type, status, ago in runs:
            await connection.execute(
                insert(reconciliations).values(
                    id=new_id(),
                    entity_type=entity_type,
                    status=status,
                    started_at=NOW,
                    finished_at=None if ago is None else utc_now() - timedelta(seconds=ago),
                    stage="list",
                    **dict.fromkeys(("compared", "created", "updated", "deleted", "first_sequence"), 0),
                    force=False,
                )
            )
        await connection.execute(update(retention).values(oldest_after=2))
        await connection.execute(insert(attendance).values(entity_type="brand", alive_at=NOW))
        await connection.execute(
            insert(attendance).values(entity_type="product", alive_at=utc_now(), away_from=NOW, away_until=NOW)
        )
        await connection.execute(insert(consumers).values(name="on the way", position=2, updated_at=NOW))
    assert [event["sequence"] for event in events] == [1, 2, 3]
    async with start(event_retention_days=1) as receiver:
        found = await numbers(receiver.http)
    assert found["database_up", ""] == 1
    assert found["feed_position", ""] == 3
    assert found["quarantined_deliveries", ""] == 2
    assert found["unproven_callbacks", ""] == 1
    assert found["parked_events", ""] == 1
    assert found["consumers", ""] == 3
    assert found["consumer_expires_seconds", "search"] == 0  # it was overtaken
    assert 86_200 < found["consumer_expires_seconds", "on the way"] <= 86_300
    assert found["consumer_expires_seconds", "done"] == 86_400
    assert (found["callbacks_missed", "product"], found["callbacks_missed", "brand"]) == (1, 0)
    assert (found["consumer_lag_events", "search"], found["consumer_lag_events", "done"]) == (2, 0)
    assert 100 <= found["consumer_lag_seconds", "search"] < 200
    assert found["consumer_lag_seconds", "done"] == 0
    assert {labels for (name, labels), value in found.items() if name == "registration_state" and value} == {
        "brand,failed",
        "product,pending",  # a secret is known, but not yet that Jasper has the webhook as it shall be
    }
    assert (found["signing_secret_known", "brand"], found["signing_secret_known", "product"]) == (0, 1)
    assert 1000 <= found["seconds_since_last_callback", "brand"] < 1100
    assert ("seconds_since_last_callback", "product") not in found
    assert found["retry_window_seconds", "brand"] >= 5 * 300
    assert {labels for (name, labels), value in found.items() if name == "reconciliation_status" and value} == {
        "product,failed",
        "brand,running",
    }
    assert 500 <= found["seconds_since_reconciliation", "product"] < 600
    assert ("seconds_since_reconciliation", "brand") not in found
    assert found["removed_position", ""] == 2


async def test_a_secret_that_cannot_be_opened_is_told_as_one_that_is_not_known(
    start: Start, engine: AsyncEngine
) -> None:
    sealed_with_another_key = RegistrationStore(engine, Sealer([generate_key()]))
    await sealed_with_another_key.commit(
        EntityType.BRAND,
        webhook_id="2",
        signing_secret=SECRET,
        registered=None,
        now=utc_now(),
        retire_until=utc_now(),
    )
    async with start() as receiver:
        assert (await receiver.callback(collection="brands")).status_code == 503
        found = await numbers(receiver.http)
    assert (found["signing_secret_known", "brand"], found["signing_secret_known", "product"]) == (0, 1)


@pytest.mark.usefixtures("fresh")
async def test_series_of_consumers_are_bounded_to_those_farthest_behind(start: Start, engine: AsyncEngine) -> None:
    await an_event(engine, sequence=10_000)
    async with engine.begin() as connection:
        rows = [{"name": f"c{number}", "position": number, "updated_at": NOW} for number in range(MOST_CONSUMERS + 50)]
        await connection.execute(insert(consumers), rows)
    async with start() as receiver:
        found = await numbers(receiver.http)
    shown = {labels for name, labels in found if name == "consumer_lag_events"}
    assert shown == {f"c{number}" for number in range(MOST_CONSUMERS)}
    assert found["consumers", ""] == MOST_CONSUMERS + 50


async def test_no_secret_and_nothing_that_came_from_outside_is_told(start: Start) -> None:
    async with start(jasper_webhook_headers={"X-Callback-Key": "of-jasper"}) as receiver:
        await receiver.callback(collection="evil%22%7Dpath", x_callback_key="of-jasper", x_secret="sent-by-somebody")
        await receiver.callback(x_callback_key="of-jasper", x_secret="sent-by-somebody")
        await receiver.http.get("/v1/events", headers={"Authorization": "Bearer sent-by-somebody"})
        told = (await receiver.http.get("/metrics")).text
    for secret in (SECRET, ADMIN_KEY, "of-jasper", "sent-by-somebody", "evil"):
        assert secret not in told


@pytest.mark.usefixtures("fresh")
async def test_the_answer_comes_also_while_postgres_is_away(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await numbers(receiver.http))["database_up", ""] == 1

    async def refuse(*_: Any, **__: Any) -> asyncpg.Connection:
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncpg, "connect", refuse)
    await receiver.sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    found = await numbers(receiver.http)
    assert found["database_up", ""] == 0
    assert ("feed_position", "") not in found
    assert found["processes", ""] == 1
    assert ("callbacks_total", "products,accepted") in found


async def test_a_postgres_that_does_not_answer_is_not_waited_for(engine: AsyncEngine) -> None:
    patient, view = LedgerView(engine, kept=0.0, patience=30.0), LedgerView(engine, patience=0.2)
    assert await patient.now() is not None
    async with engine.connect() as connection:
        await connection.execute(text("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE"))
        async with asyncio.timeout(5):
            assert await view.now() is None
    assert await patient.now() is not None


async def test_a_postgres_that_hangs_so_that_not_even_giving_up_ends_is_not_waited_for(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    thawed = asyncio.Event()

    @asynccontextmanager
    async def frozen(_: AsyncEngine) -> AsyncIterator[None]:
        try:
            await asyncio.sleep(3600)
        finally:
            await thawed.wait()
        yield

    monkeypatch.setattr(scrape, "reading", frozen)
    view = LedgerView(engine, kept=0.0, patience=0.05)
    async with asyncio.timeout(20):
        assert await view.now() is None
        assert await view.now() is None
    thawed.set()
    assert view._reading is not None
    await view._reading
    monkeypatch.setattr(scrape, "reading", reading)
    assert await LedgerView(engine).now() is not None


async def test_however_often_somebody_asks_the_database_is_read_every_few_seconds(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = scrape._look

    async def counted(connection: Any) -> Any:
        nonlocal looks
        looks += 1
        return await look(connection)

    monkeypatch.setattr(scrape, "_look", counted)
    view = LedgerView(engine, kept=60.0)
    for _ in range(3):  # at the same time, and one after the other
        await asyncio.gather(*(view.now() for _ in range(10)))
    assert looks == 1
    view._read_at -= 61.0
    await view.now()
    assert looks == 2


async def test_what_the_database_is_asked_costs_little_however_much_it_holds(engine: AsyncEngine) -> None:
    await _fill(engine, 300)
    few = await pages_read(engine, scrape._look)
    await _fill(engine, 30_000)
    assert await pages_read(engine, scrape._look) < few + 30


async def _fill(engine: AsyncEngine, count: int) -> None:
    """So many deliveries with their events, one in a thousand of them in quarantine, and two consumers."""
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE deliveries, events, consumers CASCADE"))
        await connection.execute(
            text(
                """
                INSERT INTO events (sequence, id, entity_type, entity_id, action, action_inferred, stale, source,
                                    received_at, changed, changes, entity_version, entity_sequence)
                SELECT n, gen_random_uuid(), 'product', n::text, 'update', false, false, 'webhook', now(), '{}', '[]', 1, n
                FROM generate_series(1, :count) n
                """
            ),
            {"count": count},
        )
        await connection.execute(
            text(
                """
                INSERT INTO deliveries (id, entity_type, status, received_at, client, proof, headers, body, size, reading)
                SELECT gen_random_uuid(), 'product', CASE WHEN n % 1000 = 0 THEN 'quarantined' ELSE 'accepted' END,
                       now(), '', '', '[]', repeat('x', 200)::bytea, 200, '{}'
                FROM generate_series(1, :count) n
                """
            ),
            {"count": count},
        )
        rows = [{"name": f"c{number}", "position": number * count, "updated_at": NOW} for number in range(2)]
        await connection.execute(insert(consumers), rows)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE deliveries, events, consumers"))


async def test_what_waits_for_a_hand_is_counted_only_so_far(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_queries, "COUNTED", 2)
    for _ in range(3):
        await a_delivery(engine, status="quarantined", reason="no JSON")
    async with reading(engine) as connection:
        assert (await scrape._look(connection)).quarantined == 2
        assert await delivery_queries.quarantined(connection) == 2


@pytest.mark.parametrize("roles", [["callbacks"], ["api"], ["dashboard"]])
async def test_every_process_tells_its_numbers_whatever_its_roles(start: Start, roles: list[str]) -> None:
    async with start(roles=roles) as receiver:
        assert (await numbers(receiver.http))["processes", ""] == 1


async def test_openmetrics_is_told_to_who_accepts_it(receiver: Receiver) -> None:
    response = await receiver.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(response.text)  # type: ignore[no-untyped-call]  # of the library
    assert "jasper_receiver_callbacks" in {family.name for family in families}


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=abc", "text/plain;version=x", "text/plain;version=", ";,=;", "*/*"]
)
async def test_whatever_is_accepted_the_numbers_come(receiver: Receiver, accept: str) -> None:
    response = await receiver.http.get("/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_what_a_callback_pays_for_being_counted_is_a_few_microseconds() -> None:
    """An order of magnitude above what it is on a quiet machine: a lookup of labels or a lock across processes shows."""
    counter = _RECEIVED[EntityType.PRODUCT, DeliveryStatus.ACCEPTED]

    def count() -> None:
        counter.inc(0)
        CALLBACK_SECONDS.observe(0.004)

    rounds = 2000
    assert min(timeit.repeat(count, number=rounds, repeat=5)) / rounds < 10e-6
