"""The newcomer's command: one line, and the feed is there."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.serving import listen

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(120)


COMMAND = [sys.executable, "-m", "app.cli.commands", "demo", "--rate", "20", "--changes", "30"]


@contextmanager
def running(directory: Path, **settings: str) -> Iterator["subprocess.Popen[str]"]:
    """A demo that ends after a few changes, talking into `talk` in its directory."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PORT": "0", **settings}
    with (directory / "talk").open("w") as talk:
        process = subprocess.Popen(
            COMMAND, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=talk, text=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # in order, so that neither its receiver nor its Postgres is left behind
            process.communicate()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    # A .env of somebody's real set-up must not reach the demo.
    (tmp_path / ".env").write_text(
        "DATABASE_URL=postgresql://nobody@127.0.0.1:1/production\nENCRYPTION_KEYS=" + "A" * 43 + "=\n"
    )
    with running(tmp_path, PORT=str(port)) as process:
        yield process


def test_the_demo_shows_the_catalogue_and_then_every_change_in_order(
    demo: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert demo.stdout is not None
    shown = [demo.stdout.readline() for _ in range(30)]
    talk = (tmp_path / "talk").read_text()

    assert "25 products created" in talk
    sequences = [int(line.split()[0].removeprefix("#")) for line in shown]
    assert sequences == sorted(set(sequences))
    assert all(re.search(r" product\.(created|updated|deleted) ", line) for line in shown)

    # The lines to try are true.
    url, key = re.findall(r"Bearer (\S+)' '(http://[^/]+)/", talk)[0][::-1]
    http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"})
    assert len(http.get("/v1/events", params={"limit": 1000}).json()["events"]) == 55
    assert http.get("/docs").is_success
    page = http.get("/docs").text
    assert "://" not in re.sub(r"http://www\.w3\.org/\S+", "", page), "the API pages ask another host"
    [dashboard] = re.findall(r"dashboard +(\S+)", talk)
    opened = http.post("/dashboard/login", data={"key": key}, headers={"Origin": url})
    assert (dashboard, opened.status_code, "set-cookie" in opened.headers) == (f"{url}/", 303, True)

    demo.send_signal(signal.SIGINT)
    assert demo.wait(40) == 0
    with pytest.raises(httpx.TransportError):
        http.get("/healthz")


def test_a_receiver_that_is_killed_is_started_again_and_the_feed_goes_on(
    demo: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert demo.stdout is not None
    demo.stdout.readline()
    [receiver] = subprocess.run(
        ["pgrep", "-P", str(demo.pid), "-f", "commands serve"], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(receiver), signal.SIGKILL)
    for _ in range(29):
        assert demo.stdout.readline().startswith("#")
    assert "starting it again" in (tmp_path / "talk").read_text()
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(40) == 0


def test_a_demo_begins_afresh_where_another_was_before(demo: "subprocess.Popen[str]", tmp_path: Path) -> None:
    assert demo.stdout is not None
    demo.stdout.readline()
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(40) == 0
    with running(tmp_path) as again:
        assert again.stdout is not None
        assert again.stdout.readline().startswith("#26 ")


def can_listen_on_ipv6() -> bool:
    try:
        listen("::1", 0).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not can_listen_on_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_stands_in_brackets_wherever_it_is_told_or_called(tmp_path: Path) -> None:
    with running(tmp_path, HOST="::1") as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith("#")
    told = set(re.findall(r"dashboard:? +(\S+)", (tmp_path / "talk").read_text()))  # of the demo and of its receiver
    assert len(told) == 1
    assert re.fullmatch(r"http://\[::1\]:\d+/", told.pop())
