"""The console command as an operator uses it: what it prints where, and how it exits."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.cli import commands
from app.db.migrate import head_revision
from app.sealing import generate_key
from app.serving import listen
from app.settings import Settings
from tests.builders import a_delivery

ROOT = Path(__file__).parents[2]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(database: str, tmp_path: Path) -> Command:
    """Runs `jasper-receiver` on the test's own database, with nothing else in the environment."""
    given = {
        "DATABASE_URL": database,
        "ENCRYPTION_KEYS": generate_key(),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
    }

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app.cli.commands", *arguments],
            cwd=tmp_path,
            env={name: value for name, value in (given | environment).items() if value},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_keys_are_made_listed_and_revoked(command: Command) -> None:
    made = command("keys", "create", "search", "--scope", "read", "--scope", "write")
    assert made.returncode == 0
    assert made.stdout.startswith("jr_")
    assert made.stdout.strip() not in made.stderr

    [listed] = [json.loads(line) for line in command("keys", "list", "--json").stdout.splitlines()]
    assert (listed["name"], listed["scopes"], listed["revoked_at"]) == ("search", ["read", "write"], None)

    again = command("keys", "create", "search", "--scope", "read")
    assert (again.returncode, again.stdout) == (1, "")
    assert "revoke it first" in again.stderr

    assert command("keys", "revoke", "search").returncode == 0
    assert command("keys", "revoke", "search").returncode == 1


def test_every_wrong_setting_is_named_at_once_and_nothing_is_started(command: Command) -> None:
    failed = command("serve", PORT="http", ROLES="cook", JASPER_API_TOKEN="t", ENCRYPTION_KEYS="x")
    assert failed.returncode == 2
    for name in ("PORT", "ROLES", "JASPER_API_URL", "ENCRYPTION_KEYS"):
        assert name in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_application_that_does_not_start_is_a_failure_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn would end the process with an exit code of its own."""

    @asynccontextmanager
    async def failing(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("it does not start")
        yield

    monkeypatch.setattr(commands, "create_app", lambda *_: FastAPI(lifespan=failing))
    monkeypatch.setattr("app.logs.configure", lambda *_: None)
    with listen("127.0.0.1", 0) as listener:
        assert not commands._serve(Settings(), "", [], listener)


def test_a_database_that_is_not_there_is_said_in_words(command: Command) -> None:
    failed = command("status", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert failed.returncode == 1
    assert "DATABASE_URL" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_status_tells_where_things_stand(command: Command) -> None:
    shown = command("status", "--json")
    status = json.loads(shown.stdout)
    assert shown.returncode == 0
    assert status["ok"]
    assert status["problems"] == []
    assert [note["code"] for note in status["notes"]] == ["no-jasper"]
    assert (status["jasper"], status["schema"], status["feed_position"]) == (None, head_revision(), 0)
    assert (status["quarantined"], status["unproven"], status["registrations"], status["consumers"]) == (0, 0, [], [])
    assert status["sealed_values"] == {"current": 0, "older": 0, "lost": 0}
    assert status["reconciliations"] == []
    assert (status["event_retention_days"], status["delivery_retention_days"]) == (0, 30)
    lines = command("status").stdout.splitlines()
    assert lines[0] == "Nothing needs a hand."
    assert "nothing is registered" in lines[1]
    assert "sealed_values: 0 current, 0 older, 0 lost" in lines


async def test_status_tells_problems_first_with_what_to_do_and_fails(command: Command, engine: AsyncEngine) -> None:
    await a_delivery(engine, status="quarantined", body=b"no json", reason="?")
    shown = await asyncio.to_thread(command, "status")
    assert shown.returncode == 1
    first, second = shown.stdout.splitlines()[:2]
    assert first.startswith("problem")
    assert "[quarantined]" in first
    assert "reprocess --status quarantined" in second
    status = json.loads((await asyncio.to_thread(command, "status", "--json")).stdout)
    assert not status["ok"]
    assert [problem["code"] for problem in status["problems"]] == ["quarantined"]


def test_the_doctor_prints_what_it_tried_and_fails_where_something_is_wrong(command: Command) -> None:
    """The tests' own Postgres runs without fsync, and nothing else is wrong with it."""
    shown = command("doctor", "--json")
    assert shown.returncode == 1
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(one["area"], one["what"]) for one in found if one["verdict"] == "wrong"] == [("database", "fsync is off")]
    assert all(one["do"] for one in found if one["verdict"] in {"wrong", "warning"})
    assert "Something is wrong." in shown.stderr
    assert "wrong     database: fsync is off\n          → " in command("doctor").stdout
    assert command("doctor", PORT="none").returncode == 2


