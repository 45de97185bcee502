"""How a change becomes the bytes and headers of a callback, in each of the ways Jasper's documentation leaves open.

Pure: no network, no clock, no chance. The only documented parts are that the custom headers of the webhook come with
every callback, that `include_entity_data` decides whether the entity does, and that the signing secret is in there
somewhere; shapes, words and places are inventions that cover the likely ground.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from app.simulator.catalog import Action, Change
from app.simulator.options import ActionWords, EntityType, JsonStyle, OptionsError, SimulatorOptions

_PAST: dict[Action, str] = {"create": "created", "update": "updated", "delete": "deleted"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What surrounds the entity: which delivery this is and, written out, when the change happened."""

    delivery_id: str
    timestamp: str


@dataclass(frozen=True, slots=True)
class Message:
    """A callback ready to be sent."""

    headers: httpx.Headers
    body: bytes


def action_word(words: ActionWords, entity_type: EntityType, action: Action) -> str:
    """The name of an action in the vocabulary that is meant by its example."""
    match words:
        case "update":
            return action
        case "updated":
            return _PAST[action]
        case "product.updated":
            return f"{entity_type}.{_PAST[action]}"
        case "ProductUpdated":
            return entity_type.title().replace("_", "") + _PAST[action].title()


def encode_json(value: object, style: JsonStyle) -> bytes:
    """JSON as the simulated Jasper writes it; `php` like PHP's `json_encode` with no flags set."""
    if style == "php":
        return json.dumps(_as_php(value), separators=(",", ":")).replace("/", "\\/").encode()
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # lone surrogates exist in JSON only as escapes
        return json.dumps(value, separators=(",", ":")).encode()


def _as_php(value: Any) -> Any:
    """PHP has one type for lists and maps, so that an empty map becomes `[]`, and drops `.0` from whole numbers."""
    if isinstance(value, dict):
        return {key: _as_php(item) for key, item in value.items()} or []
    if isinstance(value, list):
        return [_as_php(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def render(
    change: Change,
    envelope: Envelope,
    *,
    options: SimulatorOptions,
    include_entity_data: bool,
    custom_headers: Mapping[str, str],
    signing_secret: str,
) -> Message:
    """The callback for a change.

    Raises OptionsError if the secret is to lie inside something of the payload that cannot hold it.
    """
    body, shape_headers = _lay_out(change, envelope, options=options, include_entity_data=include_entity_data)
    headers = httpx.Headers(
        {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "Jasper-Simulator"},
        encoding="utf-8",
    )
    headers.update(shape_headers)
    headers.update(httpx.Headers(dict(custom_headers), encoding="utf-8"))

    place, _, where = options.secret_place.partition(":")
    if place == "body":
        body = _with_secret(body, where, signing_secret)
    content = encode_json(body, options.json_style)
    match place:
        case "header":
            headers[where] = signing_secret
        case "bearer":
            headers["Authorization"] = f"Bearer {signing_secret}"
        case "hmac":
            digest = hmac.new(signing_secret.encode(), content, hashlib.sha256).digest()
            text = digest.hex() if options.hmac_encoding == "hex" else base64.b64encode(digest).decode()
            headers[where] = f"sha256={text}" if options.hmac_prefix else text
    return Message(headers, content)


def _lay_out(
    change: Change, envelope: Envelope, *, options: SimulatorOptions, include_entity_data: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """The payload before a secret is put into it, and the headers that belong to the shape."""
    word = action_word(options.action_words, change.entity_type, change.action)
    only_id = not include_entity_data or (change.action == "delete" and options.delete_carries == "id")
    entity = {"id": change.entity_id} if only_id else dict(change.entity)
    delivery_id = envelope.delivery_id if options.delivery_id else None
    timestamp = envelope.timestamp if options.timestamp else None
    match options.shape:
        case "event_data":
            return _present(id=delivery_id, event=word, timestamp=timestamp, data=entity), {}
        case "action_entity":
            return (
                _present(
                    delivery_id=delivery_id,
                    action=word,
                    entity_type=change.entity_type,
                    occurred_at=timestamp,
                    entity=entity,
                ),
                {},
            )
        case "flat":
            return entity, {}
        case "nested":
            meta = _present(delivery_id=delivery_id, timestamp=timestamp)
            return _present(payload={"type": word, change.entity_type: entity}, meta=meta or None), {}
        case "headers":
            return entity, _present(
                **{"X-Jasper-Event": word, "X-Jasper-Delivery": delivery_id, "X-Jasper-Timestamp": timestamp}
            )
        case "id_only":
            return (
                _present(
                    delivery_id=delivery_id,
                    action=word,
                    entity_type=change.entity_type,
                    entity_id=change.entity_id,
                    timestamp=timestamp,
                ),
                {},
            )


def _present(**members: Any) -> dict[str, Any]:
    """The members that have a value."""
    return {name: value for name, value in members.items() if value is not None}


def _with_secret(body: dict[str, Any], pointer: str, secret: str) -> dict[str, Any]:
    """The body with the secret at a JSON Pointer (RFC 6901) of one or two levels; the entity itself stays untouched."""
    parent, *child = (token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/"))
    if not child:
        return {**body, parent: secret}
    inner = body.get(parent, {})
    if not isinstance(inner, dict):
        raise OptionsError(f"secret_place: {pointer} cannot be put into this shape, since /{parent} is no object there")
    return {**body, parent: {**inner, child[0]: secret}}
