"""What the pages show, as text: times, sizes, JSON in part, changes one by one. Everything here may come from outside.

Nothing is marked as safe: the templates escape whatever they are given.
"""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from app.domain import jsontext
from app.domain.jsontext import NotJsonError
from app.domain.values import JsonText

MOST_SHOWN = 20_000
"""Characters of one text that a page shows; the rest can be downloaded."""

_LARGEST_INDENTED = 256 * 1024
"""Bytes of JSON that are laid out in lines; larger ones are shown as they came."""

_MOST_CHANGES = 200
"""Differences that a page lists for one event."""

_LONGEST_VALUE = 300

_UNITS = ("bytes", "kB", "MB", "GB")
_THOUSAND = 1000


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The beginning of a text. `size` counts the whole, in bytes."""

    text: str
    size: int
    is_cut: bool


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """One difference: `before` is None where something was added, `after` where it was removed."""

    path: str
    before: str | None
    after: str | None


def excerpt(text: str | bytes, limit: int = MOST_SHOWN) -> Excerpt:
    """The beginning of a text as it is; what is no UTF-8 in it becomes U+FFFD."""
    size = len(text) if isinstance(text, bytes) else len(text.encode(errors="surrogatepass"))
    # Four bytes make one character at most, so no more need to be decoded.
    shown = text[: 4 * limit].decode(errors="replace") if isinstance(text, bytes) else text
    return Excerpt(jsontext.storable(shown[:limit]), size, is_cut=len(shown) > limit)


def json_excerpt(text: bytes) -> Excerpt:
    """The beginning of a JSON text, laid out in lines where that does not change a letter of its values."""
    if len(text) > _LARGEST_INDENTED:
        return excerpt(text)
    try:
        laid_out = msgspec.json.format(text, indent=2)
    except (msgspec.DecodeError, RecursionError):  # lone surrogates, too deep a nesting, and what is no JSON at all
        return excerpt(text)
    shown = excerpt(laid_out)
    return Excerpt(shown.text, len(text), shown.is_cut)


def body_excerpt(body: str, encoding: str) -> Excerpt:
    """The beginning of a delivery's body; one that is no text is shown as hexadecimal digits."""
    if encoding == "utf-8":
        return json_excerpt(body.encode())
    raw = base64.b64decode(body)
    digits = binascii.hexlify(raw[: MOST_SHOWN // 3], " ").decode()
    return Excerpt(digits, len(raw), is_cut=len(raw) > MOST_SHOWN // 3)


def brief(text: str, limit: int) -> str:
    """A text in one line of a list."""
    return f"{text[: limit - 1]}…" if len(text) > limit else text


def telling(lines: list[ChangeLine]) -> list[ChangeLine]:
    """The differences that say something: not that it was changed, which every one says."""
    return [line for line in lines if line.path not in {"/updated_at", "/version"}] or lines


def change_lines(changes: str | None) -> list[ChangeLine]:
    """The differences of an event, each value as its own text; no more than a page can show."""
    if changes is None:
        return []
    return list(_lines(JsonText(changes.encode())))


def _lines(changes: JsonText) -> Iterator[ChangeLine]:
    try:
        for change in jsontext.elements(changes)[:_MOST_CHANGES]:
            parts = jsontext.members(change)
            yield ChangeLine(
                jsontext.storable(jsontext.string(parts["path"])), _value(parts.get("from")), _value(parts.get("to"))
            )
    except (NotJsonError, KeyError):
        return


def _value(text: JsonText | None) -> str | None:
    if text is None:
        return None
    shown = excerpt(text, _LONGEST_VALUE)
    return shown.text + "…" if shown.is_cut else shown.text


def moment(at: datetime) -> str:
    """A time to the second, in UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


def ago(at: datetime, now: datetime) -> str:
    """How long ago, in one unit."""
    return f"{span(now - at)} ago" if now - at >= timedelta(seconds=1) else "just now"


def span(time: timedelta | float) -> str:
    """A duration (of so many seconds) in one unit."""
    seconds = time.total_seconds() if isinstance(time, timedelta) else time
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def number(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def size(count: int) -> str:
    """A number of bytes in a fitting unit."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < _THOUSAND:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= _THOUSAND
    return f"{value:.1f} {_UNITS[-1]}"
