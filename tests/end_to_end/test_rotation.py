"""Rotation while Jasper calls: of the signing secret, of custom headers, of encryption keys; and killed at every step.

Real receivers on one Postgres, a simulated Jasper that makes 50 changes a second and holds many callbacks back, so that
they come with what was replaced meanwhile.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.db.engine import connect
from app.registration.retry_window import RetryPlan, retirement
from app.sealing import generate_key
from app.simulator import Simulator, SimulatorOptions, running_simulator
from bench.torture.receiver import KEY, ReceiverProcess
from tests.conftest import served
from tests.end_to_end.harness import write_catalog

pytestmark = pytest.mark.timeout(300)

RETRIES = 50
PLAN = RetryPlan("linear", 300, RETRIES)
OLD_KEY, NEW_KEY = generate_key(), generate_key()


class Gate:
    """Stands between the receivers and Jasper's API, and does something once before or after one kind of call."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._http = httpx.AsyncClient()
        self.before: dict[str, Callable[[], None]] = {}
        self.after: dict[str, Callable[[], None]] = {}
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        self.app = Starlette(routes=[Route("/{path:path}", self._pass_on, methods=methods)])
        self.app.state.drain = lambda: None

    async def _pass_on(self, request: Request) -> Response:
        if act := self.before.pop(request.method, None):
            act()
            return Response(status_code=503)
        url = f"{self._simulator.base_url}{request.url.path}"
        headers = {name: value for name, value in request.headers.items() if name in {"authorization", "content-type"}}
        answer = await self._http.request(
            request.method, url, params=request.query_params, headers=headers, content=await request.body()
        )
        self.after.pop(request.method, lambda: None)()
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    async def close(self) -> None:
        await self._http.aclose()


class World:
    """Receivers on one database behind one address, and the Jasper that calls them there."""

    def __init__(self, simulator: Simulator, gate: Gate, api_url: str, database: str, directory: Path) -> None:
        self.simulator = simulator
        self.gate = gate
        self.directory = directory
        self.environment = {
            "DATABASE_URL": database,
            "ENCRYPTION_KEYS": OLD_KEY,
            "JASPER_API_URL": f"{api_url}/api/v1",
            "JASPER_API_TOKEN": simulator.token,
            "JASPER_WEBHOOK_RETRY_LIMIT": str(RETRIES),
        }
        self.receivers: list[ReceiverProcess] = []

    async def start(self, **environment: str) -> ReceiverProcess:
        """One more receiver. Jasper calls the first one."""
        address = {"PUBLIC_URL": self.receivers[0].url} if self.receivers else {}
        directory = self.directory / f"receiver-{len(self.receivers)}"
        receiver = ReceiverProcess(directory, self.environment | address | environment)
        self.receivers.append(receiver)
        await receiver.start()
        await receiver.ready()
        return receiver

    async def restart(self, receiver: ReceiverProcess, **environment: str) -> None:
        assert await receiver.stop() == 0
        receiver.environment |= environment
        await receiver.start()

    async def command(self, *arguments: str) -> asyncio.subprocess.Process:
        """`jasper-receiver` with the settings of the first receiver."""
        first = self.receivers[0]
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli.commands", *arguments),
            cwd=self.directory,
            env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[2]), "PUBLIC_URL": first.url} | first.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def rotate(self, receiver: ReceiverProcess) -> dict[str, Any]:
        authorization = {"Authorization": f"Bearer {KEY}"}
        answer = await receiver.http.post(f"{receiver.url}/v1/webhooks/product/rotate", headers=authorization)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def changed(self, count: int) -> None:
        """Wait until Jasper has made so many changes more."""
        target = len(self.simulator.changes) + count
        async with asyncio.timeout(60):
            while len(self.simulator.changes) < target:
                await asyncio.sleep(0.01)

    async def settled(self) -> None:
        """Wait until one webhook is there, and it is the one that is registered."""
        async with asyncio.timeout(60):
            while True:
                [webhook] = (await self.receivers[0].get("/v1/webhooks"))["webhooks"]
                is_done = webhook["state"] == "registered" and not webhook["pending"] and not webhook["rotating"]
                if is_done and [str(one.id) for one in self.simulator.webhooks.all()] == [webhook["webhook_id"]]:
                    return
                await asyncio.sleep(0.05)

    async def check(self, *, drained: bool = True) -> None:
        """All that was changed is in the feed, once, and the state is Jasper's.

        Not `drained` where Jasper goes on retrying what nobody will ever accept; the rest is then waited for.
        """
        self.simulator.pause()
        made: Counter[tuple[str, str]] = Counter(
            (str(change.entity["id"]), change.action) for change in self.simulator.changes
        )
        # Two deletes of one entity, held back so that they come one after the other, are one event.
        least = Counter({one: 1 if one[1] == "delete" else count for one, count in made.items()})
        async with asyncio.timeout(120):
            if drained:
                await self.simulator.drained()
            while not (told := await self._told()) >= least:
                assert not drained, f"missing: {least - told}"
                await asyncio.sleep(0.5)
        assert told <= made
        expected = {str(entity["id"]): entity for entity in self.simulator.catalog.entities("product")}
        for entity_id in {entity_id for entity_id, _ in told} & expected.keys():
            assert (await self.receivers[0].get(f"/v1/products/{entity_id}"))["data"] == expected[entity_id]

    async def _told(self) -> Counter[tuple[str, str]]:
        """How often the feed tells each action of each entity."""
        told, after, more = Counter[tuple[str, str]](), 0, True
        while more:
            page = await self.receivers[0].get("/v1/events", after=after, limit=1000, include_stale="true")
            told.update((event["entity_id"], event["action"]) for event in page["events"])
            after, more = page["after"], page["has_more"]
        return told

    def refused(self) -> list[dict[str, Any]]:
        """Attempts that were taken for a stranger's."""
        return [attempt for attempt in self.simulator.attempts if attempt["status"] == 401]


