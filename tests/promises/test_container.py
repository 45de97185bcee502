"""What the image, the compose file and the front promise, as far as that can be checked without a container engine.

That the Dockerfile's own commands work is checked by `script/check-image`.
"""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.cli.commands import main
from app.ledger.writer import WriterLimits
from app.serving import GRACE, KEEP_ALIVE
from app.settings import Settings, _SecretFiles

ROOT = Path(__file__).parents[2]

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
RECEIVER = COMPOSE["services"]["receiver"]
DOCKERFILE = re.sub(r"\s*\\\n\s*", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
FINAL_STAGE = DOCKERFILE.rpartition("\nFROM ")[2]

OF_THE_IMAGE = {"HOST", "PORT"}
OF_THE_EMBEDDED_POSTGRES = {"DATA_DIR"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


def example(*, commented: bool) -> dict[str, str]:
    """The variables of .env.example; those that show a default are commented out."""
    pattern = r"^#([A-Z_]+)=(.*)$" if commented else r"^([A-Z_]+)=(.*)$"
    return dict(re.findall(pattern, (ROOT / ".env.example").read_text(), re.MULTILINE))


def interpolated(value: str, variables: dict[str, str]) -> str:
    """A value as compose makes it of `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

    def replacement(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if variables.get(name):
            return variables[name]
        if kind != "-":
            raise LookupError(f"{name}: {rest}")
        return str(rest)

    return VARIABLE.sub(replacement, value)


def receivers_environment(variables: dict[str, str]) -> dict[str, str]:
    """What the receiver's container gets, where .env sets `variables`."""
    return {
        name: interpolated(value, variables) if value is not None else variables[name]
        for name, value in RECEIVER["environment"].items()
        if value is not None or name in variables
    }


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The directory of secrets, as the script makes it."""
    (tmp_path / "deploy/secrets").mkdir(parents=True)
    shutil.copy(ROOT / "deploy/make-secrets", tmp_path / "deploy")
    subprocess.run([tmp_path / "deploy/make-secrets"], input=b"token-of-jasper\n", check=True)
    return tmp_path / "deploy/secrets"


def test_every_setting_can_be_given_to_the_container() -> None:
    given = {name.removesuffix("_FILE") for name in RECEIVER["environment"]} - {"FORWARDED_ALLOW_IPS"}
    assert given == {name.upper() for name in Settings.model_fields} - OF_THE_IMAGE - OF_THE_EMBEDDED_POSTGRES


def test_every_setting_that_is_a_secret_is_given_as_a_file() -> None:
    files = {name: value for name, value in RECEIVER["environment"].items() if name.endswith("_FILE")}
    assert files == {f"{name.upper()}_FILE": f"/run/secrets/{name}" for name in _SecretFiles.NAMES}
    assert sorted(RECEIVER["secrets"]) == sorted(_SecretFiles.NAMES)


def test_the_example_and_the_made_secrets_are_settings_that_the_receiver_accepts(
    secrets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in receivers_environment(example(commented=False)).items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(secrets)))
    settings = Settings.load()
    assert settings.names_jasper
    assert settings.public_url == "https://receiver.example.com"
    assert settings.jasper_api_token is not None
    assert settings.jasper_api_token.get_secret_value() == "token-of-jasper"
    assert list(settings.jasper_webhook_headers) == ["X-Callback-Key"]


def test_the_receiver_and_postgres_agree_on_the_database_and_its_password(secrets: Path) -> None:
    postgres = COMPOSE["services"]["postgres"]["environment"]
    user, database = postgres["POSTGRES_USER"], postgres["POSTGRES_DB"]
    password = (secrets / "postgres_password").read_text().strip()
    assert (secrets / "database_url").read_text() == f"postgresql://{user}:{password}@postgres/{database}\n"


def test_secrets_that_are_there_are_never_replaced(secrets: Path) -> None:
    before = {file.name: file.read_text() for file in secrets.iterdir()}
    subprocess.run([secrets.parent / "make-secrets"], input=b"another\n", check=True)
    assert {file.name: file.read_text() for file in secrets.iterdir()} == before


def test_nobody_else_on_the_machine_can_enter_the_directory_of_secrets(secrets: Path) -> None:
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in secrets.iterdir()} == {0o644}


def test_without_a_token_the_script_fails_and_leaves_no_empty_secret(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    shutil.copy(ROOT / "deploy/make-secrets", tmp_path)
    assert subprocess.run([tmp_path / "make-secrets"], input=b"", check=False).returncode == 1
    assert not (tmp_path / "secrets/jasper_api_token").exists()


def test_every_secret_that_is_mounted_is_declared_and_made_by_the_script(secrets: Path) -> None:
    mounted = {secret for service in COMPOSE["services"].values() for secret in service.get("secrets", [])}
    assert mounted == set(COMPOSE["secrets"]) == {file.name for file in secrets.iterdir()}
    assert all(declared == {"file": f"./deploy/secrets/{name}"} for name, declared in COMPOSE["secrets"].items())


@pytest.mark.parametrize("missing", ["JASPER_API_URL", "PUBLIC_HOST"])
def test_compose_stops_where_a_variable_is_missing_that_has_no_default(missing: str) -> None:
    with pytest.raises(LookupError, match=f"{missing}: set it in .env"):
        receivers_environment({name: value for name, value in example(commented=False).items() if name != missing})


def test_the_example_names_every_variable_and_setting_with_its_default() -> None:
    needed, shown = example(commented=False), example(commented=True)
    used = {found[0]: found[2] for found in VARIABLE.findall((ROOT / "docker-compose.yml").read_text())}
    assert {name for name, default in used.items() if default.startswith("set it")} == set(needed)
    assert {name: shown[name] for name in used if name not in needed} == {
        name: default for name, default in used.items() if name not in needed
    }
    for name, field in Settings.model_fields.items():
        assert name.upper() in shown | needed
        match field.default:
            case bool() | int() | str():
                assert shown[name.upper()].lower() == str(field.default).lower()
            case tuple() if field.default:
                assert shown[name.upper()] == ",".join(field.default)


def blocks(text: str) -> dict[str, Any]:
    """A Caddyfile as nested dictionaries: each line, and for a line that opens a block what stands in it."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())

    def block(rest: Iterator[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for line in rest:
            if line == "}":
                break
            if line:
                found[line.removesuffix("{").strip()] = block(rest) if line.endswith("{") else None
        return found

    return block(lines)


def test_the_front_lets_nothing_but_callbacks_through() -> None:
    front = blocks((ROOT / "deploy/Caddyfile").read_text())
    assert list(front) == ["", "{$PUBLIC_HOST}"]  # global options and one site
    assert list(front["{$PUBLIC_HOST}"]) == ["handle /callbacks/*", "handle"]
    assert front["{$PUBLIC_HOST}"]["handle"] == {"respond 404": None}
    [upstream] = front["{$PUBLIC_HOST}"]["handle /callbacks/*"]
    assert upstream == "reverse_proxy receiver:8000"
    assert "PORT=8000" in FINAL_STAGE


def test_the_front_lets_go_of_idle_connections_before_the_receiver_does() -> None:
    """Or a callback would now and then be sent into a connection that is just being closed."""
    [seconds] = re.findall(r"^\s*keepalive (\d+)s$", (ROOT / "deploy/Caddyfile").read_text(), re.MULTILINE)
    assert int(seconds) < KEEP_ALIVE


def test_only_the_front_faces_the_world() -> None:
    published = {name: service.get("ports", []) for name, service in COMPOSE["services"].items()}
    assert published["postgres"] == []
    assert all(port.startswith("127.0.0.1:") for port in published["receiver"])
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert COMPOSE["services"]["postgres"]["networks"] == ["inside"]
    assert COMPOSE["services"]["front"]["networks"] == ["front"]


@pytest.mark.parametrize(("peer", "recorded"), [("172.31.250.3", "198.51.100.7"), ("10.0.0.9", "10.0.0.9")])
async def test_the_front_and_nobody_else_is_believed_about_the_callers_address(peer: str, recorded: str) -> None:
    trusted = interpolated(RECEIVER["environment"]["FORWARDED_ALLOW_IPS"], {})
    [network] = COMPOSE["networks"]["front"]["ipam"]["config"]
    assert trusted == interpolated(network["subnet"], {})
    seen = []

    async def application(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["client"][0])

    scope: Any = {
        "type": "http",
        "scheme": "http",
        "client": (peer, 40000),
        "headers": [(b"x-forwarded-for", b"198.51.100.7"), (b"x-forwarded-proto", b"https")],
    }
    unused: Any = None
    await ProxyHeadersMiddleware(application, trusted_hosts=trusted)(scope, unused, unused)
    assert seen == [recorded]


def test_the_receiver_waits_for_a_healthy_postgres() -> None:
    assert RECEIVER["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert "pg_isready" in COMPOSE["services"]["postgres"]["healthcheck"]["test"]


def test_the_receiver_is_given_the_time_it_takes_to_end() -> None:
    assert int(RECEIVER["stop_grace_period"].removesuffix("s")) > GRACE + WriterLimits().drain


def test_every_image_is_pinned_to_a_version() -> None:
    [base] = re.findall(r"^ARG BASE=(.*)$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${BASE}", "${BASE}"]
    others = [service["image"] for service in COMPOSE["services"].values() if "build" not in service]
    for image in (base, *others):
        assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?-[a-z-]+", image), image


def test_the_image_runs_a_command_that_exists_as_a_user_that_is_not_root() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    [entrypoint] = re.findall(r"^ENTRYPOINT (.*)$", FINAL_STAGE, re.MULTILINE)
    [command] = re.findall(r"^CMD (.*)$", FINAL_STAGE, re.MULTILINE)
    assert set(json.loads(entrypoint)) <= set(scripts)
    assert set(json.loads(command)) <= set(main.commands)
    [user] = re.findall(r"^USER (\d+):\d+$", FINAL_STAGE, re.MULTILINE)
    assert int(user) > 0
    assert "read_only" in RECEIVER


def test_the_image_checks_its_health_without_asking_for_postgres() -> None:
    [check] = re.findall(r"^HEALTHCHECK .* CMD (.*)$", FINAL_STAGE, re.MULTILINE)
    assert "/healthz" in json.loads(check)[-1]


def test_what_the_image_is_built_from_reaches_the_engine_and_nothing_else_does() -> None:
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        source for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    }
    assert "*" in rules
    assert {source.split("/")[0] for source in copied} == allowed
    assert all((ROOT / source).exists() for source in copied)
