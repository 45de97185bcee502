"""Reading as a law: total, the same for every spelling, overridden by the mapping, and never a guess."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from app.domain import jsontext
from app.domain.values import ENTITY_TYPE_OF, Action, EntityType, Headers, Reading, Unreadable
from app.jasper import reading, wire
from app.jasper.reading import interpret, parse_time
from app.jasper.redact import BLANK
from tests.pure.strategies import (
    HOSTILE,
    Json,
    Number,
    compact,
    damaged,
    meaning,
    objects,
    parse,
    spell,
    states,
    texts,
    values,
)

PAYLOADS = Path(__file__).parents[2] / "docs" / "payloads.md"
PRODUCT = EntityType.PRODUCT

randoms = st.randoms(use_true_random=False)


def _rows(title: str) -> list[list[str]]:
    """The cells of the table under a title of the page, without the marks around code."""
    _, _, text = PAYLOADS.read_text().partition(f"## {title}\n")
    table = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def _headers(cell: str) -> Headers:
    pairs = [one.strip().strip("`").split(": ") for one in cell.split(",") if one.strip()]
    return tuple((name.lower(), value) for name, value in pairs)


@pytest.mark.parametrize("row", _rows("What is read"), ids=lambda row: row[0])
def test_documented_shapes_are_read_as_the_page_says(row: list[str]) -> None:
    callback, headers, action, entity_id, data, time, delivery = row
    body = callback.strip("`").encode()
    reading = interpret(PRODUCT, _headers(headers), body, {})
    assert isinstance(reading, Reading), reading
    assert (reading.action or "inferred") == action
    assert reading.entity_id == entity_id
    expected = None if not data else jsontext.resolve(jsontext.document(body), data.rstrip("/"))
    assert reading.data == expected
    assert reading.places.get("data") == (data.rstrip("/") if data else None)
    assert reading.occurred_at == (datetime.fromisoformat(time) if time else None)
    assert (reading.delivery_key or "") == delivery


@pytest.mark.parametrize("row", _rows("What is quarantined"), ids=lambda row: f"{row[0]} to {row[1]}")
def test_documented_doubts_are_quarantined_for_the_reason_the_page_gives(row: list[str]) -> None:
    callback, collection, headers, reason = row
    reading = interpret(ENTITY_TYPE_OF[collection], _headers(headers), callback.strip("`").encode(), {})
    assert isinstance(reading, Unreadable), reading
    assert reason in reading.reason


def test_the_page_has_both_tables() -> None:
    assert len(_rows("What is read")) > 20
    assert len(_rows("What is quarantined")) > 15


# Payloads of every shape

identifiers = st.integers(0, 99).map(lambda number: Number(str(number))) | st.sampled_from(["1", "a-1", "", "\0", "é"])
words = st.sampled_from(["update", "product.created", "ProductDeleted", "category.updated", "simple", "", BLANK])
times = st.sampled_from(
    ["2026-01-02T03:04:05Z", "Tue Feb 7 19:05:03 UTC 2017", "soon", Number("1767323045"), Number("1e9")]
)
entities = st.fixed_dictionaries(
    {},
    optional={
        "id": identifiers,
        "uuid": identifiers,
        "product_id": identifiers,
        "updated_at": times,
        "version": st.integers(0, 3).map(lambda number: Number(str(number))),
        "name": values | st.just(BLANK),
        "type": words,
        "data": st.none() | states,
    },
)
envelopes = st.recursive(
    entities | st.lists(entities, max_size=2) | values,
    lambda inside: st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("data", "product", "payload", "object", "item"), inside),
            **dict.fromkeys(("id", "product_id", "entity_id", "event_id", "delivery_id"), identifiers),
            **dict.fromkeys(("action", "event", "type", "topic"), words | st.none()),
            **dict.fromkeys(("timestamp", "created_at", "date"), times),
            "meta": entities,
            "entity_type": words,
        },
    ),
    max_leaves=3,
)
headers_of_calls = st.lists(
    st.tuples(
        st.sampled_from(["x-event", "x-delivery-id", "idempotency-key", "host"]),
        st.sampled_from(["product.updated", "deleted", "d-1", "", "\xff", BLANK]),
    ),
    max_size=2,
).map(tuple)
mappings = st.dictionaries(
    st.sampled_from(["action", "entity_id", "data", "occurred_at", "delivery_id"]),
    st.lists(st.sampled_from(["/data", "/data/0", "/meta/id", "/type", "/~1", "", "header:X-Event"]), max_size=2),
    max_size=2,
).filter(lambda mapping: "header:X-Event" not in mapping.get("data", ()))
"""As the settings allow them."""


@given(envelopes | damaged(), headers_of_calls, mappings, st.sampled_from(EntityType), randoms)
def test_reading_is_total_and_its_data_is_a_slice_of_the_body(
    payload: Json, headers: Headers, mapping: dict[str, list[str]], entity_type: EntityType, random: Random
) -> None:
    """Whatever comes: a reading that can be stored, or a reason in words; never an exception, never a byte changed."""
    body = payload if isinstance(payload, bytes) else spell(payload, random)
    reading = interpret(entity_type, headers, body, mapping)
    if isinstance(reading, Unreadable):
        assert reading.reason
        reading.reason.encode()
        assert "\0" not in reading.reason
        return
    assert reading.entity_id
    assert reading.entity_id != BLANK
    assert "\0" not in reading.entity_id
    assert reading.delivery_key != BLANK
    assert len(reading.entity_id.encode()) <= 512
    assert reading.data is None or (body.count(reading.data) and isinstance(parse(reading.data), dict))
    assert reading.occurred_at is None or reading.occurred_at.tzinfo is UTC


@given(envelopes, headers_of_calls, randoms)
def test_the_reading_is_the_same_for_every_spelling_of_a_payload(
    payload: Json, headers: Headers, random: Random
) -> None:
    """White space, order of members and escapes say nothing."""
    one = interpret(PRODUCT, headers, compact(payload), {})
    other = interpret(PRODUCT, headers, spell(payload, random), {})
    assert type(one) is type(other)
    if isinstance(one, Reading) and isinstance(other, Reading):
        assert _without_data(one) == _without_data(other)
        assert (one.data is None) == (other.data is None)
        if one.data is not None and other.data is not None:
            assert parse(one.data) == parse(other.data)


def _without_data(reading: Reading) -> list[Any]:
    return [getattr(reading, name) for name in Reading.__struct_fields__ if name != "data"]


@given(envelopes, headers_of_calls, mappings, randoms)
def test_every_part_of_a_reading_stands_at_the_place_that_is_told(
    payload: Json, headers: Headers, mapping: dict[str, list[str]], random: Random
) -> None:
    """The places are the evidence on the delivery: they must lead to what was read, and none may be missing."""
    body = spell(payload, random)
    reading = interpret(PRODUCT, headers, body, mapping)
    if isinstance(reading, Unreadable):
        return

    def standing_at(place: str) -> list[str]:
        if place.startswith("header:"):
            return [value for name, value in headers if name == place.removeprefix("header:")]
        text = jsontext.resolve(jsontext.document(body), place)
        assert text is not None
        return [jsontext.string(text) if jsontext.kind(text) == "string" else text.decode()]

    found = {
        "entity_id": reading.entity_id,
        "action": reading.action,
        "data": reading.data,
        "occurred_at": reading.occurred_at,
        "delivery_id": reading.delivery_key,
    }
    assert reading.places.keys() == {part for part, value in found.items() if value is not None}
    meant: dict[str, Callable[[str], Any]] = {
        "action": wire.action_of,
        "occurred_at": parse_time,
        "data": str.encode,
    }
    for part, place in reading.places.items():
        assert found[part] in [meant.get(part, str)(text) for text in standing_at(place)], part


@given(damaged())
@example(b'{"data":{"data":{"data":{"data":{"data":{"id":1}}}}}}')
@example(b'{"id":1,"updated_at":"0001-01-01T00:00:00+01:00"}')
@example(b'{"id":1,"updated_at":99999999999999999}')
def test_no_bytes_are_too_strange(body: bytes) -> None:
    for entity_type in EntityType:
        interpret(entity_type, (), body, {})


# Doubts: what two places say must be one thing


def _merged(*pieces: dict[str, Json]) -> dict[str, Json]:
    """One payload with all that the pieces say, side objects put together."""
    found: dict[str, Json] = {}
    for piece in pieces:
        for name, value in piece.items():
            if isinstance(value, dict) and isinstance(found.get(name), dict):
                found[name] = _merged(found[name], value)
            else:
                found[name] = value
    return found


def _is_read(payload: Json, *headers: tuple[str, str], random: Random) -> bool:
    """Whether it is read, as it stands and as the one element of an array; both must be alike."""
    alone = interpret(PRODUCT, headers, spell(payload, random), {})
    in_array = interpret(PRODUCT, headers, spell([payload], random), {})
    assert type(alone) is type(in_array)
    return isinstance(alone, Reading)


around = st.dictionaries(st.sampled_from(["name", "attempt", "source", "x"]), states, max_size=2)
two_words = st.lists(st.sampled_from(list(wire.ACTION_WORDS)), min_size=2, max_size=2)
word_places = st.sampled_from(
    [
        *((name,) for name in wire.ACTION_NAMES),
        *((side, name) for side in wire.SIDE_OBJECTS if side != "event" for name in ("action", "type", "name")),
        *((f"header:{name}",) for name in wire.ACTION_HEADERS),
    ]
)


@given(around, two_words, st.lists(word_places, min_size=2, max_size=2, unique=True), randoms)
def test_two_words_for_different_actions_are_never_read_as_one_of_them(
    around: dict[str, Json], verbs: list[str], places: list[tuple[str, ...]], random: Random
) -> None:
    pieces: list[dict[str, Json]] = [around, {"data": {"id": Number("1"), "name": "x"}}]
    headers = []
    for verb, place in zip(verbs, places, strict=True):
        word = random.choice([verb, f"product.{verb}", f"PRODUCT_{verb.upper()}"])
        if place[0].startswith("header:"):
            headers.append((place[0].removeprefix("header:"), word))
        else:
            pieces.append({place[0]: word} if len(place) == 1 else {place[0]: {place[1]: word}})
    agree = wire.ACTION_WORDS[verbs[0]] is wire.ACTION_WORDS[verbs[1]]
    assert _is_read(_merged(*pieces), *headers, random=random) is agree


@given(around, st.lists(st.sampled_from(wire.reference_names(PRODUCT)), min_size=2, max_size=2, unique=True), randoms)
@pytest.mark.parametrize("agree", [True, False])
def test_two_ids_of_an_envelope_are_never_read_as_one_of_them(
    agree: bool, around: dict[str, Json], names: list[str], random: Random
) -> None:
    """Where the entity has none of its own, which would decide."""
    ids = [Number("1001"), "1001" if agree else "1002"]
    payload = {**around, "event": "product.updated", **dict(zip(names, ids, strict=True))}
    assert _is_read(payload, random=random) is agree
    assert _is_read({**payload, "data": {"price": Number("1")}}, random=random) is agree
    assert _is_read({**payload, "data": {"id": Number("7"), "price": Number("1")}}, random=random)


@given(around, st.lists(st.sampled_from(wire.wrappers(PRODUCT)), min_size=2, max_size=2, unique=True), randoms)
@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ({"id": Number("1"), "name": "x"}, {"id": Number("1"), "name": "x"}, True),
        ({"id": Number("1"), "price": Number("1.0")}, {"id": "1", "price": Number("1.00")}, True),
        ({"id": Number("1"), "name": "x"}, {"id": Number("1"), "price": Number("1")}, True),
        ({"id": Number("1"), "name": "x"}, {"id": Number("2"), "name": "x"}, False),
        ({"id": Number("1"), "name": "x"}, {"id": Number("2")}, False),
        ({"id": Number("1"), "name": "x"}, {"id": Number("1"), "name": "y"}, False),
        ({"id": Number("1"), "name": "x"}, {"id": Number("1"), "name": None}, False),
    ],
)
def test_two_objects_that_may_be_the_entity_must_not_contradict_each_other(
    one: Json, other: Json, agree: bool, around: dict[str, Json], names: list[str], random: Random
) -> None:
    payload = {**around, "event": "product.updated", names[0]: one, names[1]: other}
    assert _is_read(payload, random=random) is agree
    assert _is_read({"event": "product.updated", "payload": payload | {"event": None}}, random=random) is agree


@given(around, st.sampled_from(wire.wrappers(PRODUCT)), st.sampled_from(wire.wrappers(PRODUCT)), randoms)
def test_an_entity_within_an_envelope_is_never_taken_for_the_wrapper_of_its_attributes(
    around: dict[str, Json], outer: str, inner: str, random: Random
) -> None:
    """Its own name decides; else two ids are a doubt."""
    entity = {**around, "id": Number("1"), "title": "x", inner: {"id": Number("2"), "title": "y"}}
    reading = interpret(PRODUCT, (), spell({"event": "product.updated", outer: entity}, random), {})
    if outer == "product":
        assert isinstance(reading, Reading)
        assert (reading.entity_id, reading.places["data"]) == ("1", "/product")
    elif inner == "product":
        assert isinstance(reading, Reading)
        assert (reading.entity_id, reading.places["data"]) == ("2", f"/{outer}/product")
    else:
        assert isinstance(reading, Unreadable)


@given(around, st.sampled_from(wire.ENTITY_TYPE_NAMES + wire.ACTION_NAMES), st.sampled_from(EntityType), randoms)
def test_a_callback_at_the_address_of_another_entity_type_is_never_read(
    around: dict[str, Json], name: str, entity_type: EntityType, random: Random
) -> None:
    said = entity_type.value if name in wire.ENTITY_TYPE_NAMES else f"{entity_type.value}.updated"
    payload = {**around, name: said, "data": {"id": Number("1"), "name": "x"}}
    assert _is_read(payload, random=random) is (entity_type is PRODUCT)


# Mapping


@given(envelopes, states, st.sampled_from(Action))
def test_the_mapping_comes_before_every_built_in_place(payload: Json, data: dict[str, Json], action: Action) -> None:
    """Where it names a place and something stands there, that is taken, whatever else the payload says."""
    assume("entity_type" not in (payload if isinstance(payload, dict) else {}))
    mine = {"what": action.value, "which": ["x-1"], "new": data, "when": "2020-02-02T02:02:02Z", "no": Number("5")}
    body = compact({**(payload if isinstance(payload, dict) else {}), "mine": mine})
    mapping = {
        "action": ["/nowhere", "/mine/what", "/event"],
        "entity_id": ["/mine/which/0"],
        "data": ["/mine/new"],
        "occurred_at": ["/mine/when"],
        "delivery_id": ["/mine/no"],
    }
    reading = interpret(PRODUCT, (("x-event", "deleted"),), body, mapping)
    assert isinstance(reading, Reading), reading
    assert (reading.action, reading.entity_id, reading.delivery_key) == (action, "x-1", "5")
    assert reading.occurred_at == datetime(2020, 2, 2, 2, 2, 2, tzinfo=UTC)
    if data:
        assert reading.data == compact(data)
    assert reading.places | {"data": ""} == {
        "action": "/mine/what",
        "entity_id": "/mine/which/0",
        "data": "",
        "occurred_at": "/mine/when",
        "delivery_id": "/mine/no",
    }


def test_the_mapping_may_name_headers() -> None:
    mapping = {"action": ["header:X-What"], "entity_id": ["header:X-Which"], "delivery_id": ["header:X-No"]}
    headers = (("x-what", "deleted"), ("x-which", "1001"), ("x-no", "d-1"))
    reading = interpret(PRODUCT, headers, b'{"id":5,"event":"product.updated"}', mapping)
    assert isinstance(reading, Reading)
    assert (reading.action, reading.entity_id, reading.delivery_key) == (Action.DELETE, "1001", "d-1")


def test_a_mapped_place_where_nothing_stands_leaves_it_to_the_built_in_ones() -> None:
    mapping = {part: ["/nowhere", "header:X-Nowhere"] for part in ("action", "entity_id", "occurred_at", "delivery_id")}
    body = b'{"event":"product.updated","data":{"id":1,"updated_at":"2026-01-01T00:00:00Z"},"delivery_id":"d"}'
    assert interpret(PRODUCT, (), body, {**mapping, "data": ["/nowhere"]}) == interpret(PRODUCT, (), body, {})


# Words


def _spelled_words(verb: str) -> list[str]:
    return [
        verb,
        verb.upper(),
        verb.title(),
        f"product.{verb}",
        f"product:{verb}",
        f"products/{verb}",
        f"product_{verb}",
        f"PRODUCT_{verb.upper()}",
        f"product-{verb}",
        f"Product{verb.title()}",
        f"on product {verb}",
        f"webhook.product.{verb}",
        f"{verb}_product",
        f"{verb}.product",
        f"jasper.pim.product.{verb}",
        f"product.was.{verb}",
        f" {verb} ",
    ]


@pytest.mark.parametrize("verb", wire.ACTION_WORDS)
def test_a_word_is_understood_in_every_spelling(verb: str) -> None:
    expected = wire.ACTION_WORDS[verb]
    understood = {word: wire.action_of(word) for word in _spelled_words(verb)}
    del understood[f"on product {verb}"]
    assert understood == dict.fromkeys(understood, expected)


@pytest.mark.parametrize(
    "word",
    [
        "",
        "simple",
        "product",
        "product.archived",
        "created.or.updated",
        "undeleted",
        "not_deleted",
        "delete_requested",
        "product.image.deleted",
        "product.variant.created",
        "product.category.removed",
        "category.product.added",
        "brandProductDeleted",
        "updated" * 100,
    ],
)
def test_a_word_that_says_something_else_is_not_understood(word: str) -> None:
    assert wire.action_of(word) is None


@pytest.mark.parametrize("word", ["product.image.updated", "product.category.changed", "price.modified"])
def test_a_change_to_a_part_is_an_update_of_the_whole(word: str) -> None:
    assert wire.action_of(word) is Action.UPDATE


@given(texts)
def test_any_text_is_a_word_or_none(word: str) -> None:
    assert wire.action_of(word) in {None, *Action}
    assert wire.entity_types_of(word) <= set(EntityType)


# Times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.678901Z", datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
        ("2026-01-02T05:04:05+02:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02 03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02 03:04:05 UTC", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("20260102T030405Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("1767323045", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("1767323045.5", datetime(2026, 1, 2, 3, 4, 5, 500000, tzinfo=UTC)),
        ("1767323045678", datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)),
        ("1767323045678901", datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
        ("Fri, 02 Jan 2026 03:04:05 GMT", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("Tue Feb 7 19:05:03 UTC 2017", datetime(2017, 2, 7, 19, 5, 3, tzinfo=UTC)),
    ],
)
def test_a_time_is_understood_in_every_usual_spelling(text: str, expected: datetime) -> None:
    assert parse_time(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "5", "2026-01-02", "2026-13-02T00:00:00Z", "1e9"),
        *("0001-01-01T00:00:00+01:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_what_is_no_time_is_none(text: str) -> None:
    assert parse_time(text) is None


@given(texts | st.from_regex(r"[0-9T :+.,WZ-]{0,40}( GMT| UTC)?", fullmatch=True))
def test_any_text_is_a_time_in_utc_or_none(text: str) -> None:
    moment = parse_time(text)
    assert moment is None or moment.tzinfo is UTC


@pytest.mark.parametrize("place", ["x-jasper-event", "x-event", "idempotency-key", "x-delivery-id"])
def test_a_blanked_header_says_nothing(place: str) -> None:
    assert interpret(PRODUCT, ((place, BLANK),), b'{"id":1,"a":2}', {}) == interpret(PRODUCT, (), b'{"id":1,"a":2}', {})


def test_a_blanked_id_is_not_the_id_of_everything() -> None:
    assert isinstance(interpret(PRODUCT, (), b'{"id":"[redacted]","name":"x"}', {}), Unreadable)


@given(objects)
def test_data_comes_back_to_the_last_digit_and_escape(inside: dict[str, Json]) -> None:
    entity = spell({**inside, "id": "1", "name": "x"}, Random(1))
    reading = interpret(PRODUCT, (), b'{"event":"updated","product":%b}' % entity, {})
    assume(isinstance(reading, Reading))
    assert isinstance(reading, Reading)
    assert reading.data is not None
    assert meaning(parse(reading.data))["name"] == "x"
    if "data" not in inside:
        assert reading.data == entity


@pytest.mark.timeout(20)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_are_read_or_refused_in_a_moment(body: bytes) -> None:
    reading = interpret(PRODUCT, (), body, {})
    assert isinstance(reading, Reading) or 0 < len(reading.reason) < 500


def test_a_usual_name_that_is_not_listed_is_not_passed_over_in_silence() -> None:
    """Only listed names are looked for in an object, so a tuple with another one would never be found."""
    with pytest.raises(KeyError):
        reading._Known(frozenset())[("a_name_that_nobody_listed",)]
