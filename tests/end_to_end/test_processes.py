"""Two processes on one Postgres: each can be asked for everything, and each tells the numbers of both."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import utc_now
from app.domain.values import EntityType
from app.registration.store import RegistrationStore
from app.sealing import Sealer, generate_key
from app.serving import listen
from tests.http.conftest import ADMIN_KEY, SECRET


@asynccontextmanager
async def a_process(
    environment: dict[str, str], log: Path, *, ends_with: int = 0
) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """`jasper-receiver serve` with a client for it, and its pid."""
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app.cli.commands", "serve", env=environment | {"PORT": str(port)}, stderr=output
        )
    try:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as http:
            async with asyncio.timeout(60):
                while not await answers(http):
                    assert process.returncode is None, log.read_text()
                    await asyncio.sleep(0.05)
            yield http, process.pid
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        assert await process.wait() == ends_with, log.read_text()


async def answers(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
async def environment(database: str, engine: AsyncEngine, tmp_path: Path) -> dict[str, str]:
    """What both processes have in common: a database that knows a secret, and a directory for what they count."""
    key = generate_key()
    await RegistrationStore(engine, Sealer([key])).commit(
        EntityType.PRODUCT,
        webhook_id="1",
        signing_secret=SECRET,
        registered=None,
        now=utc_now(),
        retire_until=utc_now() + timedelta(hours=1),
    )
    (tmp_path / "counted").mkdir()
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "DATABASE_URL": database,
        "ENCRYPTION_KEYS": key,
        "ADMIN_API_KEY": ADMIN_KEY,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counted"),
    }


async def numbers(http: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    response = await http.get("/metrics")
    assert response.status_code == 200, response.text
    return {
        (sample.name.removeprefix("jasper_receiver_"), ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_each_process_tells_what_all_have_counted(environment: dict[str, str], tmp_path: Path) -> None:
    async with AsyncExitStack() as held:
        started = [
            await held.enter_async_context(a_process(environment, tmp_path / f"log-{number}")) for number in range(2)
        ]
        for count, (http, _) in zip((3, 4), started, strict=True):
            for number in range(count):
                body = {"event": "product.updated", "id": f"{http.base_url.port}-{number}"}
                answer = await http.post("/callbacks/products", json=body, headers={"X-Secret": SECRET})
                assert answer.json()["status"] == "accepted"
        for http, _ in started:
            found = await numbers(http)
            assert found["callbacks_total", "products,accepted"] == 7
            assert found["callback_seconds_count", ""] == 7
            assert found["batch_entries_sum", ""] == 7
            assert found["processes", ""] == 2
            assert found["pool_connections", "in_use"] >= 0
            assert found["feed_position", ""] >= 7  # not twice as much: it is the database's
            assert found["feed_position", ""] < 14
            assert {labels for name, labels in found if name == "process_resident_memory_bytes"} == {
                str(pid) for _, pid in started
            }


async def test_of_a_process_that_has_ended_only_what_it_counted_is_told(
    environment: dict[str, str], tmp_path: Path
) -> None:
    async with a_process(environment, tmp_path / "log-0") as (stays, pid):
        async with a_process(environment, tmp_path / "log-1") as (goes, _):
            await goes.post(
                "/callbacks/products", json={"event": "product.updated", "id": 1}, headers={"X-Secret": SECRET}
            )
            assert (await numbers(stays))["processes", ""] == 2
        found = await numbers(stays)
    assert found["callbacks_total", "products,accepted"] == 1
    assert found["processes", ""] == 1
    assert {labels for name, labels in found if name == "process_resident_memory_bytes"} == {str(pid)}


@pytest.fixture
async def replicas(environment: dict[str, str], tmp_path: Path) -> AsyncIterator[list[tuple[httpx.AsyncClient, int]]]:
    """Two processes that share nothing but Postgres, as two replicas do."""
    apart = {name: value for name, value in environment.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    async with AsyncExitStack() as held:
        yield [await held.enter_async_context(a_process(apart, tmp_path / f"log-{number}")) for number in range(2)]


async def callback(http: httpx.AsyncClient, body: dict[str, object]) -> dict[str, object]:
    answer = await http.post("/callbacks/products", json=body, headers={"X-Secret": SECRET})
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def a_change(number: int) -> dict[str, object]:
    data = {"id": number % 7, "qty": number, "updated_at": f"2026-11-23T10:{number // 60:02}:{number % 60:02}Z"}
    return {"event": "product.updated", "data": data}


async def test_what_one_replica_took_is_read_at_the_other_at_once(
    replicas: list[tuple[httpx.AsyncClient, int]],
) -> None:
    (one, _), (other, _) = replicas
    waiting = asyncio.create_task(other.get("/v1/events", params={"after": 0, "wait": 30}))
    async with asyncio.timeout(20):
        taken = await callback(one, a_change(1))
        page = (await waiting).json()
    assert [event["id"] for event in page["events"]] == [taken["event_id"]]
    assert (await other.get("/v1/products/1")).json()["data"]["qty"] == 1


async def test_the_same_delivery_sent_to_both_at_once_is_one_event(
    replicas: list[tuple[httpx.AsyncClient, int]],
) -> None:
    clients = [http for http, _ in replicas]
    for number in range(20):
        answers = await asyncio.gather(*(callback(http, a_change(number)) for http in clients))
        assert sorted(str(answer["status"]) for answer in answers) == ["accepted", "duplicate"]
        assert len({answer["event_id"] for answer in answers}) == 1


async def test_a_reader_that_goes_from_one_to_the_other_misses_and_repeats_nothing_while_both_write(
    replicas: list[tuple[httpx.AsyncClient, int]],
) -> None:
    clients = [http for http, _ in replicas]
    writing = [asyncio.create_task(callback(clients[number % 2], a_change(number))) for number in range(200)]
    seen: list[str] = []
    after = 0
    while len(seen) < len(writing):
        async with asyncio.timeout(30):
            page = (await clients[len(seen) % 2].get("/v1/events", params=_page(after))).json()
        seen += [event["id"] for event in page["events"]]
        after = page["after"]
    taken = [await task for task in writing]
    assert sorted(seen) == sorted(str(answer["event_id"]) for answer in taken)
    assert len(seen) == len(set(seen))


def _page(after: int) -> dict[str, str | int]:
    return {"after": after, "limit": 7, "wait": 5, "include_stale": "true"}


async def test_keys_and_leases_count_at_every_replica_at_once(replicas: list[tuple[httpx.AsyncClient, int]]) -> None:
    (one, _), (other, _) = replicas
    await callback(one, a_change(1))
    assert (await one.put("/v1/consumers/search", json={"start": "earliest"})).status_code == 201
    leased = await one.get("/v1/consumers/search/events", params={"lease": 60})
    assert len(leased.json()["events"]) == 1
    refused = await other.get("/v1/consumers/search/events", params={"lease": 60})
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/leased")


async def test_a_replica_that_is_killed_is_missed_by_nobody(environment: dict[str, str], tmp_path: Path) -> None:
    async with a_process(environment, tmp_path / "log-0") as (stays, _):
        async with a_process(environment, tmp_path / "log-1", ends_with=-signal.SIGKILL) as (goes, pid):
            await callback(goes, a_change(1))
            os.kill(pid, signal.SIGKILL)
            await callback(stays, a_change(2))
        assert (await callback(stays, a_change(1)))["status"] == "duplicate"  # Jasper's retry, at the other
        page = (await stays.get("/v1/events")).json()
        assert [event["data"]["qty"] for event in page["events"]] == [1, 2]
