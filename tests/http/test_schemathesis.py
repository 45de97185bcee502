"""The OpenAPI document against the running service: requests made from it, right and wrong ones, and every answer checked.

SCHEMATHESIS_EXAMPLES=1000 in the environment looks longer than an ordinary run; SCHEMATHESIS_SEED takes another way.
"""

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.builders import a_delivery, an_entity, events_of
from tests.http.conftest import ADMIN_KEY, SECRET, Start

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "12")
SEED = os.environ.get("SCHEMATHESIS_SEED", "1")

pytestmark = pytest.mark.timeout(120 + 5 * int(EXAMPLES))

LEFT_OUT = {"object_level_authorization": "nothing here belongs to one caller: a key reads everything or nothing"}
"""Checks that are not made, and why."""

CONFIGURATION = """
[[operations]]
# 503 is the contract's answer where no secret is known yet, as here for all but products.
include-path = "/callbacks/{collection}"
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]
"""


async def fill(engine: AsyncEngine) -> None:
    """Something of everything, among it what the document's examples name."""
    await events_of(engine, 5, changed=["price"], changes='[{"op":"add","path":"/price","to":1.10}]')
    await events_of(engine, 2, data=None, occurred_at=None, delivery_id=None, stale=True)
    for entity_id in ("1001", "a/b", "ü", "1002"):
        await an_entity(engine, entity_id=entity_id)
    await a_delivery(engine)
    await a_delivery(engine, status="quarantined", body=b"\xff", reason="the body cannot be read as JSON")


async def findings(url: str, folder: Path, headers: Sequence[str]) -> str:
    """What schemathesis has to say about the service at `url`; empty where it found nothing."""
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("schemathesis"), "--config-file", folder / "schemathesis.toml"),
        *(
            "run",
            f"{url}/openapi.json",
            "--checks",
            "all",
            "--exclude-checks",
            ",".join(LEFT_OUT),
        ),
        *("--mode", "all", "--max-examples", EXAMPLES, "--seed", SEED),
        *("--generation-database", "none", "--suppress-health-check", "all", "--request-timeout", "20", "--no-color"),
        # One worker: Python 3.11 now and then fails to parse source in two threads at once, which hypothesis does.
        *("--continue-on-failure", "--no-shrink", "--workers", "1"),
        *(part for header in headers for part in ("--header", header)),
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    text = said.decode()
    requests = re.search(r"(\d+) generated", text)
    assert requests, text
    assert int(requests[1]) > 500
    return "" if process.returncode == 0 else text


KEY = f"Authorization: Bearer {ADMIN_KEY}"
FACES = {
    "all faces": (["callbacks", "api", "dashboard"], [KEY, f"X-Secret: {SECRET}"]),
    "the API": (["api"], [KEY]),
    "without a key": (["callbacks", "api", "dashboard"], []),
}


@pytest.mark.parametrize(
    ("roles", "headers"),
    # "All faces" asks the same of the API; alone it has a document of its own.
    [pytest.param(*FACES[name], id=name, marks=pytest.mark.long if name == "the API" else ()) for name in FACES],
)
async def test_every_answer_is_as_the_document_says(
    start: Start, engine: AsyncEngine, tmp_path: Path, roles: list[str], headers: list[str]
) -> None:
    await fill(engine)
    async with start(roles=roles) as receiver:
        receiver.app.state.drain()  # readers are let go at once, as when the process ends: nobody waits for `wait`
        if found := await findings(str(receiver.http.base_url), tmp_path, headers):
            pytest.fail(found, pytrace=False)
        assert (await receiver.http.get("/healthz")).status_code == 200
