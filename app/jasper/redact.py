"""Blanks secrets in headers and bodies before anything is kept or read. Pure.

The secret travels at a place nobody documented, so it is blanked wherever it stands: in every header, and in every string
of a JSON body, escaped or not. What is not a secret stays as it came, byte for byte.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from app.domain import jsontext
from app.domain.jsontext import NotJsonError
from app.domain.values import Headers, JsonText

BLANK = "[redacted]"

_ALWAYS = {"authorization", "proxy-authorization", "cookie"}
_SHORTEST_PART = 12
"""A secret shorter than this is blanked only where it is a whole value: inside other text it may be there by chance."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def redact_headers(
    headers: Headers, secrets: Sequence[str], required: Sequence[Mapping[str, str]], proof_header: str | None = None
) -> Headers:
    """Headers with the secrets, the values of the required headers and the one that carried the proof blanked."""
    blanked = _ALWAYS | {name.lower() for names in required for name in names}
    if proof_header is not None:
        blanked.add(proof_header)
    values = {*secrets, *(value for names in required for value in names.values())}
    return tuple((name, BLANK if name in blanked else _blank(value, values)) for name, value in headers)


def redact_body(body: bytes, secrets: Sequence[str]) -> bytes:
    """The body with the secrets blanked; the very same bytes where none stands in it."""
    raw = [secret.encode() for secret in secrets]
    # Where no string is escaped, a secret can only stand there as it is.
    if b"\\" not in body and not any(secret in body for secret in raw):
        return body
    if body.lstrip()[:1] in {b"{", b"[", b'"'}:
        return _STRING.sub(lambda match: _redact_string(match.group(), secrets), body)
    for secret in raw:
        body = body.replace(secret, BLANK.encode())
    return body


def _redact_string(quoted: bytes, secrets: Sequence[str]) -> bytes:
    try:
        value = jsontext.string(JsonText(quoted)) if b"\\" in quoted else quoted[1:-1].decode()
    except (NotJsonError, UnicodeDecodeError):
        return quoted
    blanked = _blank(value, secrets)
    return quoted if blanked == value else jsontext.quote(blanked)


def _blank(value: str, secrets: Collection[str]) -> str:
    if any(value in {secret, f"Bearer {secret}"} for secret in secrets):
        return BLANK
    for secret in secrets:
        if len(secret) >= _SHORTEST_PART:
            value = value.replace(secret, BLANK)
    return value
