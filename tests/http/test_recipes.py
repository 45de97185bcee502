"""Every program in `docs/recipes.md` is run as it stands there, against a running service, and does what the page says.

Programs that follow are watched while events come, and killed when they have shown what they are there for.
"""

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from app.access.keys import Scope, create_key
from app.clock import utc_now
from app.db.embedded import _find_programs
from app.db.engine import create_engine
from tests.http.conftest import Receiver

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/recipes.md").read_text()
RECIPES: dict[str, str] = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))

COMMANDS = {".py": (sys.executable,), ".mjs": ("node",), ".sh": ("bash", "-u")}
FOLLOWERS = ["follow.py", "follow.sh", "consumer.sh", "follow.mjs", "stream.mjs"]
OTHERS = [
    *("pods.py", "copy_all.py", "stream.sh", "grant.sql", "page.sql", "copy_all.sql", "batch.sh", "batch.py"),
]


def test_every_program_on_the_page_is_run_here() -> None:
    assert sorted(RECIPES) == sorted(FOLLOWERS + OTHERS)
    assert PAGE.count("\n```") == 2 * len(RECIPES), "a block without a name would not be run"


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")


def needs_what_it_uses(name: str) -> None:
    needs(*{".py": (), ".mjs": ("node",), ".sh": ("bash", "curl", "jq")}[Path(name).suffix])


