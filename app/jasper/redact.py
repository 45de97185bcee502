"""Blanks secrets in headers and bodies before anything is kept or read. Pure.

The secret travels at a place nobody documented, so it is blanked wherever it stands: in every header, and in every string
of a JSON body, however it is escaped. What is not a secret stays as it came, byte for byte.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from app.domain.values import Headers

BLANK = "[redacted]"

_ALWAYS = {"authorization", "proxy-authorization", "cookie"}
_SHORTEST_PART = 12
"""A secret shorter than this is blanked only where it is a whole value: inside other text it may be there by chance."""

_BEARER = "bearer "
_BOM = b"\xef\xbb\xbf"
_SHORT_ESCAPES = {
    '"': rb"\"",
    "\\": rb"\\",
    "/": rb"\/",
    "\b": rb"\b",
    "\f": rb"\f",
    "\n": rb"\n",
    "\r": rb"\r",
    "\t": rb"\t",
}


_ESCAPE = rb'\\["\\/bfnrtu]'


def redact_headers(
    headers: Headers, secrets: Sequence[str], required: Sequence[Mapping[str, str]], proof_header: str | None = None
) -> Headers:
    """Headers with the secrets, the values of the required headers and the one that carried the proof blanked.

    A required value is often an ordinary word, so elsewhere it is blanked only where it is long.
    """
    blanked = _ALWAYS | {name.lower() for names in required for name in names}
    if proof_header is not None:
        blanked.add(proof_header)
    required_values = {value for names in required for value in names.values() if len(value) >= _SHORTEST_PART}
    values = {*secrets, *required_values}
    return tuple((name, BLANK if name in blanked else redact_text(value, values)) for name, value in headers)


def redact_text(value: str, secrets: Collection[str]) -> str:
    """A text with the secrets blanked: wholly where it is one, else each part of it that is a long one."""
    for secret in secrets:
        if secret in value:
            break
    else:
        return value
    bare = value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else value
    if any(secret in {value, bare} for secret in secrets if secret):
        return BLANK
    for secret in _parts(secrets):
        value = value.replace(secret, BLANK)
    return value


def redact_body(body: bytes, secrets: Sequence[str]) -> bytes:
    """The body with the secrets blanked; the very same bytes where none stands in it. JSON stays JSON."""
    wanted, raw = _wanted(tuple(secrets))
    if not wanted:
        return body
    unescaped, is_escaped = body, False
    if b"\\" in body:  # the slash is the one escape that ordinary bodies are full of
        unescaped = body.replace(rb"\/", b"/")
        is_escaped = b"\\" in unescaped and _escapes(wanted).search(body) is not None
    if not is_escaped and not any(secret in unescaped for secret in raw):
        return body
    if body.removeprefix(_BOM).lstrip()[:1] not in {b"{", b"[", b'"'}:
        for secret in raw:  # no JSON: nothing says where a value ends
            body = body.replace(secret, BLANK.encode())
    return _spellings(wanted).sub(_blanked, body)


@lru_cache(maxsize=16)
def _wanted(secrets: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """The secrets to look for, the longest first, as text and as bytes."""
    wanted = tuple(sorted({secret for secret in secrets if secret}, key=len, reverse=True))
    return wanted, tuple(secret.encode("utf-8", "surrogatepass") for secret in wanted)


def _parts(secrets: Collection[str]) -> list[str]:
    """The secrets that are blanked inside other text, too: longest first, as one may begin with another."""
    return sorted((secret for secret in secrets if len(secret) >= _SHORTEST_PART), key=len, reverse=True)


@lru_cache(maxsize=16)
def _escapes(secrets: tuple[str, ...]) -> re.Pattern[bytes]:
    """Finds the escapes, but for that of the slash, without which no secret can stand in a JSON string but as it is."""
    chars = set("".join(secrets))
    first_units = sorted({_in_either_case(char.encode("utf-16-be", "surrogatepass")[:2].hex()) for char in chars})
    short = b"".join(re.escape(_SHORT_ESCAPES[char][1:]) for char in sorted(chars & _SHORT_ESCAPES.keys() - {"/"}))
    # Written so that few steps tell that an escape is none of these: a body may consist of them.
    return re.compile(rb"\\(?:u(?:%b)%b)" % ("|".join(first_units).encode(), b"|[%b]" % short if short else b""))


def _in_either_case(digits: str) -> str:
    return "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in digits)


@lru_cache(maxsize=16)
def _spellings(secrets: tuple[str, ...]) -> re.Pattern[bytes]:
    r"""Finds each secret in JSON text: as a whole string, as a part of one, in whatever mixture of escapes.

    An escape that begins no secret is stepped over, so that `\\u0041` is not taken for a backslash and an escaped `A`. A
    backslash that begins no escape hides nothing: such a body is no JSON, but it is kept all the same.
    """
    spelled = {secret: b"".join(_spelled(char) for char in secret) for secret in secrets}
    bearer = b"".join(_spelled(char, char.upper()) for char in _BEARER)
    whole = b'(?P<whole>"(?:%b *)?(?:%b)")' % (bearer, b"|".join(spelled.values()))
    # Digits alone may be part of a number, where a blank would be no JSON.
    parts = b"|".join(spelled[secret] for secret in _parts(secrets) if not secret.isdecimal())
    return re.compile(b"|".join([whole, rb"(?P<part>%b)" % parts, _ESCAPE] if parts else [whole, _ESCAPE]))


def _blanked(found: re.Match[bytes]) -> bytes:
    match found.lastgroup:
        case "whole":
            return b'"%b"' % BLANK.encode()
        case "part":
            return BLANK.encode()
        case _:
            return found.group()


def _spelled(*chars: str) -> bytes:
    """A pattern for one of the characters in every spelling that JSON has for it."""
    raw = [re.escape(char.encode("utf-8", "surrogatepass")) for char in chars]
    return b"(?:%b)" % b"|".join([*(escape for char in chars for escape in _escaped(char)), *raw])


def _escaped(char: str) -> list[bytes]:
    r"""Patterns for the escapes of a character: `\u` with hexadecimal digits in either case, and the short one if any."""
    units = char.encode("utf-16-be", "surrogatepass")
    long = b"".join(rb"\\u(?i:%02x%02x)" % pair for pair in zip(units[::2], units[1::2], strict=True))
    return [long, re.escape(_SHORT_ESCAPES[char])] if char in _SHORT_ESCAPES else [long]
