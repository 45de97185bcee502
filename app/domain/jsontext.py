"""JSON read level by level, with every value kept as the text it came as.

What Jasper sent must be given back to the last digit and escape, so nothing here turns a document into Python values and
back. `members` and `elements` split one level into the untouched texts under it. They go two ways: msgspec, fast, where
its answer is provably the whole truth; else a slower scan that knows everything (duplicate names, lone surrogates, nesting)
and has the last word. Standard: RFC 8259.
"""

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from json.decoder import scanstring  # type: ignore[attr-defined]  # C scanner of the standard library, not in the stubs
from typing import Any

import msgspec

from app.domain.values import JsonText

MAX_DEPTH = 64
"""Levels that are looked into; deeper values are still kept and given back, but compared as a whole."""

_BOM = b"\xef\xbb\xbf"
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_arrays = msgspec.json.Decoder(list[msgspec.Raw])
_strings = msgspec.json.Decoder(str)


class NotJsonError(ValueError):
    """The text is no JSON, or not of the kind asked for. The message says what was found, never the text itself."""


class DuplicateNameError(NotJsonError):
    """An object names the same member twice, so that it cannot be said which one is meant."""


def document(body: bytes) -> JsonText:
    """The JSON text in a request body: UTF-8, without byte order mark and white space around it. Raises NotJsonError."""
    text = body.removeprefix(_BOM).strip(b" \t\n\r")
    if not text:
        raise NotJsonError("the body is empty")
    decoded = _decoded(text)
    if text[:1] not in {b"{", b"["}:  # whoever reads an object or an array finds out by itself
        _expect_end(decoded, _scan_text(decoded, 0)[1])
    return JsonText(text)


def members(text: JsonText) -> dict[str, JsonText]:
    """The members of one JSON object, each value as its text. Raises NotJsonError or DuplicateNameError."""
    return {name: JsonText(bytes(value)) for name, value in members_in_place(text).items()}


def members_in_place(text: JsonText) -> Mapping[str, msgspec.Raw | JsonText]:
    """The same without a copy of each value, for who looks at few of them: `bytes()` of one is its text."""
    try:
        raw = _objects.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return _scan_object(_decoded(text))
    return raw if _is_whole(raw, text) else _scan_object(_decoded(text))


def members_that_differ(one: JsonText, other: JsonText) -> dict[str, tuple[JsonText | None, JsonText | None]]:
    """The members of two objects whose texts differ, in the order of their names: name → both texts, None where it is
    missing. Raises NotJsonError or DuplicateNameError.

    Members that are the same, which most are, are compared where they stand and not copied.
    """  # noqa: D205 - one sentence
    ours, theirs = members_in_place(one), members_in_place(other)
    names = [name for name, value in ours.items() if theirs.get(name) != value]
    names += theirs.keys() - ours.keys()
    found = {name: (_text(ours.get(name)), _text(theirs.get(name))) for name in sorted(names)}
    # What the scan has read is never equal to what msgspec points to, so the texts have the last word.
    return {name: (before, after) for name, (before, after) in found.items() if before != after}


def _text(value: msgspec.Raw | JsonText | None) -> JsonText | None:
    return None if value is None else JsonText(bytes(value))


def _is_whole(raw: Mapping[str, msgspec.Raw], text: JsonText) -> bool:
    """Whether every byte of an object is accounted for: a repeated name drops its first value without a word."""
    return len("".join(raw)) + sum(map(len, raw.values())) + max(4 * len(raw) - 1, 0) + 2 == len(text)


def elements(text: JsonText) -> list[JsonText]:
    """The elements of one JSON array, each as its text. Raises NotJsonError."""
    try:
        return [JsonText(bytes(value)) for value in _arrays.decode(text)]
    except (msgspec.DecodeError, RecursionError):
        return _scan_array(_decoded(text))


def kind(text: JsonText) -> str:
    """What a JSON text is: `object`, `array`, `string`, `number`, `boolean` or `null`."""
    return _KINDS.get(text[:1], "number")


_KINDS = {b"{": "object", b"[": "array", b'"': "string", b"t": "boolean", b"f": "boolean", b"n": "null"}


def string(text: JsonText) -> str:
    """The value of a JSON string; may hold NUL and lone surrogates. Raises NotJsonError where it is none."""
    try:
        return _strings.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded = _decoded(text)
        value, end = _scan_string(decoded, 0)
        _expect_end(decoded, end)
        return value


def quote(value: str) -> JsonText:
    """A Python string as JSON text, in ASCII, so that it also holds what UTF-8 cannot."""
    return JsonText(msgspec.json.encode(value) if value.isascii() else json.dumps(value).encode())


def append_to_pointer(pointer: str, name: str) -> str:
    """A JSON Pointer (RFC 6901) one level deeper."""
    if "~" in name or "/" in name:
        name = name.replace("~", "~0").replace("/", "~1")
    return f"{pointer}/{name}"


def children(pointer: str, text: JsonText) -> Iterator[tuple[str, JsonText]]:
    """What is one level under the value at `pointer`, each with its own pointer; nothing under a scalar.

    Raises NotJsonError where the level cannot be read.
    """
    if kind(text) == "object":
        for name, child in members(text).items():
            yield append_to_pointer(pointer, name), child
    elif kind(text) == "array":
        for index, child in enumerate(elements(text)):
            yield f"{pointer}/{index}", child