@dataclass
class Program:
    """A recipe that runs; `next` is its next line."""

    process: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list)

    async def next(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            line = await self.process.stdout.readline()
        assert line, await self._trouble()
        self.said.append(line.decode().rstrip("\n"))
        return self.said[-1]

    async def rest(self) -> list[str]:
        """All lines until its end, which must be a good one."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            text = await self.process.stdout.read()
        assert await self.process.wait() == 0, await self._trouble()
        return text.decode().splitlines()

    async def _trouble(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def kill(self) -> None:
        """End it, and what it has started."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.communicate()


class Kitchen:
    """Runs recipes in a directory of their own, each with its text from the page."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}

    @asynccontextmanager
    async def running(self, name: str, *command: str | Path) -> AsyncIterator[Program]:
        """A recipe until the block ends. It is killed then, where it has not ended by itself."""
        file = self.directory / name
        file.write_text(RECIPES[name])
        process = await asyncio.create_subprocess_exec(
            *(command or (*COMMANDS[file.suffix], file)),
            cwd=self.directory,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        program = Program(process)
        try:
            yield program
        finally:
            await program.kill()

    async def run(self, name: str, *command: str | Path) -> list[str]:
        """What a recipe says until its end."""
        async with self.running(name, *command) as program:
            return await program.rest()


@pytest.fixture
async def kitchen(receiver: Receiver, database: str, tmp_path: Path) -> Kitchen:
    engine = create_engine(database)
    _, key = await create_key(engine, "recipes", [Scope.READ, Scope.WRITE], now=utc_now())
    await engine.dispose()
    return Kitchen(tmp_path, {"URL": str(receiver.http.base_url).rstrip("/"), "KEY": key})


class Catalogue:
    """Changes products, as Jasper tells of it."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._times = count()

    async def change(self, entity_id: int, *, action: str = "updated", price: object = 49.5) -> str:
        """One event; returns its id. Each is later than the one before."""
        data = {"id": entity_id, "price": price, "updated_at": f"2026-11-23T10:00:{next(self._times):02}Z"}
        answer = await self._receiver.callback({"event": f"product.{action}", "data": data})
        assert answer.json()["status"] == "accepted", answer.text
        event_id: str = answer.json()["event_id"]
        return event_id


@pytest.fixture
def catalogue(receiver: Receiver) -> Catalogue:
    return Catalogue(receiver)


@pytest.mark.parametrize("name", FOLLOWERS)
async def test_a_follower_shows_what_is_there_and_then_what_comes(
    kitchen: Kitchen, catalogue: Catalogue, name: str
) -> None:
    needs_what_it_uses(name)
    await catalogue.change(1001, action="created")
    await catalogue.change(1002, action="created")
    async with kitchen.running(name) as program:
        assert await program.next() == "1 product.created 1001"
        assert await program.next() == "2 product.created 1002"
        await catalogue.change(1001, price=50)
        assert await program.next() == "3 product.updated 1001"
        await catalogue.change(1001, action="deleted")
        assert await program.next() == "4 product.deleted 1001"


@pytest.mark.parametrize("name", ["follow.py", "follow.sh", "consumer.sh", "follow.mjs"])
async def test_a_follower_that_was_killed_goes_on_where_it_was(
    kitchen: Kitchen, catalogue: Catalogue, receiver: Receiver, name: str
) -> None:
    """Once it has said so; what it was about to say comes again, unless it arrives after all: it was all printed before."""
    needs_what_it_uses(name)
    await catalogue.change(1001)
    async with kitchen.running(name) as program:
        assert await program.next() == "1 product.updated 1001"
        await catalogue.change(1002)
        assert await program.next() == "2 product.updated 1002"
        async with asyncio.timeout(10):
            while await position(kitchen, receiver) < 1:
                await asyncio.sleep(0.02)
    came_to = await position(kitchen, receiver)
    await catalogue.change(1003)
    async with kitchen.running(name) as program:
        first = await program.next()
        number = int(first.split()[0])
        assert came_to < number <= 3
        assert first == f"{number} product.updated {1000 + number}"
        for later in range(number + 1, 4):
            assert await program.next() == f"{later} product.updated {1000 + later}"


async def position(kitchen: Kitchen, receiver: Receiver) -> int:
    """Where the recipe stands: by its file, or as the service keeps it."""
    file = kitchen.directory / "position"
    if file.exists():
        return int(file.read_text())  # never half written, or whoever is killed just then could not go on
    consumers = (await receiver.http.get("/v1/consumers")).json()["consumers"]
    return max((one["position"] for one in consumers), default=0)


async def test_the_stream_in_javascript_comes_back_where_it_was(
    kitchen: Kitchen, catalogue: Catalogue, receiver: Receiver
) -> None:
    needs("node")
    await catalogue.change(1001)
    async with kitchen.running("stream.mjs") as program:
        assert await program.next() == "1 product.updated 1001"
        receiver.app.state.drain()  # streams end, as when the process stops
        await catalogue.change(1002)
        assert await program.next() == "2 product.updated 1002"


@pytest.mark.parametrize("name", ["follow.py", "follow.sh", "consumer.sh", "follow.mjs", "stream.mjs"])
async def test_a_follower_whose_key_is_refused_says_so_and_ends(kitchen: Kitchen, name: str) -> None:
    needs_what_it_uses(name)
    kitchen.environment["KEY"] = "wrong"
    async with kitchen.running(name) as program:
        async with asyncio.timeout(30):
            _, said = await program.process.communicate()
        assert program.process.returncode not in {0, None}
        assert re.search("401|API key", said.decode())


async def test_pods_take_changes_of_prices_and_set_aside_what_is_none(
    kitchen: Kitchen, catalogue: Catalogue, receiver: Receiver
) -> None:
    await catalogue.change(1001, action="created")
    await catalogue.change(1001, price=50)
    await catalogue.change(1001, price="none")
    async with kitchen.running("pods.py") as program:
        assert await program.next() == "1001 50"
        await catalogue.change(1001, price="12.30")
        assert await program.next() == "1001 12.30"
    [parked] = (await receiver.http.get("/v1/consumers/prices/parked")).json()["parked"]
    assert (parked["sequence"], parked["reason"].partition(":")[0]) == (3, "InvalidOperation")


async def test_a_copy_is_kept_up_to_date(kitchen: Kitchen, catalogue: Catalogue) -> None:
    for entity_id in (1001, 1002, 1003):
        await catalogue.change(entity_id, action="created")
    async with kitchen.running("copy_all.py") as program:
        assert await program.next() == "3 products at 3"
        await catalogue.change(1002, action="deleted")
        assert await program.next() == "2 products at 4"
        await catalogue.change(1004, action="created")
        assert await program.next() == "3 products at 5"


async def test_the_stream_can_be_looked_at(kitchen: Kitchen, catalogue: Catalogue) -> None:
    needs_what_it_uses("stream.sh")
    await catalogue.change(1001)
    async with kitchen.running("stream.sh") as program:
        while not (await program.next()).startswith("data:"):
            pass
    assert {"id: 1", "event: product.updated"} <= set(program.said)


async def test_readers_by_sql_get_a_page_and_a_copy(kitchen: Kitchen, catalogue: Catalogue, database: str) -> None:
    for price in (1.5, 2.50):
        await catalogue.change(1001, price=price)
    await catalogue.change(1002, action="deleted")
    psql = (_find_programs() / "psql", "-v", "ON_ERROR_STOP=1", "-qAt")
    owner = await asyncpg.connect(database)
    try:
        await kitchen.run("grant.sql", *psql, "-f", "grant.sql", database)
        reader = re.sub("//[^@]*@", "//search@", database)
        page = await kitchen.run("page.sql", *psql, "-v", "after=1", "-f", "page.sql", reader)
        assert page == ["2|product.updated|1001|2.5", "3|product.deleted|1002|49.5"]
        position, *entities = await kitchen.run("copy_all.sql", *psql, "-f", "copy_all.sql", reader)
        assert position == "3"
        assert [one.partition("|")[0] for one in entities] == ["1001"]
    finally:
        await owner.execute("DROP ROLE IF EXISTS search")
        await owner.close()


@pytest.mark.parametrize("name", ["batch.sh", "batch.py"])
async def test_cloud_events_come_as_a_batch_and_a_position(kitchen: Kitchen, catalogue: Catalogue, name: str) -> None:
    needs_what_it_uses(name)
    ids = [await catalogue.change(entity_id) for entity_id in (1001, 1002)]
    said = await kitchen.run(name)
    assert sorted(said, key=len) == ["2", *(f"{one} product.updated {1001 + at}" for at, one in enumerate(ids))]
