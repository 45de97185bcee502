"""The console command, as a process of its own."""

import re
import signal
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from app.cli.simulate import simulate
from app.simulator import Simulator, SimulatorOptions
from app.simulator.control import control_routes

COMMAND = [sys.executable, "-c", "from app.cli.simulate import simulate; simulate()"]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_serves_and_ends_cleanly(tmp_path: Path, end: signal.Signals) -> None:
    file = tmp_path / "catalog.jsonl"
    file.write_text('{"id": 7, "name": "Seven"}\n')
    process = subprocess.Popen(  # our own command
        [*COMMAND, "--port", "0", "--catalog", str(file), "--token", "t"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            lines = [process.stderr.readline() for _ in range(4)]
            base = re.search(r"API base +(http://127\.0\.0\.1:\d+/api/v1)", "".join(lines))
            assert base, lines
            answer = httpx.get(f"{base[1]}/products/7", headers={"Authorization": "Bearer t"}, trust_env=False)
            assert answer.json()["data"]["name"] == "Seven"
            process.send_signal(end)
            stdout, stderr = process.communicate(timeout=10)
        finally:
            process.kill()
    assert (process.returncode, stdout) == (0, "")
    assert "0 callbacks" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--catalog", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--catalog", "bad.jsonl"], "bad.jsonl, line 2: no JSON"),
        (["--page-size", "0"], "page_size must be greater than 0"),
        (["--secret-place", "pocket"], "secret_place must be"),
        (["--shape", "round"], "--shape"),
        (["--shape", "flat", "--secret-place", "body:/sku/secret"], "/sku is no object"),
    ],
)
def test_a_wrong_call_exits_with_2_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"id": 1}\n{"id": 2\n')
    result = CliRunner().invoke(simulate, ["--port", "0", *arguments])
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stdout == ""


def test_a_port_in_use_exits_with_1_and_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(simulate, ["--port", str(port)])
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr


def test_every_switch_is_an_option_with_help_and_stands_in_the_docs() -> None:
    shown = CliRunner().invoke(simulate, ["--help"]).output
    docs = (ROOT / "docs" / "simulator.md").read_text()
    for field in fields(SimulatorOptions):
        flag = f"--{field.name.replace('_', '-')}"
        assert flag in shown
        assert f"`{flag}`" in docs


def test_every_control_stands_in_the_docs() -> None:
    docs = (ROOT / "docs" / "simulator.md").read_text()
    for route in control_routes(Simulator()):
        for method in (route.methods or set()) - {"HEAD"}:
            assert f"`{method} /_simulator{route.path}" in docs
