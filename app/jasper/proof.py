"""Is a callback authentic, and where was the proof found? Pure.

Every comparison takes constant time and goes through all accepted secrets, so that how long it takes tells nothing about
how much of a guess was right.

Jasper documents that it sends the signing secret with every callback, but not where, nor whether it is the secret itself
or an HMAC made with it. So every place is tried, unless the operator pinned one (JASPER_SIGNING_SECRET_LOCATION).
"""

import base64
import binascii
import hmac
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, reduce
from hashlib import sha256
from typing import Any, Literal

from app.domain import jsontext
from app.domain.values import Headers
from app.jasper.redact import redact_text

_BEARER = "bearer "
_SHA256_HEX = 64
_SHA256_BASE64 = (43, 44)  # without and with padding
_LONGEST_PLACE = 200


@dataclass(frozen=True, slots=True)
class Location:
    """Where the secret is looked for: `auto`, or one place. `name` is a lower-case header or a JSON Pointer."""

    kind: Literal["auto", "header", "body", "hmac-sha256"]
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> "Location":
        """From the text of the setting, which the settings have checked."""
        kind, _, name = text.partition(":")
        match kind:
            case "header" | "hmac-sha256":
                return cls(kind, name.lower())
            case "body":
                return cls(kind, name)
            case _:
                return cls("auto")


def carries_headers(headers: Headers, required: Mapping[str, str]) -> bool:
    """Whether every required header is there with its value; names in any case, values to the letter."""
    complete = True
    for name, value in required.items():
        matched = False
        for given, content in headers:
            if given == name.lower():
                matched |= _same(content, value)
        complete &= matched
    return complete


def prove(headers: Headers, body: bytes, secrets: Sequence[str], location: Location) -> str | None:
    """The place at which one of `secrets` is proven, as `header:NAME`, `body:/pointer` or `hmac-sha256:HEADER`; or None.

    An empty secret proves nothing. The place is fit to be stored and shown, whatever the names in the body are.
    """
    secrets = [secret for secret in secrets if secret]
    for kind, look in _TRIES.items():
        if location.kind in {"auto", kind}:
            place = look(headers, body, secrets, location.name)
            if place is not None:
                return redact_text(jsontext.storable(place), secrets)[:_LONGEST_PLACE]
    return None


def _in_headers(headers: Headers, _body: bytes, secrets: Sequence[str], only: str) -> str | None:
    for name, value in headers:
        if (not only or only == name) and _is_secret(value, secrets):
            return f"header:{name}"
    return None


def _in_signatures(headers: Headers, body: bytes, secrets: Sequence[str], only: str) -> str | None:
    given = [(name, signature) for name, value in headers if only in {"", name} and (signature := _signature(value))]
    expected = [hmac.digest(_bytes(secret), body, sha256) for secret in secrets] if given else []
    for name, signature in given:
        if sum(hmac.compare_digest(signature, digest) for digest in expected):
            return f"hmac-sha256:{name}"
    return None


def _in_body(_headers: Headers, body: bytes, secrets: Sequence[str], only: str) -> str | None:
    if not _is_any_string(body, secrets):  # a stranger's body of a million strings is not parsed
        return None
    for steps, value in _strings_at(body, only) if only else _strings_in_top_levels(body):
        if sum(_same(value, secret) for secret in secrets):
            return f"body:{reduce(jsontext.append_to_pointer, map(str, steps), '')}"
    return None


def _is_any_string(body: bytes, secrets: Sequence[str]) -> bool:
    """Whether any JSON string in the body, wherever it stands, is one of the secrets.

    Only strings of a fitting length are looked at, and those are compared as everything is: how long it takes depends on
    the body and on the length of the secrets. Linear in the body, because where one string may begin another one ends.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    for length in {(len(secret), len(secret.encode("utf-16-le", "surrogatepass")) // 2) for secret in secrets}:
        for found in _strings_of(*length).finditer(text):
            value = found[1]
            if "\\" in value:
                with suppress(ValueError):
                    value = json.loads(f'"{value}"', strict=False)
            if sum(_same(value, secret) for secret in secrets):
                return True
    return False


@lru_cache(maxsize=16)
def _strings_of(shortest: int, longest: int) -> re.Pattern[str]:
    """Finds JSON strings by their length, in characters or escapes (two for a character beyond U+FFFF)."""
    unit = r'(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])'
    # The quotation mark stands first, as the engine then leaps from one to the next.
    return re.compile(rf'"(?<=[\[{{,:\s]")({unit}{{{shortest},{longest}}})"')


def _is_secret(value: str, secrets: Sequence[str]) -> bool:
    """Whether a header's value is one of the secrets, whole, with or without `Bearer `. All are compared, always."""
    bare = value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else value
    proven = False
    for secret in secrets:
        proven |= _same(value, secret) | _same(bare, secret)
    return proven


def _same(given: str, secret: str) -> bool:
    # Unequal lengths are told apart by any comparison, whatever time it takes.
    return len(given) == len(secret) and hmac.compare_digest(_bytes(given), _bytes(secret))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _signature(value: str) -> bytes | None:
    """The 32 bytes that a header's value spells in hex or base64, an optional `sha256=` in front; None if it spells none."""
    text = value.strip()
    if text[:7].lower() == "sha256=":
        text = text[7:]
    try:
        if len(text) == _SHA256_HEX:
            return bytes.fromhex(text)
        if len(text) in _SHA256_BASE64:
            return base64.b64decode(text.rstrip("=").translate(_URL_SAFE) + "=", validate=True)
    except (ValueError, binascii.Error):
        pass
    return None


_URL_SAFE = str.maketrans("-_", "+/")
_TRIES = {"header": _in_headers, "hmac-sha256": _in_signatures, "body": _in_body}


_Steps = tuple[Any, ...]
"""Names and indices that lead to a value."""


def _strings_in_top_levels(body: bytes) -> Iterator[tuple[_Steps, str]]:
    """Every string within the two top levels of a JSON body."""
    for name, value in _inside(_parsed(body)):
        if isinstance(value, str):
            yield (name,), value
        for inner_name, inner in _inside(value):
            if isinstance(inner, str):
                yield (name, inner_name), inner


def _strings_at(body: bytes, pointer: str) -> Iterator[tuple[_Steps, str]]:
    """The string at a JSON Pointer; several where a name is repeated."""
    steps = tuple(step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])
    values = [_parsed(body)]
    for step in steps:
        values = [inner for value in values for name, inner in _inside(value) if str(name) == step]
    yield from ((steps, value) for value in values if isinstance(value, str))


def _parsed(body: bytes) -> Any:
    """The body as JSON; None if it is none.

    It comes from anyone, so it is parsed once, in C, and as leniently as JSON can be: a repeated name or a `NaN` makes a
    body unreadable, which is judged later, but not the caller a stranger.
    """
    try:
        return _lenient.decode(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


# Objects become tuples of their members, repeated ones included; numbers are not converted, as int() refuses very long ones.
_lenient = json.JSONDecoder(object_pairs_hook=tuple, parse_int=len, parse_float=len)


def _inside(value: Any) -> Iterable[tuple[Any, Any]]:
    """What is one level under a value: members by name, elements by index, nothing under a scalar."""
    if isinstance(value, tuple):
        return value
    return enumerate(value) if isinstance(value, list) else ()
