"""The settings, read once from the environment and an optional `.env` file, and checked as a whole.

Built by the command line or a test and handed down as values: nothing else reads the environment. Every setting whose
value is a secret may also be given as a file, in the variable of its name followed by `_FILE`.
"""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import parse_qsl, urlsplit

import httpx
from cryptography.fernet import Fernet
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as DotEnvError

from app.errors import SettingsError

EntityTypeName = Literal["product", "category", "brand", "concrete_entity"]
RetryPolicyName = Literal["no_retry", "linear", "exponential"]
Role = Literal["callbacks", "api", "dashboard"]
MappingPart = Literal["action", "entity_id", "data", "occurred_at", "delivery_id"]

# RFC 9110, section 5.6.2
_HEADER_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LOCATION = re.compile(rf"auto|header:{_HEADER_NAME}|body:(/[^/]*)+|hmac-sha256:{_HEADER_NAME}")
_PLACE = re.compile(rf"(/[^/]*)*|header:{_HEADER_NAME}")
# One of the servers that a DATABASE_URL names; a password with an unescaped `/` or `#` ends it early, and is no port.
_SERVER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(:\d{1,5})?")
_CALLBACK_HEADERS_RESERVED = {"content-length", "transfer-encoding", "host", "connection"}


def _split(value: object) -> object:
    """A comma-separated text as the list of its parts; anything else as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _strip(value: object) -> object:
    """A text without the white space around it, such as the line end of what was made by `echo`."""
    return value.strip() if isinstance(value, str) else value


def _is_sendable(text: str) -> bool:
    """Whether it can be the value of a header."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()


