"""JSON text: split exactly where the standard library says, kept byte for byte, compared without rounding."""

import json
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.domain import jsontext
from app.domain.jsontext import DuplicateNameError, NotJsonError
from app.domain.values import JsonText
from tests.pure.strategies import (
    HOSTILE,
    Json,
    compact,
    damaged,
    meaning,
    names,
    objects,
    parse,
    scalars,
    spell,
    texts,
    values,
)

randoms = st.randoms(use_true_random=False)


def _reference(body: bytes) -> Json:
    """The value of a body whose outermost object names no member twice; else ValueError."""

    def pairs(found: list[tuple[str, Json]]) -> Json:
        return _Pairs(found)

    value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse, object_pairs_hook=pairs, parse_int=len)
    if isinstance(value, _Pairs) and len(dict(value)) != len(value):
        raise ValueError("repeated")
    return value


class _Pairs(list[tuple[str, Json]]):
    """The members of an object as they came."""


def _refuse(constant: str) -> Json:
    raise ValueError(constant)


def _split(body: bytes) -> str:
    """What a body turns out to be when it is split."""
    text = jsontext.document(body)
    match jsontext.kind(text):
        case "object":
            jsontext.members(text)
        case "array":
            jsontext.elements(text)
    return jsontext.kind(text)


@given(damaged())
@example(b'{"a":1,"a":2}')
@example(b'\xef\xbb\xbf {"a":1}\n')
@example(b'{"a":NaN}')
@example(b'[1,{"a":-Infinity}]')
@example(b'{"a":"\x00"}')
@example(b'{"a":01}')
def test_what_is_json_is_what_the_standard_library_takes_for_json(body: bytes) -> None:
    """Strictly: no NaN, no repeated name at the level that is split, no byte that is not UTF-8."""
    try:
        expected = _reference(body)
    except ValueError:
        with pytest.raises(NotJsonError):
            _split(body)
    else:
        kinds = {_Pairs: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
        assert _split(body) == kinds.get(type(expected), "number")


@given(objects, randoms)
def test_members_are_the_untouched_texts_of_their_values(value: dict[str, Json], random: Random) -> None:
    text = spell(value, random)
    found = jsontext.members(text)
    assert {name: parse(inner) for name, inner in found.items()} == value
    assert all(text.count(inner) for inner in found.values())


@given(st.lists(values, max_size=6), randoms)
def test_elements_are_the_untouched_texts_of_their_values(value: list[Json], random: Random) -> None:
    text = spell(value, random)
    found = jsontext.elements(text)
    assert [parse(inner) for inner in found] == value
    position = 0
    for inner in found:
        position = text.index(inner, position) + len(inner)


@given(damaged())
@example(b'{"a":1,"a":2}')
@example(b'{"a":{"b":1,"b":2},"c":"\\ud800"}')
@example(b'{"a" :1 , "b": [1 , 2 ]}')
def test_the_fast_way_and_the_slow_way_agree(body: bytes) -> None:
    try:
        text = jsontext.document(body)
    except NotJsonError:
        return
    for fast, slow in ((jsontext.members, jsontext._scan_object), (jsontext.elements, jsontext._scan_array)):
        try:
            expected = slow(text.decode())
        except NotJsonError as exc:
            with pytest.raises(type(exc)):
                fast(text)
        else:
            assert fast(text) == expected


@pytest.mark.parametrize(
    "text", [b'{"a":1,"a":1}', b'{"a":1,"\\u0061":2}', b'{ "" : 1 , "" : 1 }', '{"é":1,"é":2}'.encode()]
)
def test_a_repeated_name_is_told_apart_from_no_json(text: bytes) -> None:
    with pytest.raises(DuplicateNameError):
        jsontext.members(JsonText(text))


@given(values, randoms)
def test_a_document_is_the_body_without_what_stands_around_it(value: Json, random: Random) -> None:
    text = spell(value, random)
    assert jsontext.document(b"\xef\xbb\xbf \r\n" + text + b"\t ") == text


@given(texts)
def test_a_string_survives_quoting(value: str) -> None:
    quoted = jsontext.quote(value)
    assert quoted.isascii()
    assert jsontext.string(quoted) == value


@given(texts)
def test_what_is_stored_is_the_text_where_postgres_can_hold_it(value: str) -> None:
    stored = jsontext.storable(value)
    assert "\0" not in stored
    stored.encode()
    kept = [
        stored[index] == char for index, char in enumerate(value) if char != "\0" and not "\ud800" <= char <= "\udfff"
    ]
    assert all(kept)
    assert len(stored) == len(value)


@given(values, randoms)
def test_every_value_is_found_at_its_pointer(value: Json, random: Random) -> None:
    text = spell(value, random)

    def check(pointer: str, inner: Json) -> None:
        found = jsontext.resolve(text, pointer)
        assert found is not None
        assert parse(found) == inner
        if isinstance(inner, dict | list):
            pairs = list(inner.items() if isinstance(inner, dict) else enumerate(inner))
            for name, below in pairs:
                check(jsontext.append_to_pointer(pointer, str(name)), below)
            assert dict(jsontext.children(pointer, found)).keys() == {
                jsontext.append_to_pointer(pointer, str(name)) for name, _ in pairs
            }
        assert jsontext.resolve(text, f"{pointer}/never there") is None

    check("", value)


@given(values, values, randoms)
def test_equal_means_the_same_value(one: Json, other: Json, random: Random) -> None:
    assert jsontext.equal(spell(one, random), spell(one, random))
    assert jsontext.equal(spell(one, random), spell(other, random)) == (meaning(one) == meaning(other))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b"1.10", b"1.1", True),
        (b"1e2", b"100", True),
        (b"9007199254740993", b"9007199254740992", False),
        (b"0.1000000000000000000000000000001", b"0.1", False),
        (b"1e400", b"1e401", False),
        (b"1e999999999", b"1e-999999999", False),
        (b"1e-99999999999999999999", b"0", False),
        (b"1e99999999999999999999", b"1e99999999999999999999", True),
        (b"true", b"1", False),
        (b'"1"', b"1", False),
        (b"null", b"0", False),
        (rb'"\u00e9\/"', '"é/"'.encode(), True),
    ],
)
def test_numbers_are_compared_to_the_last_digit(one: bytes, other: bytes, same: bool) -> None:
    assert jsontext.equal(JsonText(one), JsonText(other)) is same