@asynccontextmanager
async def world(database: str, directory: Path) -> AsyncIterator[World]:
    options = SimulatorOptions(
        catalog=write_catalog(directory / "catalog.jsonl", 500),
        rate=50,
        time_resolution="microsecond",
        time_scale=0.002,
        concurrency=16,
        disorder_probability=0.3,
        disorder_delay=2,
    )
    async with AsyncExitStack() as held:
        simulator = await held.enter_async_context(running_simulator(options))
        gate = Gate(simulator)
        held.push_async_callback(gate.close)
        api_url = await held.enter_async_context(served(gate.app))  # type: ignore[arg-type]  # any ASGI application will do
        world = World(simulator, gate, api_url, database, directory)
        try:
            yield world
        finally:
            for receiver in world.receivers:
                await receiver.close()


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(database, application_name="test")
    yield connection
    await connection.close()


async def test_secrets_rotated_under_load_lose_nothing_and_retire_when_their_last_retry_is_over(
    database: str, tmp_path: Path, sql: asyncpg.Connection
) -> None:
    """By the API of another replica than Jasper calls, by command, and by the API of the very one."""
    async with world(database, tmp_path) as here:
        called, other = await here.start(), await here.start()
        secrets = [here.simulator.webhooks.all()[0].signing_secret]
        for rotate in (
            lambda: here.rotate(other),
            lambda: here.command("rotate-secret", "product", "--json"),
            lambda: here.rotate(called),
        ):
            await here.changed(50)
            done = await rotate()
            if not isinstance(done, dict):
                out, _ = await done.communicate()
                done = json.loads(out)
            assert "rotated its secret" in done["done"]
            [webhook] = here.simulator.webhooks.all()
            assert webhook.signing_secret not in secrets
            secrets.append(webhook.signing_secret)
        await here.changed(100)
        await here.check()
        assert here.simulator.sender.statistics.lost == 0
        assert here.refused() == []

        rows = await sql.fetch("SELECT id, accepted_until FROM retiring_credentials ORDER BY id")
        assert len(rows) == 3
        mended_at = datetime.fromisoformat((await called.get("/v1/webhooks"))["webhooks"][0]["registered_at"])
        assert rows[-1]["accepted_until"] - mended_at == retirement(PLAN) > timedelta(hours=4)

        for number, row in enumerate(rows):
            assert [await answer(called, secret) for secret in secrets[number:]] == [200] * (4 - number)
            await sql.execute("UPDATE retiring_credentials SET accepted_until = now() WHERE id = $1", row["id"])
            async with asyncio.timeout(20):  # a window that is shorter than it was is seen at the next refresh
                while await answer(called, secrets[number]) != 401:
                    await asyncio.sleep(0.1)
        assert [await answer(called, secret) for secret in secrets] == [401, 401, 401, 200]