def _parse_json(value: object) -> object:
    """A JSON text as its value; anything else as it is."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"must be a JSON object, but it is no JSON ({exc})") from exc
    return value


def _check_places(value: dict[MappingPart, tuple[str, ...]]) -> dict[MappingPart, tuple[str, ...]]:
    for part, places in value.items():
        for place in places:
            if not _PLACE.fullmatch(place) or (part == "data" and place.startswith("header:")):
                raise ValueError(
                    f"{part}: {place!r} must be a JSON Pointer such as /data/id, or header:NAME (not for data)"
                )
    return value


PayloadMapping = Annotated[
    dict[MappingPart, tuple[str, ...]], BeforeValidator(_parse_json), AfterValidator(_check_places)
]
"""`JASPER_PAYLOAD_MAPPING`, also as it is typed into the dashboard to be tried."""

Stripped = (BeforeValidator(_strip),)
CommaSeparated = (NoDecode, BeforeValidator(_split))
JsonObject = (NoDecode, BeforeValidator(_parse_json))


class Settings(BaseSettings):
    """All settings. Sizes are in bytes, intervals in seconds, retentions in days."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    database_url: Annotated[SecretStr | None, *Stripped] = Field(
        None, description="A Postgres of version 14 or later; unset: the embedded one"
    )
    data_dir: Path = Field(Path(".data"), description="Files of the embedded Postgres and generated development keys")
    auto_migrate: bool = Field(
        True, description="`serve` brings the schema to head first; `false`: refuses to start behind head"
    )
    jasper_api_url: Annotated[str | None, *Stripped] = Field(None, description="The tenant's API base")
    jasper_api_token: Annotated[SecretStr | None, *Stripped] = Field(None, description="The tenant's bearer token")
    public_url: Annotated[str | None, *Stripped] = Field(None, description="Where Jasper reaches this service")
    jasper_webhook_name: str = Field(
        "Product Updates Webhook", min_length=1, max_length=200, description="The product webhook's name"
    )
    jasper_webhook_entity_types: Annotated[tuple[EntityTypeName, ...], *CommaSeparated] = Field(
        ("product",), min_length=1, description="Which entity types to follow, comma-separated"
    )
    jasper_webhook_include_entity_data: bool = Field(True, description="Shall the payload carry the entity?")
    jasper_webhook_headers: Annotated[dict[str, SecretStr], *JsonObject] = Field(
        {}, description="JSON object; registered with Jasper and required on every callback"
    )
    jasper_webhook_retry_policy: RetryPolicyName = Field("linear", description="How Jasper retries a failed callback")
    jasper_webhook_minimum_retry_interval: int = Field(
        300, ge=1, le=86_400, description="Seconds before the first retry"
    )
    jasper_webhook_retry_limit: int = Field(5, ge=0, le=100, description="How many retries before Jasper gives up")
    registration_check_interval: int = Field(
        300,
        ge=0,
        le=86_400,
        description="Seconds between two looks whether the webhooks at Jasper still are as registered; 0: only at the start",
    )
    jasper_signing_secret_location: str = Field(
        "auto", description="`auto`, `header:NAME`, `body:/json/pointer` or `hmac-sha256:HEADER`"
    )
    jasper_payload_mapping: Annotated[PayloadMapping, NoDecode] = Field(
        {}, description="JSON object: part of an event → places to look for it before the built-in ones"
    )
    jasper_fetch_entity: bool = Field(
        False, description="Fetch an entity from Jasper when an event comes without its data"
    )
    encryption_keys: Annotated[tuple[SecretStr, ...], *CommaSeparated] = Field(
        (), description="Comma-separated Fernet keys; the first encrypts, all decrypt"
    )
    admin_api_key: Annotated[SecretStr | None, *Stripped] = Field(None, description="A first key with every scope")
    host: str = Field("127.0.0.1", min_length=1, description="The address to listen on")
    port: int = Field(8000, ge=0, le=65_535, description="The port to listen on")
    roles: Annotated[tuple[Role, ...], *CommaSeparated] = Field(
        get_args(Role), min_length=1, description="Which faces this process serves, comma-separated"
    )
    max_body_bytes: int = Field(5_242_880, ge=1, le=268_435_456, description="Larger callbacks get 413")
    unproven_limit: int = Field(
        1000, ge=0, le=100_000, description="How many callbacks without a provable secret are kept apart"
    )
    event_retention_days: int = Field(0, ge=0, le=36_500, description="Days for which events are kept; 0: for ever")
    delivery_retention_days: int = Field(
        30, ge=0, le=36_500, description="Days for which deliveries are kept; 0: for ever"
    )
    reconcile_interval: int = Field(0, ge=0, description="Seconds between reconciliations; 0: only when asked")
    reconcile_most_deleted: float = Field(
        0.1, ge=0, le=1, description="The share of what is known that one may delete without `--force`"
    )
    reconcile_rate: float = Field(5.0, gt=0, le=1000, description="Requests a second to Jasper's lists and entities")
    reconcile_list_query: str | None = Field(
        None, description="Put on the addresses of Jasper's lists, such as `per_page=250&sort=id`"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe level that is logged"
    )
    log_format: Literal["json", "console"] = Field("json", description="`console` for people")

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        parts = urlsplit(value.get_secret_value())
        servers = parts.netloc.rpartition("@")[2].split(",")
        if parts.scheme not in {"postgresql", "postgres"} or not all(map(_SERVER.fullmatch, servers)):
            raise ValueError(
                "must be a postgresql:// address; characters such as / ? # in its password have to be percent-encoded"
            )
        return value

    @field_validator("jasper_api_url", "public_url")
    @classmethod
    def _is_web_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        try:
            has_host = bool(httpx.URL(value).host) and parts.port != 0
        except (ValueError, httpx.InvalidURL):  # a port that is none, or what no address may hold
            has_host = False
        if parts.scheme not in {"http", "https"} or not has_host or parts.query or parts.fragment or parts.username:
            raise ValueError(
                "must be an http:// or https:// address with a host, at most a port and a path, and without user, query or "
                "fragment"
            )
        return value.rstrip("/")

    @field_validator("jasper_api_token")
    @classmethod
    def _is_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_sendable(value.get_secret_value()):
            raise ValueError("must be printable ASCII")
        return value

    @field_validator("public_url")
    @classmethod
    def _names_jasper_wholly(cls, value: str | None, info: ValidationInfo) -> str | None:
        names = ("jasper_api_url", "jasper_api_token")
        given = {name.upper(): info.data.get(name, "wrong") is not None for name in names} | {
            "PUBLIC_URL": value is not None
        }
        if any(given.values()) and not all(given.values()):
            missing = ", ".join(name for name, there in given.items() if not there)
            raise ValueError(
                f"JASPER_API_URL, JASPER_API_TOKEN and PUBLIC_URL go together, all or none; missing: {missing}"
            )
        return value

    @field_validator("jasper_webhook_headers")
    @classmethod
    def _are_sendable(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        seen = set[str]()
        for name, secret in value.items():
            if not re.fullmatch(_HEADER_NAME, name) or name.lower() in _CALLBACK_HEADERS_RESERVED:
                raise ValueError(f"{name!r} cannot be used as the name of a header")
            if not _is_sendable(secret.get_secret_value()):
                raise ValueError(f"the value of {name!r} must be printable ASCII without spaces around it")
            if name.lower() in seen:
                raise ValueError(f"{name!r} is named twice")
            seen.add(name.lower())
        return value

    @field_validator("jasper_signing_secret_location")
    @classmethod
    def _is_location(cls, value: str) -> str:
        if not _LOCATION.fullmatch(value):
            raise ValueError("must be auto, header:NAME, body:/json/pointer or hmac-sha256:HEADER")
        return value

    @field_validator("reconcile_list_query")
    @classmethod
    def _is_query(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith("?") or "page" in dict(parse_qsl(value, keep_blank_values=True))):
            raise ValueError("must be parameters such as `per_page=250&sort=id`, without `?` and without `page`")
        return value

    @field_validator("encryption_keys")
    @classmethod
    def _are_fernet_keys(cls, value: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        if info.data.get("database_url") is not None and not value:
            raise ValueError("required with DATABASE_URL; make one with `jasper-receiver generate-key`")
        for number, key in enumerate(value, start=1):
            try:
                Fernet(key.get_secret_value())
            except ValueError as exc:
                raise ValueError(
                    f"key {number} is no Fernet key; make one with `jasper-receiver generate-key`"
                ) from exc
        return value

    @field_validator("admin_api_key")
    @classmethod
    def _is_long(cls, value: SecretStr | None) -> SecretStr | None:
        least = 16
        if value is not None and len(value.get_secret_value()) < least:
            raise ValueError(f"must have at least {least} characters")
        return value

    @property
    def registration_check(self) -> timedelta:
        """How far apart two looks at a webhook are."""
        return timedelta(seconds=self.registration_check_interval)

    @property
    def event_retention(self) -> timedelta | None:
        """How long events are kept; None: for ever."""
        return timedelta(days=self.event_retention_days) if self.event_retention_days else None

    @property
    def delivery_retention(self) -> timedelta | None:
        """How long deliveries are kept; None: for ever."""
        return timedelta(days=self.delivery_retention_days) if self.delivery_retention_days else None

    @property
    def names_jasper(self) -> bool:
        """Whether there is a Jasper to register with."""
        return self.jasper_api_url is not None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of the sources: arguments, environment, files named in the environment, `.env`."""
        del file_secret_settings
        return init_settings, env_settings, _SecretFiles(settings_cls, env_settings, dotenv_settings), dotenv_settings

    @property
    def payload_mapping(self) -> dict[str, tuple[str, ...]]:
        """`JASPER_PAYLOAD_MAPPING` as the reading of payloads takes it."""
        return {str(part): places for part, places in self.jasper_payload_mapping.items()}

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read and check everything but what is given. Raises SettingsError that names every wrong setting at once."""
        try:
            return cls(**given)
        except ValidationError as exc:
            wrong = [_in_words(error["loc"], error["msg"]) for error in exc.errors()]
        except DotEnvError as exc:
            wrong = [str(exc)]
        raise SettingsError("the settings are wrong:\n" + "\n".join(f"  {line}" for line in wrong))


def _in_words(location: tuple[int | str, ...], message: str) -> str:
    name, *inside = location
    return f"{str(name).upper()}{''.join(f'[{part}]' for part in inside)}: {message.removeprefix('Value error, ')}"


class _SecretFiles(PydanticBaseSettingsSource):
    """Settings whose value stands in the file that `{NAME}_FILE` names, as container platforms hand out secrets."""

    NAMES = ("database_url", "jasper_api_token", "jasper_webhook_headers", "encryption_keys", "admin_api_key")

    def __init__(self, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._variables: dict[str, str | None] = {}
        for source in reversed(sources):
            if isinstance(source, (EnvSettingsSource, DotEnvSettingsSource)):
                self._variables.update(source.env_vars)

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """The content of the file for one setting, without the line end; None where no file is named."""
        del field
        path = self._variables.get(f"{field_name}_file")
        if not path or field_name not in self.NAMES:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
            raise SettingsError(f"{field_name.upper()}_FILE: {path} cannot be read ({reason})") from exc

    def __call__(self) -> dict[str, Any]:
        """All settings that are given as files."""
        found = {name: self.get_field_value(None, name)[0] for name in self.NAMES}
        return {name: value for name, value in found.items() if value is not None}
