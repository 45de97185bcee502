"""The difference of two JSON values: complete, exact, and nothing that is none."""

import json
from copy import deepcopy
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import diff, jsontext
from app.domain.jsontext import NotJsonError
from app.domain.values import JsonText
from tests.pure.strategies import HOSTILE, Json, compact, meaning, objects, parse, spell, values

randoms = st.randoms(use_true_random=False)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Json, Json]:
    """Two values that have much in common: the second is the first with some of its inside changed."""
    before = draw(values)
    after = deepcopy(before)
    holder = [after]
    for _ in range(draw(st.integers(0, 3))):
        level: Json = holder
        while isinstance(level, list | dict) and level:
            keys = sorted(level) if isinstance(level, dict) else range(len(level))
            key = draw(st.sampled_from(keys))
            if not isinstance(level[key], list | dict) or draw(st.booleans()):
                level[key] = draw(values)
                break
            level = level[key]
        else:
            if isinstance(level, dict):
                level["added"] = draw(values)
    return before, holder[0]


def _apply(changes: Json, before: Json) -> Json:
    """The value after the changes, which are asserted to fit the value before: a reader's view, written apart."""
    holder = {"": deepcopy(before)}
    for change in changes:
        level: Json = holder
        steps: list[str] = change["path"].split("/")  # the first one is empty, and leads into the holder
        *way, last = steps
        for step in way:
            level = level[_key(level, step)]
        key = _key(level, last)
        if change["op"] == "add":
            assert key not in level
            level[key] = change["to"]
            continue
        assert level[key] == change["from"]
        if change["op"] == "replace":
            level[key] = change["to"]
        else:
            assert change["op"] == "remove"
            del level[key]
    return holder[""]


def _key(level: Json, step: str) -> Json:
    return int(step) if isinstance(level, list) else step.replace("~1", "/").replace("~0", "~")


@given(pairs(), randoms)
def test_changes_applied_to_the_state_before_give_the_state_after(pair: tuple[Json, Json], random: Random) -> None:
    before, after = pair
    changes = diff.diff(spell(before, random), spell(after, random))
    assert meaning(_apply(parse(diff.as_json(changes)), before)) == meaning(after)


@given(pairs(), randoms)
def test_there_are_no_changes_exactly_between_equal_values(pair: tuple[Json, Json], random: Random) -> None:
    before, after = pair
    assert diff.diff(spell(before, random), spell(before, random)) == []
    assert (diff.diff(spell(before, random), spell(after, random)) == []) == (meaning(before) == meaning(after))


@given(objects, objects, randoms)
def test_changed_names_the_members_that_differ(before: dict[str, Json], after: dict[str, Json], random: Random) -> None:
    changes = diff.diff(spell(before, random), spell(after, random))
    different = {
        name for name in before.keys() | after.keys() if meaning(before.get(name, ...)) != meaning(after.get(name, ...))
    }
    assert {change.path[0] for change in changes} == different
    changed = diff.top_level_names(changes)
    assert set(changed) == {jsontext.storable(name) for name in different}
    assert len(set(changed)) == len(changed)


@given(pairs())
def test_each_change_is_as_small_as_objects_allow(pair: tuple[Json, Json]) -> None:
    """Two objects are never replaced as a whole, nor two arrays of one length."""
    for change in parse(diff.as_json(diff.diff(compact(pair[0]), compact(pair[1])))):
        if change["op"] == "replace":
            before, after = change["from"], change["to"]
            assert not (isinstance(before, dict) and isinstance(after, dict))
            assert not (isinstance(before, list) and isinstance(after, list) and len(before) == len(after))


def test_changes_read_as_the_contract_shows_them() -> None:
    before = JsonText(b'{"price": 52.0, "tags": ["a", "b"], "old": 1, "a/b": {"~": 1}}')
    after = JsonText(b'{"price": 49.00, "tags": ["a", "c"], "new": null, "a/b": {"~": 2}}')
    changes = diff.diff(before, after)
    assert diff.as_json(changes) == (
        b'[{"op":"replace","path":"/a~1b/~0","from":1,"to":2},{"op":"add","path":"/new","to":null},'
        b'{"op":"remove","path":"/old","from":1},{"op":"replace","path":"/price","from":52.0,"to":49.00},'
        b'{"op":"replace","path":"/tags/1","from":"b","to":"c"}]'
    )
    assert diff.top_level_names(changes) == ("a/b", "new", "old", "price", "tags")


def test_an_array_that_grew_is_replaced_as_a_whole() -> None:
    assert [change.path for change in diff.diff(JsonText(b'{"x":[1]}'), JsonText(b'{"x":[1,2]}'))] == [("x",)]


def test_what_repeats_a_name_is_replaced_as_a_whole() -> None:
    """Nothing under it can be told apart, so not even a reordering is taken for no change."""
    before, after = JsonText(b'{"x":{"a":1,"a":2},"y":1}'), JsonText(b'{"x":{"a":1, "a":2},"y":1}')
    assert [change.path for change in diff.diff(before, after)] == [("x",)]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_states_are_compared_in_a_moment(body: bytes) -> None:
    try:
        before = jsontext.document(body)
        jsontext.members(before)
    except NotJsonError:
        return
    after = JsonText(before[:-1] + b' ,"one more":1}')
    assert "one more" in diff.top_level_names(diff.diff(before, after))
    assert diff.diff(before, JsonText(before[:-1] + b" }")) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([1] * 200_000, [2] * 200_000, id="an array"),
        pytest.param({"same": 1, "x": [1] * 200_000}, {"same": 1, "x": [2] * 200_000, "new": 1}, id="in a member"),
        pytest.param(
            {"n" * 9_000: {str(n): 1 for n in range(999)}}, {"n" * 9_000: {str(n): 2 for n in range(999)}}, id="names"
        ),
        pytest.param({str(n): 1 for n in range(50_000)}, {str(n): n for n in range(50_000)}, id="members"),
        pytest.param({"x": [1.0] * 20_000, "y": 1}, {"x": [2.0] * 20_000, "y": [1, [2]]}, id="kinds"),
    ],
)
def test_very_many_changes_are_told_in_few_words_and_still_lead_to_the_value_after(before: Json, after: Json) -> None:
    """Each change names its whole path, so a few megabytes could else become gigabytes."""
    one, two = (json.dumps(value).encode() for value in (before, after))
    changes = diff.diff(JsonText(one), JsonText(two))
    text = diff.as_json(changes)
    assert len(text) < 12 * (len(one) + len(two))
    assert _apply(json.loads(text), json.loads(one)) == json.loads(two)
    names = (
        {name for name in (*before, *after) if before.get(name) != after.get(name)} if isinstance(before, dict) else ()
    )
    assert set(diff.top_level_names(changes)) == set(names)


def test_a_large_value_in_which_little_differs_is_told_to_the_last_level() -> None:
    before = {"x": [{"a": number} for number in range(50_000)]}
    after = deepcopy(before)
    after["x"][7]["a"] = -1
    [change] = diff.diff(*(JsonText(json.dumps(value).encode()) for value in (before, after)))
    assert change.path == ("x", "7", "a")