async def answer(receiver: ReceiverProcess, secret: str) -> int:
    """The status of a callback that proves itself by a secret."""
    body = {"id": secret, "event": "product.updated", "data": {"id": 1, "updated_at": "2026-01-01T00:00:00Z"}}
    headers = {"X-Signing-Secret": secret}
    return (await receiver.http.post(f"{receiver.url}/callbacks/products", json=body, headers=headers)).status_code


STEPS = {
    "receiver, before anything is asked": ("before", "GET", False),
    "receiver, before the creation": ("before", "POST", False),
    "receiver, after the creation, its answer unheard": ("after", "POST", False),
    "receiver, after the commit, before the old one goes": ("before", "DELETE", False),
    "receiver, after the old one went": ("after", "DELETE", False),
    "command, after the creation, its answer unheard": ("after", "POST", True),
    "command, after the commit, before the old one goes": ("before", "DELETE", True),
}
SHORT = {
    "receiver, before the creation",
    "receiver, after the creation, its answer unheard",
    "receiver, after the commit, before the old one goes",
}


@pytest.mark.parametrize(
    ("moment", "method", "by_command"),
    [
        # The steps of a command are those of the receiver; only who finishes them is another one. And before or behind all that
        # matters there is little to be lost.
        pytest.param(*step, id=name, marks=() if name in SHORT else pytest.mark.long)
        for name, step in STEPS.items()
    ],
)
async def test_rotation_killed_at_any_step_is_finished_and_loses_nothing(
    database: str, tmp_path: Path, moment: str, method: str, by_command: bool
) -> None:
    """By the receiver itself once it is started again, where it was killed; by the one that runs, where a command was."""
    async with world(database, tmp_path) as here:
        receiver = await here.start()
        first = here.simulator.webhooks.all()[0].signing_secret
        await here.changed(50)
        killed = asyncio.Event()
        victim: list[asyncio.subprocess.Process] = []

        def kill() -> None:
            for process in victim:
                process.kill()
            killed.set()

        getattr(here.gate, moment)[method] = kill
        if by_command:
            process = await here.command("rotate-secret", "product")
            victim.append(process)
            await process.communicate()
        else:
            assert receiver.process is not None
            victim.append(receiver.process)
            with pytest.raises(httpx.TransportError):
                await here.rotate(receiver)
            await receiver.process.wait()
            await receiver.start()
        assert killed.is_set()
        assert victim[0].returncode == -9
        await here.settled()
        assert here.simulator.webhooks.all()[0].signing_secret != first
        await here.changed(50)
        # The webhook whose secret nobody heard has called too, and its callbacks are retried and refused to the end.
        await here.check(drained=(moment, method) != ("after", "POST"))


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(
            [{"JASPER_WEBHOOK_HEADERS": '{"X-Custom": "old"}'}, {"JASPER_WEBHOOK_HEADERS": '{"X-Custom": "new"}'}],
            id="headers",
        ),
        pytest.param(
            [{}, {"JASPER_WEBHOOK_HEADERS": '{"X-Custom": "new"}'}, {}],
            id="headers come and go",
            marks=pytest.mark.long,
        ),
        pytest.param(
            [{"ENCRYPTION_KEYS": keys} for keys in (OLD_KEY, f"{OLD_KEY},{NEW_KEY}", f"{NEW_KEY},{OLD_KEY}", NEW_KEY)],
            id="keys",
            marks=pytest.mark.long,
        ),
        pytest.param(
            [{"ENCRYPTION_KEYS": keys} for keys in (OLD_KEY, f"{NEW_KEY},{OLD_KEY}", NEW_KEY)],
            id="keys in haste",
            marks=pytest.mark.long,
        ),
    ],
)
async def test_settings_rolled_out_replica_by_replica_lose_nothing(
    database: str, tmp_path: Path, steps: list[dict[str, str]]
) -> None:
    """The last to be restarted at each step is the one that Jasper calls, so that it meets what the other one did."""
    async with world(database, tmp_path) as here:
        called = await here.start(**steps[0])
        other = await here.start(**steps[0])
        unset = dict.fromkeys(steps[1], "")
        for environment in steps[1:]:
            await here.changed(40)
            await here.restart(other, **unset | environment)
            await here.changed(40)
            await here.restart(called, **unset | environment)
        await here.changed(40)
        await here.settled()
        await here.check()
        assert here.simulator.sender.statistics.lost == 0
        assert here.refused() == []
        shown, _ = await (await here.command("status", "--json")).communicate()
        assert json.loads(shown)["sealed_values"]["older"] == json.loads(shown)["sealed_values"]["lost"] == 0
