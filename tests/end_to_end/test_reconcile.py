"""`jasper-receiver reconcile` as an operator runs it, killed in the middle, and gone on with."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import asyncpg

from app.db.engine import connect
from app.sealing import generate_key
from app.simulator import Simulator, SimulatorOptions, running_simulator
from app.simulator.api import API_PATH
from tests.end_to_end.harness import write_catalog

ROOT = Path(__file__).parents[2]


async def start(database: str, simulator: Simulator, tmp_path: Path, *arguments: str, **environment: str) -> Any:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli.commands", "reconcile", *arguments),
        cwd=tmp_path,
        env={
            "DATABASE_URL": database,
            "ENCRYPTION_KEYS": generate_key(),
            "JASPER_API_URL": f"{simulator.base_url}{API_PATH}",
            "JASPER_API_TOKEN": simulator.token,
            "PUBLIC_URL": "http://127.0.0.1:1",
            "RECONCILE_RATE": "1000",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
        }
        | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(
    database: str, simulator: Simulator, tmp_path: Path, *arguments: str, **environment: str
) -> tuple[int, str, str]:
    process = await start(database, simulator, tmp_path, *arguments, **environment)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def compared(sql: asyncpg.Connection) -> int:
    return int(await sql.fetchval("SELECT coalesce(max(compared), 0) FROM reconciliations"))


async def test_a_run_killed_in_the_middle_is_gone_on_with(database: str, tmp_path: Path) -> None:
    """Nothing is read twice that was finished, and nothing is written or counted twice."""
    options = SimulatorOptions(rate=0, catalog=write_catalog(tmp_path / "catalog.jsonl", 600), page_size=10)
    sql = await connect(database, application_name="test")
    async with running_simulator(options) as simulator:
        first = await start(database, simulator, tmp_path, "product")
        while await compared(sql) < 100:
            assert first.returncode is None, (await first.communicate())[1].decode()
            await asyncio.sleep(0.005)
        first.kill()
        await first.communicate()
        [left] = await sql.fetch("SELECT * FROM reconciliations")
        assert left["status"] == "running"
        assert left["compared"] < 600
        written = await sql.fetchval("SELECT count(*) FROM events")
        assert written == left["created"]

        code, out, err = await run(database, simulator, tmp_path, "product", "--json")
        assert code == 0, err
        done = json.loads(out)
        assert (done["id"], done["status"]) == (str(left["id"]), "succeeded")
        assert (done["compared"], done["created"]) == (600, 600)
        assert await sql.fetchval("SELECT count(*) FROM events") == 600
        assert await sql.fetchval("SELECT count(DISTINCT entity_id) FROM events") == 600
    await sql.close()


async def test_it_says_what_is_to_do_and_exits_accordingly(database: str, tmp_path: Path) -> None:
    options = SimulatorOptions(rate=0, time_resolution="microsecond")
    async with running_simulator(options) as simulator:
        given = (database, simulator, tmp_path)
        assert (await run(*given, "shoe"))[0] == 2
        code, out, _ = await run(*given, "product")
        assert code == 0
        assert "status: succeeded" in out
        for _ in range(5):
            await simulator.change(kind="gone", entity_type="product")
        code, out, _ = await run(*given, "product", RECONCILE_MOST_DELETED="0.01")
        assert code == 1
        assert "status: needs_confirmation" in out
        assert "--force" in out
        code, out, _ = await run(*given, "product", "--force", "--json", RECONCILE_MOST_DELETED="0.01")
        assert (code, json.loads(out)["deleted"]) == (0, 5)
        code, out, _ = await run(*given, "product", "--json", JASPER_API_TOKEN="wrong")
        assert (code, json.loads(out)["status"]) == (1, "failed")
        assert "JASPER_API_TOKEN" in json.loads(out)["error"]
        status = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli.commands", "status", "--json"),
            cwd=tmp_path,
            env={
                "DATABASE_URL": database,
                "ENCRYPTION_KEYS": generate_key(),
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
            },
            stdout=asyncio.subprocess.PIPE,
        )
        out = (await status.communicate())[0].decode()
        assert [one["status"] for one in json.loads(out)["reconciliations"]] == ["failed"]


async def test_without_a_jasper_it_names_the_settings(database: str, tmp_path: Path) -> None:
    async with running_simulator(SimulatorOptions(rate=0)) as simulator:
        nothing = {"JASPER_API_URL": "", "JASPER_API_TOKEN": "", "PUBLIC_URL": ""}
        code, _, err = await run(database, simulator, tmp_path, "product", **nothing)
    assert code == 1
    assert "JASPER_API_URL" in err
    assert "Traceback" not in err
