"""The bytes and headers of callbacks, held against an independent reading of each switch."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from app.simulator import OptionsError, Simulator, SimulatorOptions
from app.simulator.catalog import Change
from app.simulator.payload import Envelope, Message, action_word, encode_json, render

SECRET = "0123456789abcdef"
ENTITY = {"id": 1001, "name": "Kettle", "inventory": {"qty": 1}, "updated_at": "2026-01-31T08:00:00Z"}
ENVELOPE = Envelope("d-1", "2026-01-31T08:00:00Z")


def a_message(
    *, action: Any = "update", include_entity_data: bool = True, headers: dict[str, str] | None = None, **options: Any
) -> Message:
    return render(
        Change(1, "product", action, "price", dict(ENTITY), datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ENVELOPE,
        options=SimulatorOptions(**options),
        include_entity_data=include_entity_data,
        custom_headers=headers or {},
        signing_secret=SECRET,
    )


def body_of(message: Message) -> Any:
    return json.loads(message.body)


def test_event_data() -> None:
    assert body_of(a_message(shape="event_data")) == {
        "id": "d-1",
        "event": "product.updated",
        "timestamp": "2026-01-31T08:00:00Z",
        "data": ENTITY,
    }


def test_action_entity() -> None:
    assert body_of(a_message(shape="action_entity", action_words="update")) == {
        "delivery_id": "d-1",
        "action": "update",
        "entity_type": "product",
        "occurred_at": "2026-01-31T08:00:00Z",
        "entity": ENTITY,
    }


def test_flat() -> None:
    assert body_of(a_message(shape="flat")) == ENTITY


def test_nested() -> None:
    assert body_of(a_message(shape="nested", action_words="ProductUpdated")) == {
        "payload": {"type": "ProductUpdated", "product": ENTITY},
        "meta": {"delivery_id": "d-1", "timestamp": "2026-01-31T08:00:00Z"},
    }


def test_headers() -> None:
    message = a_message(shape="headers")
    assert body_of(message) == ENTITY
    assert message.headers["X-Jasper-Event"] == "product.updated"
    assert message.headers["X-Jasper-Delivery"] == "d-1"
    assert message.headers["X-Jasper-Timestamp"] == "2026-01-31T08:00:00Z"


def test_id_only() -> None:
    assert body_of(a_message(shape="id_only", action_words="updated")) == {
        "delivery_id": "d-1",
        "action": "updated",
        "entity_type": "product",
        "entity_id": 1001,
        "timestamp": "2026-01-31T08:00:00Z",
    }


@pytest.mark.parametrize("shape", ["event_data", "action_entity", "flat", "nested", "headers", "id_only"])
def test_nothing_but_the_id_travels_where_entity_data_is_not_included(shape: str) -> None:
    message = a_message(shape=shape, include_entity_data=False)
    assert b"Kettle" not in message.body
    assert b"1001" in message.body


@pytest.mark.parametrize("shape", ["event_data", "action_entity", "flat", "nested", "headers", "id_only"])
def test_delivery_id_and_timestamp_can_be_left_out(shape: str) -> None:
    message = a_message(shape=shape, delivery_id=False, timestamp=False, include_entity_data=False)
    everything = message.body + str(message.headers).encode()
    assert b"d-1" not in everything
    assert b"2026-01-31" not in everything


def test_a_delete_carries_the_last_state_or_the_id() -> None:
    assert body_of(a_message(action="delete"))["data"] == ENTITY
    assert body_of(a_message(action="delete", delete_carries="id"))["data"] == {"id": 1001}
    assert body_of(a_message(action="update", delete_carries="id"))["data"] == ENTITY


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ("update", ["create", "update", "delete"]),
        ("updated", ["created", "updated", "deleted"]),
        ("product.updated", ["concrete_entity.created", "concrete_entity.updated", "concrete_entity.deleted"]),
        ("ProductUpdated", ["ConcreteEntityCreated", "ConcreteEntityUpdated", "ConcreteEntityDeleted"]),
    ],
)
def test_actions_are_named_in_the_chosen_vocabulary(words: Any, written: list[str]) -> None:
    assert [action_word(words, "concrete_entity", action) for action in ("create", "update", "delete")] == written


def test_the_secret_travels_in_a_header() -> None:
    message = a_message(secret_place="header:Signing-Secret")
    assert message.headers["signing-secret"] == SECRET
    assert SECRET.encode() not in message.body


def test_the_secret_travels_as_a_bearer_token() -> None:
    assert a_message(secret_place="bearer").headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    ("pointer", "path"),
    [
        ("/signing_secret", ["signing_secret"]),
        ("/meta/secret", ["meta", "secret"]),
        ("/data/a~1b~0c", ["data", "a/b~c"]),
    ],
)
def test_the_secret_travels_in_the_body(pointer: str, path: list[str]) -> None:
    message = a_message(secret_place=f"body:{pointer}")
    found = body_of(message)
    for name in path:
        found = found[name]
    assert found == SECRET
    assert SECRET not in str(message.headers)
    assert "a/b~c" not in ENTITY


@pytest.mark.parametrize("prefix", ["", "sha256="])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_an_hmac_covers_the_raw_body(encoding: str, prefix: str) -> None:
    message = a_message(
        secret_place="hmac:Signature", hmac_encoding=encoding, hmac_prefix=bool(prefix), json_style="php"
    )
    digest = hmac.new(SECRET.encode(), message.body, hashlib.sha256)
    expected = digest.hexdigest() if encoding == "hex" else base64.b64encode(digest.digest()).decode()
    assert message.headers["Signature"] == prefix + expected
    assert SECRET not in str(message.headers)


def test_custom_headers_come_along() -> None:
    message = a_message(headers={"My-Custom-Header": "abc123", "X-Name": "Jürgen"})
    assert message.headers["My-Custom-Header"] == "abc123"
    assert (b"X-Name", "Jürgen".encode()) in message.headers.raw


def test_php_writes_json_its_own_way() -> None:
    value = {"headers": {}, "price": 52.0, "half": 0.5, "path": "Men/Tops", "name": "Ä", "list": [{}]}
    assert encode_json(value, "php") == (
        rb'{"headers":[],"price":52,"half":0.5,"path":"Men\/Tops","name":"\u00c4","list":[[]]}'
    )


def test_lone_surrogates_can_be_written() -> None:
    assert encode_json({"name": "\ud800/Ä"}, "compact") == rb'{"name":"\ud800/\u00c4"}'


def test_a_secret_that_fits_nowhere_is_refused_at_the_start() -> None:
    with pytest.raises(OptionsError, match=r"/name is no object"):
        Simulator(SimulatorOptions(shape="flat", secret_place="body:/name/secret"))
