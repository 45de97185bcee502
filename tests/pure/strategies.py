"""JSON for the tests of the pure rules: generated values, every way to spell one, and an independent exact parser.

EXAMPLES=100000 in the environment runs each law on that many examples instead of the few of an ordinary run.
"""

import json
import os
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from app.domain.values import JsonText

settings.register_profile(
    "laws",
    deadline=None,
    max_examples=int(os.environ.get("EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("laws")

Json = Any
"""None, a bool, a str, a Number, a list or a dict of them."""


@dataclass(frozen=True)
class Number:
    """A number as it is spelled: 1.0 and 1.00 are two of them."""

    spelling: str


@dataclass(frozen=True)
class Exact:
    """A number as it is meant: 1.0 and 1.00 are one, and none is a bool."""

    value: Decimal


numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True).map(Number)
texts = st.text(st.characters(exclude_categories=[]), max_size=12).map(lambda text: json.loads(json.dumps(text)))
"""With NUL, lone surrogates and all; two surrogates that make one character are that character."""

names = st.sampled_from(["", "a", "b", "id", "data", "~", "/", "~1", "é", "\0", "\ud800"]) | texts
scalars = st.none() | st.booleans() | texts | numbers
values = st.recursive(
    scalars,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(names, inside, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(names, values, max_size=4)
states = st.dictionaries(st.sampled_from("abc"), scalars, max_size=2)
"""Small objects, for laws that are about something else."""


def parse(text: bytes) -> Json:
    """A JSON text with its numbers as they are spelled, by the standard library alone. Raises ValueError."""
    return json.loads(text.decode(), parse_int=Number, parse_float=Number, parse_constant=_refuse)


def _refuse(constant: str) -> Json:
    raise ValueError(constant)


def meaning(value: Json) -> Json:
    """A value with its numbers as they are meant."""
    match value:
        case Number(spelling):
            return Exact(Decimal(spelling))
        case dict():
            return {name: meaning(inner) for name, inner in value.items()}
        case list():
            return [meaning(inner) for inner in value]
        case _:
            return value


def compact(value: Json) -> JsonText:
    """The shortest spelling of a value, in ASCII."""
    return spell(value, None)


def spell(value: Json, random: Random | None) -> JsonText:
    """A value as JSON text: with white space, order of members and escapes as chance has it; compact without chance."""
    return JsonText(_spell(value, random).encode())


def _spell(value: Json, random: Random | None) -> str:
    def space() -> str:
        return random.choice(["", "", "", " ", "\n", "\t\r "]) if random else ""

    match value:
        case Number(spelling):
            return spelling
        case str():
            return _spell_string(value, random)
        case dict():
            members = list(value.items())
            if random:
                random.shuffle(members)
            inside = ",".join(
                f"{space()}{_spell_string(name, random)}{space()}:{space()}{_spell(inner, random)}{space()}"
                for name, inner in members
            )
            return f"{{{inside or space()}}}"
        case list():
            inside = ",".join(f"{space()}{_spell(inner, random)}{space()}" for inner in value)
            return f"[{inside or space()}]"
        case _:
            return json.dumps(value)


def _spell_string(value: str, random: Random | None) -> str:
    if random is None:
        return json.dumps(value)
    return f'"{"".join(random.choice(spellings(char)) for char in value)}"'


def spellings(char: str) -> list[str]:
    """Every way in which a character can stand in a JSON string, upper case digits for all or for none."""
    units = char.encode("utf-16-be", "surrogatepass").hex(" ", 2).split()
    found = ["".join(f"\\u{unit}" for unit in units), "".join(f"\\u{unit.upper()}" for unit in units)]
    if char >= " " and char not in '"\\' and not "\ud800" <= char <= "\udfff":
        found.append(char)
    if char in _SHORT:
        found.append(_SHORT[char])
    return found


_SHORT = {'"': r"\"", "\\": r"\\", "/": r"\/", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t"}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """JSON text with some bytes changed, taken out or put in: often no JSON any more."""
    text = bytearray(spell(draw(values), draw(st.randoms(use_true_random=False))))
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(text)))
        piece = draw(
            st.sampled_from([b"", b"\\", b'"', b"{", b"]", b",", b":", b"0", b"-", b"NaN", b"\x00", b"\xff", b" "])
        )
        text[position : position + draw(st.integers(0, 2))] = piece
    return bytes(text)


HOSTILE_SIZE = 200_000
HOSTILE = {
    "nothing": b"",
    "NUL bytes": b"\0" * HOSTILE_SIZE,
    "no UTF-8": b"\xff" * HOSTILE_SIZE,
    "white space": b" " * HOSTILE_SIZE,
    "quotation marks": b"{" + b'"' * HOSTILE_SIZE,
    "backslashes": b'{"id":"' + b"\\" * HOSTILE_SIZE,
    "escaped quotation marks": b"{" + b'\\"' * (HOSTILE_SIZE // 2),
    "open arrays": b"[" * HOSTILE_SIZE,
    "open objects": b'{"data":' * (HOSTILE_SIZE // 8),
    "closed arrays": b'{"id":1,"x":' + b"[" * (HOSTILE_SIZE // 2) + b"]" * (HOSTILE_SIZE // 2) + b"}",
    "deep wrappers": b'{"data":' * 900 + b'{"id":1}' + b"}" * 900,
    "many empty arrays": b"[" + b"[]," * (HOSTILE_SIZE // 3) + b"[]]",
    "many members": b'{"id":1,' + b",".join(b'"%d": 0' % n for n in range(HOSTILE_SIZE // 10)) + b"}",
    "many repeated members": b'{"id":1,"x":[' + b'{"a":1,"a":1},' * (HOSTILE_SIZE // 14) + b"1]}",
    "many digits": b'{"id":1,"updated_at":' + b"9" * HOSTILE_SIZE + b"}",
    "huge integers": b'{"id":1,"updated_at":1,"x":[' + (b"9" * 4300 + b",") * (HOSTILE_SIZE // 4301) + b"1]}",
    "huge exponents": b'{"id":1,"updated_at":1,"x":[' + b"1e999999999,1e-99999999999999999999," * 3000 + b"1]}",
    "a long time": b'{"id":1,"updated_at":"' + b"(, " * (HOSTILE_SIZE // 3) + b'GMT"}',
    "a long word": b'{"id":1,"action":"' + b"updateD" * (HOSTILE_SIZE // 7) + b'"}',
    "a long id": b'{"id":"' + b"x" * HOSTILE_SIZE + b'"}',
    "lone surrogates": b'{"id":1,"x":["' + b"\\ud800" * (HOSTILE_SIZE // 6) + b'"]}',
}
"""Bodies made to cost time, memory or an exception; every rule must be through with each in a moment."""
