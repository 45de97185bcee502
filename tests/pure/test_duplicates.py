"""What makes two deliveries the same: certainty only, because a false duplicate is a lost callback."""

from random import Random
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.domain.duplicates import idempotency_keys
from app.domain.values import Action, EntityType, Reading
from app.jasper.reading import interpret
from tests.pure.strategies import Json, Number, compact, meaning, scalars, spell

STAMP = "2026-01-01T00:00:00Z"


def _keys(body: Json, *, headers: tuple[tuple[str, str], ...] = (), random: Random | None = None) -> set[bytes]:
    """The keys of a callback about a product."""
    text = spell(body, random)
    reading = interpret(EntityType.PRODUCT, headers, text, {})
    assert isinstance(reading, Reading)
    return set(idempotency_keys(EntityType.PRODUCT, reading, text))


def _callback(action: str | None = "updated", entity_id: str = "1", **inside: Any) -> Json:
    """An envelope around an entity."""
    envelope = {"event": f"product.{action}"} if action else {}
    return {**envelope, "data": {"id": entity_id, **inside}}


data = st.dictionaries(st.sampled_from(["name", "price", "x"]), scalars, min_size=1, max_size=2)


@given(data, st.randoms(use_true_random=False))
def test_a_retry_is_known_again_however_it_is_spelled(inside: dict[str, Json], random: Random) -> None:
    body = _callback(**inside, updated_at=STAMP)
    assume(not compact(body).count(b"\\ud"))  # lone surrogates count letter by letter
    assert _keys(body) == _keys(body, random=random) != set()


@given(data)
def test_a_retry_in_a_new_envelope_is_known_by_its_data(inside: dict[str, Json]) -> None:
    body = _callback(**inside, version=Number("7"))
    assert _keys(body) & _keys({**body, "attempt": Number("2"), "sent_at": "later"})


@given(data, data)
def test_two_changes_never_share_a_key(one: dict[str, Json], other: dict[str, Json]) -> None:
    assume(meaning(one) != meaning(other))
    assert not _keys(_callback(**one, updated_at=STAMP)) & _keys(_callback(**other, updated_at=STAMP))


@pytest.mark.parametrize(
    "body",
    [
        {"event": "product.updated", "id": "1"},
        {"id": "1"},
        {"id": "1", "name": "Shoe"},
        _callback(name="Shoe"),
        _callback("deleted"),
        {"event": "product.updated", "id": "1", "name": "Shoe", "date": STAMP},
    ],
)
def test_what_may_be_a_second_change_has_no_key(body: Json) -> None:
    """Nothing in it changes with every change, so it is kept every time it comes."""
    assert _keys(body) == set()


@pytest.mark.parametrize(
    "body",
    [
        {"event": "product.updated", "id": "1", "timestamp": STAMP},
        {"event": "product.updated", "id": "1", "name": "Shoe", "timestamp": STAMP},
        {"event": "product.updated", "created_at": STAMP, "data": {"id": "1", "name": "Shoe"}},
    ],
)
def test_an_event_timestamp_makes_the_same_body_a_duplicate_and_another_one_not(body: Json) -> None:
    time = next(name for name in body if name in {"timestamp", "created_at"})
    assert _keys(body)
    assert not _keys(body) & _keys({**body, time: "2026-01-01T00:00:01Z"})


def test_the_same_data_under_another_action_or_for_another_entity_is_no_duplicate() -> None:
    bodies = [
        _callback(action, entity_id, updated_at=STAMP, name="x")
        for action in ("created", "updated", None)
        for entity_id in "12"
    ]
    keys = [key for body in bodies for key in _keys(body)]
    assert len(set(keys)) == len(keys) == len(bodies)


def test_an_inferred_action_is_the_same_before_and_after_the_entity_was_known() -> None:
    """The first one becomes a create; its retry must not count as an update."""
    reading = Reading("1", None, compact({"updated_at": STAMP}), stamped=True, data_stamped=True)
    assert (
        idempotency_keys(EntityType.PRODUCT, reading, b"") == idempotency_keys(EntityType.PRODUCT, reading, None) != ()
    )
    assert not {*idempotency_keys(EntityType.PRODUCT, reading, None)} & {
        *idempotency_keys(EntityType.PRODUCT, replace(reading, action=Action.CREATE), None)
    }


def test_a_delivery_id_counts_whatever_the_body_says_and_for_its_entity_only() -> None:
    headers = (("x-delivery-id", "d1"),)
    one = _keys(_callback(name="a"), headers=headers)
    assert one & _keys(_callback("deleted"), headers=headers)
    assert not one & _keys(_callback(entity_id="2", name="a"), headers=headers)
    assert not one & _keys(_callback(name="a"), headers=(("x-delivery-id", "d2"),))


@pytest.mark.parametrize("value", ["[redacted]", "Bearer [redacted]", "sha256=[redacted]"])
def test_a_blanked_secret_is_no_delivery_id(value: str) -> None:
    """It is the same on every callback: every change after the first would be lost."""
    assert _keys(_callback(name="a"), headers=(("x-event-id", value),)) == set()
    assert _keys({**_callback(name="a"), "event_id": value}) == set()


def test_entity_types_have_keys_of_their_own() -> None:
    reading = Reading("1", Action.UPDATE, delivery_key="d1")
    assert len({idempotency_keys(entity_type, reading, b"{}") for entity_type in EntityType}) == len(EntityType)


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
@example("ab", "c", "a", "bc")
def test_no_two_pairs_of_ids_run_together(entity: str, delivery: str, other_entity: str, other_delivery: str) -> None:
    one, other = ((entity, delivery), (other_entity, other_delivery))
    keys = {
        pair: idempotency_keys(EntityType.PRODUCT, Reading(pair[0], delivery_key=pair[1]), None)
        for pair in (one, other)
    }
    assert len(set(keys.values())) == len({one, other})


def test_a_delivery_id_with_a_lone_surrogate_is_a_key_like_any_other() -> None:
    assert len(idempotency_keys(EntityType.PRODUCT, Reading("1", delivery_key="\ud800\0"), None)) == 1
