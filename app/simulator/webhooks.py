"""The webhooks that callers have created, and the validation of what they send.

Documented by Jasper: the properties and their meaning, that creation answers with a `signing_secret`, that webhooks can
be enabled and disabled, and that invalid input is a 422. Assumed: the wording and form of the 422 (as Laravel writes
it), the property `enabled`, and that an update leaves alone what it does not name. Lives in memory only.
"""

import re
import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args
from urllib.parse import urlsplit

from app.simulator.options import ENTITY_TYPES, HEADER_NAME, EntityType, SimulatorOptions
from app.simulator.sender import RetryPolicy

_LONGEST_TEXT = 255
_HEADER_NAME = re.compile(HEADER_NAME)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_REQUIRED = ("name", "callback_url", "entity_type")


class ValidationError(Exception):
    """The properties of a webhook are wrong. `errors` maps each one to sentences about it, as Laravel does."""

    def __init__(self, errors: Mapping[str, list[str]]) -> None:
        self.errors = dict(errors)
        first, *others = [sentence for sentences in errors.values() for sentence in sentences]
        more = f" (and {len(others)} more error{'s' if len(others) > 1 else ''})" if others else ""
        super().__init__(first + more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One webhook. Intervals are seconds; times are already written out."""

    id: int | str
    name: str
    callback_url: str
    entity_type: EntityType
    signing_secret: str = field(repr=False)
    created_at: str
    updated_at: str
    include_entity_data: bool = True
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    retry_policy: RetryPolicy = "no_retry"
    minimum_retry_interval: int = 60
    retry_limit: int = 3
    enabled: bool = True

    def as_json(self, *, with_secret: bool) -> dict[str, Any]:
        """The resource as the API shows it."""
        resource = {
            "id": self.id,
            "name": self.name,
            "callback_url": self.callback_url,
            "entity_type": self.entity_type,
            "include_entity_data": self.include_entity_data,
            "headers": dict(self.headers),
            "retry_policy": self.retry_policy,
            "minimum_retry_interval": self.minimum_retry_interval,
            "retry_limit": self.retry_limit,
            "enabled": self.enabled,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }
        return {**resource, "signing_secret": self.signing_secret} if with_secret else resource


class Webhooks:
    """All webhooks, in the order of their creation. `now` gives the present time, written out."""

    def __init__(self, options: SimulatorOptions, *, now: Callable[[], str]) -> None:
        self._string_ids = options.webhook_ids == "string"
        self._now = now
        self._webhooks: dict[str, Webhook] = {}
        self._created = 0

    def all(self) -> list[Webhook]:
        """Every webhook, oldest first."""
        return list(self._webhooks.values())

    def find(self, webhook_id: str) -> Webhook | None:
        """One webhook by its id as text, or None."""
        return self._webhooks.get(webhook_id)

    def create(self, properties: Mapping[str, Any]) -> Webhook:
        """Raises ValidationError."""
        valid = _validate(properties, required=_REQUIRED)
        self._created += 1
        now = self._now()
        webhook = Webhook(
            id=str(uuid.uuid4()) if self._string_ids else self._created,
            signing_secret=_new_secret(),
            created_at=now,
            updated_at=now,
            **valid,
        )
        self._webhooks[str(webhook.id)] = webhook
        return webhook

    def update(self, webhook: Webhook, properties: Mapping[str, Any], *, whole: bool) -> Webhook:
        """Change what is named; a `whole` update must name what a creation must. Raises ValidationError."""
        valid = _validate(properties, required=_REQUIRED if whole else ())
        return self._keep(replace(webhook, **valid))

    def rotate_secret(self, webhook: Webhook) -> Webhook:
        """Give it a new signing secret, of which its owner learns nothing unless reads repeat it."""
        return self._keep(replace(webhook, signing_secret=_new_secret()))

    def delete(self, webhook: Webhook) -> None:
        """Forget it. What was submitted for it before may still be sent."""
        del self._webhooks[str(webhook.id)]

    def _keep(self, webhook: Webhook) -> Webhook:
        webhook = replace(webhook, updated_at=self._now())
        self._webhooks[str(webhook.id)] = webhook
        return webhook


def _new_secret() -> str:
    return secrets.token_hex(32)


def _validate(properties: Mapping[str, Any], *, required: tuple[str, ...]) -> dict[str, Any]:
    """The known properties that were given, checked; unknown ones are passed over."""
    errors = {
        name: [f"The {_in_words(name)} field is required."]
        for name in required
        if properties.get(name) is None or properties[name] == ""
    }
    valid: dict[str, Any] = {}
    for name, rule in _RULES.items():
        if name in properties and name not in errors:
            # PHP has one type for lists and maps: an empty list is how its clients write an empty object.
            value = {} if name == "headers" and properties[name] == [] else properties[name]
            complaint = rule(value)
            if complaint:
                errors[name] = [f"The {_in_words(name)} field {complaint}."]
            else:
                valid[name] = value
    if errors:
        raise ValidationError(errors)
    return valid


def _in_words(name: str) -> str:
    return name.replace("_", " ")


def _check_text(value: object) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    return None if len(value) <= _LONGEST_TEXT else f"must not be greater than {_LONGEST_TEXT} characters"


def _check_url(value: object) -> str | None:
    if isinstance(value, str):
        try:
            parts = urlsplit(value)
            if parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0):
                return None
        except ValueError:
            pass
    return "must be a valid URL"


def _check_bool(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _check_count(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return "must be an integer"
    return None if value >= 0 else "must be at least 0"


def _check_headers(value: object) -> str | None:
    if not isinstance(value, dict):
        return "must be an object"
    for name, content in value.items():
        if not _HEADER_NAME.fullmatch(name):
            return f"holds {name!r}, which is no name of a header"
        if not isinstance(content, str) or _CONTROL_CHARACTERS.search(content):
            return f"must give {name} a string of one line"
    return None


def _one_of(*allowed: str) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        return None if value in allowed else f"must be one of {', '.join(allowed)}"

    return check


_RULES: dict[str, Callable[[object], str | None]] = {
    "name": _check_text,
    "callback_url": _check_url,
    "entity_type": _one_of(*ENTITY_TYPES),
    "include_entity_data": _check_bool,
    "headers": _check_headers,
    "retry_policy": _one_of(*get_args(RetryPolicy)),
    "minimum_retry_interval": _check_count,
    "retry_limit": _check_count,
    "enabled": _check_bool,
}