@given(objects, objects, randoms)
def test_a_digest_is_shared_by_spellings_of_one_value_and_by_nothing_else(
    one: Json, other: Json, random: Random
) -> None:
    """Numbers count as they are spelled; lone surrogates, which have no canonical form, are left out of the first half."""
    text = spell(one, random)
    if b"\\ud" not in compact(one).lower():
        assert jsontext.digest(text) == jsontext.digest(compact(one))
    if one != other and meaning(one) != meaning(other):
        assert jsontext.digest(text) != jsontext.digest(spell(other, random))


@given(scalars, scalars, names, randoms)
def test_a_repeated_name_never_hides_a_difference_from_the_digest(
    hidden: Json, shown: Json, name: str, random: Random
) -> None:
    """Otherwise a callback could pass for the repetition of another one."""
    first, second = spell({name: hidden}, random), spell({name: shown}, random)
    once, twice = b'{"x":%b}' % second, b'{"x":%b,%b}' % (first[:-1], second[1:])
    assert jsontext.digest(JsonText(twice)) != jsontext.digest(JsonText(once))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_are_split_or_refused_in_a_moment(body: bytes) -> None:
    try:
        text = jsontext.document(body)
        for _, inner in jsontext.children("", text):
            jsontext.digest(inner)
            jsontext.equal(inner, JsonText(b" ".join([inner[:1], inner[1:]])))
    except NotJsonError:
        return


def test_members_that_differ_are_told_however_the_objects_are_spelled() -> None:
    """One side is split by msgspec, the other, for its white space, by the scan."""
    one, other = JsonText(b'{"a":1,"b":2,"c":3}'), JsonText(b'{ "a": 1, "b": 5, "d": 4 }')
    assert jsontext.members_that_differ(one, other) == {"b": (b"2", b"5"), "c": (b"3", None), "d": (None, b"4")}


@pytest.mark.parametrize("text", [b'{"a":1.10,"b":{"c":"x"}}', b'{ "a" : 1.10 , "b" : {"c":"x"} }'])
def test_members_in_place_are_the_texts_that_stand_there(text: bytes) -> None:
    found = jsontext.members_in_place(JsonText(text))
    assert {name: bytes(value) for name, value in found.items()} == {"a": b"1.10", "b": b'{"c":"x"}'}
