"""Does what the Dockerfile does where there is no container engine: its very commands, in a directory instead of an image.

The build stage's COPY and RUN are executed as they stand, with /opt and /source in a temporary directory; then the image's
command runs with the image's environment and with secrets from files, against an embedded Postgres, until the image's own
health check passes. Not covered, because only an engine can: the base image, its user, and the file system read-only
(though it is checked that nothing was written).
"""

# ruff: noqa: INP001, S603, T201 - a program beside the package that runs the Dockerfile's commands and talks to people
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

from app.db.embedded import embedded_postgres

ROOT = Path(__file__).resolve().parents[1]
HEALTHY_WITHIN = 60.0
ENDED_WITHIN = 30.0

Environment = dict[str, str]
Instruction = tuple[str, str]


def main() -> None:
    """Build, run and end what the Dockerfile describes. Exits with 1 where any of it fails."""
    build, final = stages((ROOT / "Dockerfile").read_text())
    with tempfile.TemporaryDirectory(prefix="check-image-") as name:
        place = Path(name).resolve()
        venv.create(place / "base", with_pip=True, symlinks=True)  # the base image's Python, which has pip
        environment = {"PATH": f"{place}/base/bin:{os.environ['PATH']}"} | {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HOME"))
        }
        execute(build, place, environment)
        run_image(final, place)


def stages(dockerfile: str) -> list[list[Instruction]]:
    """The instructions of each stage, as pairs of a name and the rest of the line."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE)
    text = re.sub(r"\s*\\\n\s*", " ", text)
    found: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        elif found:
            found[-1].append((instruction, rest.strip()))
    return found


def variables(stage: list[Instruction], before: Environment, place: Path) -> Environment:
    """The environment that a stage's ENV lines make, with paths in `place`."""
    environment = dict(before)
    for rest in all_of(stage, "ENV"):
        for assignment in shlex.split(rest):
            name, _, value = assignment.partition("=")
            environment[name] = inside(value.replace("$PATH", environment["PATH"]), place)
    return environment


def all_of(stage: list[Instruction], instruction: str) -> Iterator[str]:
    """What follows each instruction of that name."""
    return (rest for name, rest in stage if name == instruction)


def inside(text: str, place: Path) -> str:
    """A text with the image's absolute paths moved to `place`."""
    return re.sub(r"(?<![\w./])/(opt|source)(?=[/\s:]|$)", rf"{place}/\1", text)


def execute(build: list[Instruction], place: Path, environment: Environment) -> None:
    """Execute the build stage."""
    environment = variables(build, environment, place)
    directory = place
    for instruction, rest in build:
        match instruction:
            case "WORKDIR":
                directory = Path(inside(rest, place))
                directory.mkdir(parents=True)
            case "COPY":
                *sources, target = rest.split()
                for source in sources:
                    copy(ROOT / source, directory / target)
            case "RUN":
                print(f"RUN {rest}", flush=True)
                command = ["sh", "-euc", inside(rest, place)]
                done = subprocess.run(
                    command,
                    cwd=directory,
                    env=environment,
                    check=False,
                    stderr=subprocess.STDOUT,
                    stdout=subprocess.PIPE,
                )
                if done.returncode != 0:
                    sys.exit(done.stdout.decode(errors="replace") + f"this failed with exit code {done.returncode}")
            case "ENV":
                pass  # done above
            case _:
                sys.exit(f"the build stage uses {instruction}, which this check does not know")


def copy(source: Path, target: Path) -> None:
    """Copy as COPY does: a directory's content, a file into a directory that is there or is meant to be."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(exist_ok=True)
        shutil.copy(source, target)


def run_image(final: list[Instruction], place: Path) -> None:
    """Run the image's command until it is healthy, and end it as an engine would."""
    home = Path(inside(next(all_of(final, "WORKDIR")), place))
    (entrypoint,) = json.loads(next(all_of(final, "ENTRYPOINT")))
    command = json.loads(next(all_of(final, "CMD")))
    health_check = json.loads(next(all_of(final, "HEALTHCHECK")).partition("CMD ")[2])
    environment = variables(final, {"PATH": os.defpath}, place) | {"PORT": str(free_port())}
    program = shutil.which(entrypoint, path=environment["PATH"])
    if program is None:
        sys.exit(f"{entrypoint} is not in the image's PATH")
    before = files(home)

    def ask(*arguments: str) -> str:
        return subprocess.run(
            [program, *arguments], cwd=home, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    print(f"{entrypoint} --help, --version, generate-key")
    ask("--help")
    ask("--version")
    with embedded_postgres(place / "postgres") as dsn:
        for secret, value in {"DATABASE_URL": dsn, "ENCRYPTION_KEYS": ask("generate-key").strip()}.items():
            file = place / secret.lower()
            file.write_text(value + "\n")
            environment[f"{secret}_FILE"] = str(file)
        print(f"{shlex.join([entrypoint, *command])}, until it is healthy", flush=True)
        started = time.monotonic()
        log = place / "log"
        with (
            log.open("wb") as output,
            subprocess.Popen([program, *command], cwd=home, env=environment, stdout=output, stderr=output) as served,
        ):
            try:
                while not is_healthy(health_check, environment):
                    if served.poll() is not None or time.monotonic() > started + HEALTHY_WITHIN:
                        sys.exit(f"{log.read_text()}it did not become healthy")
                    time.sleep(0.1)
                print(f"healthy after {time.monotonic() - started:.1f} s")
                served.send_signal(getattr(signal, next(all_of(final, "STOPSIGNAL"))))
                if served.wait(ENDED_WITHIN) != 0:
                    sys.exit(f"{log.read_text()}it ended with exit code {served.returncode}")
            finally:
                served.kill()
    if written := files(home) - before:
        sys.exit(f"it wrote where the image is read-only: {', '.join(sorted(map(str, written)))}")
    megabytes = sum(path.stat().st_size for path in before if path.is_file() and not path.is_symlink()) / 1e6
    print(f"ended in order, having written nothing; {megabytes:.0f} MB above the base image")


def is_healthy(health_check: list[str], environment: Environment) -> bool:
    """Whether the image's health check passes."""
    program = shutil.which(health_check[0], path=environment["PATH"])
    checked = subprocess.run([str(program), *health_check[1:]], env=environment, check=False, capture_output=True)
    return checked.returncode == 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def files(directory: Path) -> set[Path]:
    """Everything under a directory."""
    return set(directory.rglob("*"))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as exc:
        sys.exit(f"this failed with exit code {exc.returncode}: {exc.cmd}")