def test_the_feed_can_be_printed(command: Command) -> None:
    printed = command("events", "tail", "--after", "0", "--no-follow", "--json")
    assert (printed.returncode, printed.stdout) == (0, "")


def test_migrate_says_what_it_did(command: Command) -> None:
    assert json.loads(command("migrate", "--json").stdout) == dict.fromkeys(("before", "after"), head_revision())


def test_registering_without_a_jasper_says_which_settings_are_missing(command: Command) -> None:
    failed = command("register")
    assert failed.returncode == 1
    assert "JASPER_API_URL" in failed.stderr


def test_a_wrong_call_exits_with_2(command: Command) -> None:
    assert command("keys", "create", "x", "--scope", "everything").returncode == 2
    assert command("nonsense").returncode == 2


def test_a_secret_may_come_from_a_file(command: Command, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(generate_key() + "\n")
    assert command("status", ENCRYPTION_KEYS="", ENCRYPTION_KEYS_FILE=str(key)).returncode == 0
    missing = command("status", ENCRYPTION_KEYS="", ENCRYPTION_KEYS_FILE=str(tmp_path / "none"))
    assert missing.returncode == 2
    assert "ENCRYPTION_KEYS_FILE" in missing.stderr


def test_a_new_key_can_be_made_without_any_settings(command: Command) -> None:
    made = command("generate-key", DATABASE_URL="", ENCRYPTION_KEYS="")
    assert made.returncode == 0
    assert command("status", ENCRYPTION_KEYS=made.stdout.strip()).returncode == 0


def test_the_feed_is_followed_from_any_position_that_there_can_be_and_from_no_other(command: Command) -> None:
    assert command("events", "tail", "--after", str(2**63 - 1), "--no-follow").returncode == 0
    failed = command("events", "tail", "--after", str(2**63), "--no-follow")
    assert failed.returncode == 2
    assert "--after" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_workers_without_a_place_for_what_they_count_are_said_in_words(command: Command, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import tempfile; tempfile.tempdir = '/nowhere'")
    failed = command("serve", "--workers", "2", PORT="0", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert failed.returncode == 1
    assert "Error: several workers need a directory" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_serve_does_not_start_behind_head_unless_it_may_migrate(command: Command, empty_database: str) -> None:
    failed = command("serve", DATABASE_URL=empty_database, AUTO_MIGRATE="false")
    assert failed.returncode == 1
    assert "jasper-receiver migrate" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_port_that_is_taken_is_said_in_words(command: Command) -> None:
    with listen("127.0.0.1", 0) as taken:
        failed = command("serve", PORT=str(taken.getsockname()[1]))
    assert failed.returncode == 1
    assert "PORT" in failed.stderr
    assert "Traceback" not in failed.stderr


async def test_deliveries_are_read_again_by_id_or_by_status(command: Command, engine: AsyncEngine) -> None:
    """The ids are those of the rows; what comes of them is printed as it is done."""
    kept = [
        await a_delivery(engine, status="quarantined", body=b'{"what": "updated", "id": %d}' % number, reason="?")
        for number in (1, 2)
    ]
    odd = await a_delivery(engine, status="quarantined", body=b"no json", reason="?")
    mapping = {"JASPER_PAYLOAD_MAPPING": '{"action": ["/what"]}'}

    one = await asyncio.to_thread(command, "reprocess", str(kept[1]["id"]), "--json", **mapping)
    assert one.returncode == 0, one.stderr
    record = json.loads(one.stdout)
    assert (record["delivery_id"], record["status"], record["reason"]) == (str(kept[1]["id"]), "accepted", None)
    assert "1 deliveries read again: 1 accepted, 0 duplicate, 0 quarantined" in one.stderr

    rest = await asyncio.to_thread(command, "reprocess", "--status", "quarantined", **mapping)
    assert rest.returncode == 0, rest.stderr
    lines = rest.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [str(kept[0]["id"]), "accepted"],
        [str(odd["id"]), "quarantined"],
    ]
    assert "cannot be read as JSON" in lines[1]

    unknown = await asyncio.to_thread(command, "reprocess", str(uuid4()), **mapping)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    for wrong in ([], [str(odd["id"]), "--status", "quarantined"]):
        assert (await asyncio.to_thread(command, "reprocess", *wrong)).returncode == 2
