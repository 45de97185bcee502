"""Two processes on one Postgres: each can be asked for everything, and each tells the numbers of both."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
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
async def a_process(environment: dict[str, str], log: Path) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
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
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0, log.read_text()


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
