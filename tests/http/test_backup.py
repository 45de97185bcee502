"""A backup is worth what its restoring gives: the very feed, states and memory, in another Postgres.

Done as `docs/operations/backup.md` says, with its own commands.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.db.embedded import _find_programs, embedded_postgres
from app.main import create_app
from app.settings import Settings
from tests.conftest import served
from tests.http.conftest import ADMIN_KEY, SECRET, Receiver

PAGE = (Path(__file__).parents[2] / "docs/operations/backup.md").read_text()

EXACT = (
    b'{"event": "product.created", "data": {"id": 1, "price": 1.10, "big": 1e400, "odd": "\\ud800\\u0000",'
    b' "updated_at": "2026-11-23T10:00:00Z"}}'
)
READ = [
    *("/v1/events?include_stale=true", "/v1/products?include_deleted=true", "/v1/products/1", "/v1/consumers/search"),
    *("/v1/consumers/search/parked", "/v1/deliveries", "/v1/unproven", "/v1/products/1/events"),
]


def commands(heading: str) -> list[str]:
    """The commands that the page gives under a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]


def run(command: str, directory: Path, **variables: str) -> None:
    """Run a command of the page with the programs of the embedded Postgres."""
    environment = {"PATH": f"{_find_programs()}:{os.environ['PATH']}", **variables}
    words = [re.sub(r"\$(\w+)", lambda found: variables[found[1]], word) for word in shlex.split(command)]
    done = subprocess.run(words, cwd=directory, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


async def answers(http: httpx.AsyncClient) -> dict[str, Any]:
    """What readers get, byte for byte; what depends on the moment aside."""
    found = {}
    for path in READ:
        response = await http.get(path)
        assert response.status_code == 200, response.text
        found[path] = re.sub(rb'"lag_seconds":[0-9.e-]+', b"", response.content)
    return found


@pytest.mark.timeout(180)
async def test_a_restored_dump_serves_the_same_feed_and_goes_on_from_there(
    receiver: Receiver, tmp_path: Path, database: str
) -> None:
    await receiver.callback(EXACT)
    await receiver.callback({"event": "product.updated", "id": 2, "data": {"id": 2, "qty": 7, "version": 1}})
    deleted = {"event": "product.deleted", "data": {"id": 2, "updated_at": "2026-11-23T11:00:00Z"}}
    await receiver.callback(deleted)
    await receiver.callback(b"no json", x_secret=SECRET)
    await receiver.http.put("/v1/consumers/search", json={"start": "earliest"})
    await receiver.http.post("/v1/consumers/search/ack", json={"after": 1})
    await receiver.http.post("/v1/consumers/search/park", json={"sequence": 2, "reason": "poison"})
    before = await answers(receiver.http)

    for command in commands("Back up"):
        run(command, tmp_path, DATABASE_URL=database)
    with embedded_postgres(tmp_path / "other", database="restored", settings={"fsync": "off"}) as dsn:
        for command in commands("Restore"):
            run(command, tmp_path, DATABASE_URL=dsn)
        settings = Settings.model_validate(
            {"database_url": dsn, "encryption_keys": [receiver.key], "admin_api_key": ADMIN_KEY, "data_dir": "unused"}
        )
        authorization = {"Authorization": f"Bearer {ADMIN_KEY}"}
        async with (
            served(create_app(settings, dsn, [receiver.key])) as url,
            httpx.AsyncClient(base_url=url, headers=authorization, timeout=30) as http,
        ):
            assert (await http.get("/readyz")).json()["status"] == "ready"
            assert await answers(http) == before
            repeated = await http.post("/callbacks/products", content=EXACT, headers={"X-Secret": SECRET})
            assert repeated.json()["status"] == "duplicate"
            fresh = await http.post(
                "/callbacks/products", json={"event": "product.created", "id": 3}, headers={"X-Secret": SECRET}
            )
            assert fresh.json()["status"] == "accepted"
            [*_, newest] = (await http.get("/v1/events")).json()["events"]
            assert newest["id"] == fresh.json()["event_id"]
            assert newest["sequence"] > 1_000_000  # beyond whatever was given after the dump
