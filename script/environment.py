"""Makes `.venv` in the checkout hold the packages of a lock and the project itself.

Called by `script/bootstrap` with the name of a lock in `requirements/`. Does nothing where all is there already; takes
its turn where another run is at work; and begins anew where one was interrupted. Uses the standard library only, and
never installs anything that the lock does not name with its hash.
"""

# ruff: noqa: INP001, T201 - a program beside the package, that talks to people
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "installed.json"
UNFINISHED = ENVIRONMENT / "unfinished"

PARTS = {"embedded": ("embedded",), "development": ("development", "embedded")}
"""Each lock, and the locks that are satisfied once it is installed: `embedded` is a part of `development`."""


def main(lock: str) -> None:
    """Make the environment satisfy `lock`, and say so where there is something to do."""
    with (ROOT / "pyproject.toml").open() as turn:
        take_turn(turn.fileno())
        wanted = {part: digest(part) for part in PARTS[lock]}
        if installed().items() >= wanted.items() and is_usable():
            return
        started = time.monotonic()
        if UNFINISHED.exists() or not is_usable():
            say(f"making .venv with Python {'.'.join(map(str, sys.version_info[:3]))} …")
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            ENVIRONMENT.mkdir()
            UNFINISHED.touch()
            run(sys.executable, "-m", "venv", ENVIRONMENT)
        UNFINISHED.touch()
        STAMP.unlink(missing_ok=True)
        requirements = ROOT / "requirements" / f"{lock}.txt"
        count = requirements.read_text().count("==")
        say(f"installing {count} packages into .venv (longer the first time) …")
        # No dependencies: the lock names them all. No byte code: it is written as modules are used, which are few.
        pip("--no-deps", "--no-compile", "--require-hashes", "--requirement", requirements)
        pip("--no-deps", "--no-compile", "--no-build-isolation", "--no-index", "--editable", ROOT)
        STAMP.write_text(json.dumps(wanted))
        UNFINISHED.unlink()
        say(f"done in {time.monotonic() - started:.0f} s")


def take_turn(file: int) -> None:
    """Wait until no other run is at work. The turn ends with this process and those it started, however they end."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another run that is making .venv …")
        fcntl.flock(file, fcntl.LOCK_EX)
    os.set_inheritable(file, True)


def digest(lock: str) -> str:
    """What has to be as it was for an installation of `lock` to be still good: its text, the project's, and the place."""
    texts = (ROOT / "requirements" / f"{lock}.txt", ROOT / "pyproject.toml")
    parts = (os.fsencode(ROOT), *(text.read_bytes() for text in texts))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def installed() -> dict[str, str]:
    """The locks that the environment satisfies, each with its digest then."""
    try:
        found: dict[str, str] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return found


def is_usable() -> bool:
    """Whether `.venv` has a Python of a fitting version, with pip, that knows this place as its own."""
    check = "import os, pip, sys; sys.exit(sys.version_info < (3, 11) or not os.path.samefile(sys.prefix, sys.argv[1]))"
    command = (PYTHON, "-I", "-c", check, ENVIRONMENT)
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - our own
    except OSError:
        return False


def pip(*arguments: str | Path) -> None:
    """Run pip's install in the environment."""
    run(PYTHON, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *arguments)


def run(*command: str | Path) -> None:
    """Run a command, which is heard only where it fails; then so does this program."""
    result = subprocess.run(  # noqa: S603 - pip and venv
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, close_fds=False
    )
    if result.returncode != 0:
        say(result.stdout)
        say(f"this failed: {' '.join(map(str, command))}")
        sys.exit(1)


def say(line: str) -> None:
    """Tell the person who waits."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] not in [[lock] for lock in PARTS]:
        sys.exit(f"usage: script/bootstrap {'|'.join(PARTS)}")
    try:
        main(sys.argv[1])
    except PermissionError as exc:
        sys.exit(
            f"no permission to write {exc.filename}: run this as the owner of the checkout, or in a copy of your own"
        )