def storable(value: str) -> str:
    """A text that Postgres can hold: NUL and lone surrogates become U+FFFD."""
    if value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def resolve(text: JsonText, pointer: str) -> JsonText | None:
    """The value at a JSON Pointer; None where there is none. Raises NotJsonError where a level on the way cannot be read."""
    for step in pointer.split("/")[1:]:
        match kind(text):
            case "object":
                child = members(text).get(step.replace("~1", "/").replace("~0", "~"))
            case "array" if step.isascii() and step.isdigit() and len(step) < _LONGEST_INDEX:
                inside = elements(text)
                child = inside[int(step)] if int(step) < len(inside) else None
            case _:
                child = None
        if child is None:
            return None
        text = child
    return text


_LONGEST_INDEX = 10


def equal(one: JsonText, other: JsonText, *, depth: int = MAX_DEPTH) -> bool:
    """Whether two JSON texts mean the same value: white space, order of members, escapes and spelling of numbers aside.

    1.10 equals 1.1, but 9007199254740993 is not 9007199254740992: nothing is rounded. Below `depth` levels texts are
    compared letter by letter.
    """
    if one == other:
        return True
    what = kind(one)
    if what != kind(other) or depth == 0:
        return False
    if what == "object":
        left, right = members(one), members(other)
        return left.keys() == right.keys() and all(equal(left[name], right[name], depth=depth - 1) for name in left)
    if what == "array":
        ours, theirs = elements(one), elements(other)
        return len(ours) == len(theirs) and all(equal(a, b, depth=depth - 1) for a, b in zip(ours, theirs, strict=True))
    if what == "string":
        return string(one) == string(other)
    return what == "number" and _number(one) == _number(other)


def digest(text: JsonText) -> bytes:
    """16 bytes that are the same for texts that differ in white space, order of members and escapes only.

    Numbers count as they are spelled, so that no two different ones ever share a digest by rounding. A text msgspec
    cannot hold (lone surrogates, extreme nesting) or that names a member twice counts letter by letter.
    """
    try:
        canonical = _sorted.encode(_exact.decode(text))
        if len(canonical) != len(text):  # white space and escapes are gone, or the first value of a repeated name
            _distinct.decode(text.decode())
    except (msgspec.MsgspecError, ValueError, RecursionError):
        canonical = text
    return blake2b(canonical, digest_size=16).digest()


_exact = msgspec.json.Decoder(float_hook=lambda literal: msgspec.Raw(literal.encode()))
_sorted = msgspec.json.Encoder(order="sorted")


def _number(text: JsonText) -> Decimal | bytes:
    try:
        return Decimal(text.decode())
    except InvalidOperation:  # an exponent beyond what Decimal holds
        return text


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as exc:
        raise NotJsonError(f"not UTF-8 at byte {exc.start}") from exc


def _refuse(constant: str) -> Any:
    raise NotJsonError(f"{constant} is no JSON")


def _names_once(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise DuplicateNameError("a member is there twice")


_distinct = json.JSONDecoder(object_pairs_hook=_names_once, parse_float=len, parse_int=len)


# Numbers are not converted: only their place is of interest, and int() refuses very long ones.
_scan_value = json.JSONDecoder(parse_constant=_refuse, parse_float=len, parse_int=len).raw_decode


def _scan_object(text: str) -> dict[str, JsonText]:
    found: dict[str, JsonText] = {}
    position = _skip(text, _expect(text, 0, "{"))
    while found or text[position : position + 1] != "}":
        name, position = _scan_string(text, position)
        if name in found:
            raise DuplicateNameError(f"the member {name[:50]!r} is there twice")
        position = _skip(text, _expect(text, _skip(text, position), ":"))
        found[name], position = _scan_text(text, position)
        if text[position : position + 1] != ",":
            break
        position = _skip(text, position + 1)
    _expect_end(text, _expect(text, position, "}"))
    return found


def _scan_array(text: str) -> list[JsonText]:
    found: list[JsonText] = []
    position = _skip(text, _expect(text, 0, "["))
    while found or text[position : position + 1] != "]":
        value, position = _scan_text(text, position)
        found.append(value)
        if text[position : position + 1] != ",":
            break
        position = _skip(text, position + 1)
    _expect_end(text, _expect(text, position, "]"))
    return found


def _scan_text(text: str, start: int) -> tuple[JsonText, int]:
    """The text of the value at `start`, and where the next token begins."""
    try:
        _, end = _scan_value(text, start)
    except json.JSONDecodeError as exc:
        raise NotJsonError(f"{exc.msg} at character {exc.pos}") from exc
    except RecursionError as exc:
        raise NotJsonError("nested too deeply to be read") from exc
    return JsonText(text[start:end].encode()), _skip(text, end)


def _scan_string(text: str, start: int) -> tuple[str, int]:
    """The string that begins with the quotation mark at `start`, and the position behind it."""
    try:
        value, end = scanstring(text, _expect(text, start, '"'), True)
    except json.JSONDecodeError as exc:
        raise NotJsonError(f"{exc.msg} at character {exc.pos}") from exc
    return value, end


def _skip(text: str, position: int) -> int:
    """The position behind the white space at `position`."""
    space = _WHITESPACE.match(text, position)
    return space.end() if space else position


def _expect(text: str, position: int, token: str) -> int:
    if text[position : position + 1] != token:
        raise NotJsonError(f"{token} expected at character {position}")
    return position + 1


def _expect_end(text: str, position: int) -> None:
    if _skip(text, position) != len(text):
        raise NotJsonError(f"something follows the value at character {position}")
