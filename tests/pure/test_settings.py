"""Settings: read from the environment, checked as a whole, every wrong one named, and no secret shown."""

from pathlib import Path

import pytest

from app.errors import SettingsError
from app.sealing import development_keys, generate_key
from app.settings import Settings

JASPER = {
    "JASPER_API_URL": "https://t.eu.jasperpim.com/api/v1/",
    "JASPER_API_TOKEN": "t0ken",
    "PUBLIC_URL": "https://r.example",
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine or the checkout reaches these tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def test_nothing_has_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch)
    assert not settings.names_jasper
    assert (settings.port, settings.jasper_webhook_entity_types) == (8000, ("product",))


def test_lists_objects_and_addresses_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        **JASPER,
        JASPER_WEBHOOK_ENTITY_TYPES="product, brand",
        JASPER_WEBHOOK_HEADERS='{"X-One": "1"}',
        JASPER_PAYLOAD_MAPPING='{"entity_id": ["/a/b", "header:X-Id"], "data": [""]}',
        ENCRYPTION_KEYS=f"{generate_key()}, {generate_key()}",
        ROLES="callbacks",
    )
    assert settings.names_jasper
    assert settings.jasper_api_url == "https://t.eu.jasperpim.com/api/v1"
    assert settings.jasper_webhook_entity_types == ("product", "brand")
    assert settings.jasper_payload_mapping == {"entity_id": ("/a/b", "header:X-Id"), "data": ("",)}
    assert len(settings.encryption_keys) == 2
    assert "t0ken" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://h/db"),
        ("DATABASE_URL", "postgresql://user:w0rd/x@h/db"),
        ("DATABASE_URL", "postgresql://user:w0rd#x@h/db"),
        ("DATABASE_URL", "postgresql://h:abc/db"),
        ("DATABASE_URL", "postgresql://h1:5432,h2:x/db"),
        ("JASPER_API_URL", "ftp://h"),
        ("JASPER_API_URL", "http://h:abc/api/v1"),
        ("JASPER_API_URL", "http://h:99999"),
        ("JASPER_API_URL", "http://exa mple.com"),
        ("JASPER_API_URL", "http://h/\nx"),
        ("JASPER_API_TOKEN", "t\u00f6ken"),
        ("JASPER_API_TOKEN", "two\nlines"),
        ("RECONCILE_LIST_QUERY", "?per_page=250"),
        ("RECONCILE_LIST_QUERY", "sort=id&page=2"),
        ("PUBLIC_URL", "https://user:w0rd@h"),
        ("PUBLIC_URL", "https://h?x=1"),
        ("JASPER_WEBHOOK_ENTITY_TYPES", "product,planet"),
        ("JASPER_WEBHOOK_HEADERS", "no json"),
        ("JASPER_WEBHOOK_HEADERS", "[" * 60_000),
        ("JASPER_WEBHOOK_HEADERS", '["x"]'),
        ("JASPER_WEBHOOK_HEADERS", '{"a b": "c"}'),
        ("JASPER_WEBHOOK_HEADERS", '{"Host": "c"}'),
        ("JASPER_WEBHOOK_HEADERS", '{"X": " padded "}'),
        ("JASPER_WEBHOOK_HEADERS", '{"X": "1", "x": "2"}'),
        ("JASPER_WEBHOOK_RETRY_POLICY", "sometimes"),
        ("JASPER_WEBHOOK_MINIMUM_RETRY_INTERVAL", "0"),
        ("JASPER_SIGNING_SECRET_LOCATION", "cookie:x"),
        ("JASPER_SIGNING_SECRET_LOCATION", "body:no-pointer"),
        ("JASPER_PAYLOAD_MAPPING", '{"colour": ["/a"]}'),
        ("JASPER_PAYLOAD_MAPPING", '{"action": ["a"]}'),
        ("JASPER_PAYLOAD_MAPPING", '{"data": ["header:X"]}'),
        ("ENCRYPTION_KEYS", "short"),
        ("ADMIN_API_KEY", "short"),
        ("PORT", "70000"),
        ("ROLES", ","),
        ("MAX_BODY_BYTES", "0"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(monkeypatch, **{name: value})
    assert name in str(raised.value)
    assert "w0rd" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        *("postgresql://h/db", "postgres://u:p%2Fw@h:5432/db", "postgresql:///db?host=/run/postgresql"),
        *("postgresql://u@[::1]:5432/db", "postgresql://u:p@h1:5432,h2,[::1]:5433/db?sslmode=require"),
    ],
)
def test_every_usual_way_to_name_a_postgres_is_taken(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    settings = load(monkeypatch, DATABASE_URL=f"{address}\n", ENCRYPTION_KEYS=generate_key())
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == address


def test_white_space_around_a_value_is_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of Kubernetes that was made by `echo` ends with a line end, and no header may hold that."""
    given = {name: f" {value}\n" for name, value in JASPER.items()}
    settings = load(monkeypatch, **given, ADMIN_API_KEY="an-admin-key-of-some-length\n")
    assert (settings.jasper_api_url, settings.public_url) == ("https://t.eu.jasperpim.com/api/v1", "https://r.example")
    assert settings.jasper_api_token is not None
    assert settings.jasper_api_token.get_secret_value() == "t0ken"
    assert settings.admin_api_key is not None
    assert settings.admin_api_key.get_secret_value() == "an-admin-key-of-some-length"


def test_an_empty_value_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, ROLES="", PORT="").port == Settings.model_fields["port"].default


@pytest.mark.parametrize("missing", JASPER)
def test_what_belongs_to_jasper_goes_together(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    with pytest.raises(SettingsError, match=f"missing: {missing}"):
        load(monkeypatch, **{name: value for name, value in JASPER.items() if name != missing})


def test_a_named_database_needs_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="ENCRYPTION_KEYS: required with DATABASE_URL"):
        load(monkeypatch, DATABASE_URL="postgresql://h/db")


def test_all_wrong_settings_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as raised:
        load(monkeypatch, PORT="x", ROLES="cook", LOG_FORMAT="song", JASPER_API_TOKEN="t")
    assert all(name in str(raised.value) for name in ("PORT", "ROLES", "LOG_FORMAT", "JASPER_API_URL"))


def test_the_environment_wins_over_the_file_and_secrets_may_stand_in_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("an-admin-key-in-a-file\n")
    (tmp_path / ".env").write_text("PORT=1111\nHOST=0.0.0.0\nADMIN_API_KEY_FILE=key\nSOMETHING_ELSE=1\n")
    settings = load(monkeypatch, PORT="2222")
    assert (settings.port, settings.host) == (2222, "0.0.0.0")  # noqa: S104 - a value, nothing listens
    assert settings.admin_api_key is not None
    assert settings.admin_api_key.get_secret_value() == "an-admin-key-in-a-file"


def test_development_keys_are_made_once_and_for_their_owner_only(tmp_path: Path) -> None:
    first = development_keys(tmp_path / "data")
    assert development_keys(tmp_path / "data") == first
    assert (tmp_path / "data" / "encryption.key").stat().st_mode & 0o077 == 0
