"""The fold as a law: whatever the order and repetition of events, the state ends the same, and late ones never win."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.fold import Folded, fold
from app.domain.values import Action, Entity, EntityType, JsonText, Reading
from tests.pure.strategies import compact, meaning, parse, states
from tests.pure.test_diff import _apply

START = datetime(2026, 1, 1, tzinfo=UTC)


def _reading(action: Action | None, at: int | None = None, data: bytes | None = None) -> Reading:
    """A reading `at` so many seconds."""
    return Reading(
        "1001",
        action,
        None if data is None else JsonText(data),
        None if at is None else START + timedelta(seconds=at),
    )


def _fold_all(readings: list[Reading]) -> tuple[Entity | None, list[Folded]]:
    """All readings, in the order they arrive, one a second."""
    entity, steps = None, []
    for number, reading in enumerate(readings, start=1):
        folded = fold(
            entity,
            reading,
            entity_type=EntityType.PRODUCT,
            sequence=number,
            received_at=START + timedelta(days=1, seconds=number),
        )
        steps.append(folded)
        entity = folded.entity
    return entity, steps


actions = st.none() | st.sampled_from(Action)
histories = st.lists(
    st.builds(_reading, actions, st.none() | st.integers(0, 5), st.none() | states.map(compact)), min_size=1, max_size=8
)


@given(
    st.lists(st.tuples(st.sampled_from(Action), states.map(compact)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_any_order_and_repetition_of_events_with_timestamps_ends_in_the_same_state(
    events: list[tuple[Action, bytes]], random: Random
) -> None:
    """The newest one decides: its data, and whether the entity is there. Where it is a delete that came after another
    delete, there is no event of it, and its data is not kept.
    """  # noqa: D205 - one thought
    in_order = [_reading(action, at, data) for at, (action, data) in enumerate(events)]
    shuffled = [*in_order, *random.choices(in_order, k=3)]
    random.shuffle(shuffled)
    expected, _ = _fold_all(in_order)
    found, _ = _fold_all(shuffled)
    assert expected is not None
    assert found is not None
    assert (found.deleted_at is None) == (expected.deleted_at is None) == (events[-1][0] is not Action.DELETE)
    assert found.newest_at == expected.newest_at == in_order[-1].occurred_at
    if events[-1][0] is not Action.DELETE or [action for action, _ in events].count(Action.DELETE) == 1:
        assert found.data == expected.data == events[-1][1]


@given(histories)
def test_version_counts_the_events_that_are_not_stale(readings: list[Reading]) -> None:
    entity, steps = _fold_all(readings)
    assert entity is not None
    fresh = [step.event for step in steps if step.event and not step.event.stale]
    assert entity.version == len(fresh)
    assert entity.sequence == fresh[-1].sequence
    assert entity.updated_at == fresh[-1].received_at
    with_data = [event for event in fresh if event.data is not None]
    assert entity.data == (with_data[-1].data if with_data else None)
    assert entity.data_sequence == (with_data[-1].sequence if with_data else None)


@given(histories)
def test_an_event_is_stale_exactly_when_it_is_older_than_the_newest_one(readings: list[Reading]) -> None:
    newest: datetime | None = None
    for reading, step in zip(readings, _fold_all(readings)[1], strict=True):
        if step.event is not None:
            late = reading.occurred_at is not None and newest is not None and reading.occurred_at < newest
            assert step.event.stale == late
        newest = max(filter(None, (newest, reading.occurred_at)), default=None)
        assert step.entity.newest_at == newest


@given(histories)
def test_a_stale_event_never_moves_the_state(readings: list[Reading]) -> None:
    before: Entity | None = None
    for step in _fold_all(readings)[1]:
        if step.event is not None and step.event.stale:
            assert step.entity == before
            assert step.event.changes == b"[]"
        before = step.entity


@given(histories)
def test_changes_lead_from_the_state_before_to_the_state_after(readings: list[Reading]) -> None:
    before: Entity | None = None
    for reading, step in zip(readings, _fold_all(readings)[1], strict=True):
        event = step.event
        if event is not None:
            if event.action is Action.UPDATE and not event.stale and before and before.data and reading.data:
                assert meaning(_apply(parse(event.changes), parse(before.data))) == meaning(parse(reading.data))
                assert step.entity.data == reading.data
            else:
                assert (event.changes, event.changed) == (b"[]", ())
        before = step.entity


@given(histories)
def test_only_a_repeated_delete_makes_no_event(readings: list[Reading]) -> None:
    """And it moves nothing but the time of the newest thing heard."""
    before: Entity | None = None
    for reading, step in zip(readings, _fold_all(readings)[1], strict=True):
        repeated = reading.action is Action.DELETE and before is not None and before.deleted_at is not None
        assert (step.event is None) == repeated
        if repeated:
            assert before is not None
            assert (step.entity.version, step.entity.data, step.entity.deleted_at) == (
                before.version,
                before.data,
                before.deleted_at,
            )
        before = step.entity


def test_action_is_inferred_from_whether_the_entity_is_known() -> None:
    _, steps = _fold_all([_reading(None), _reading(None), _reading(Action.DELETE), _reading(None)])
    events = [step.event for step in steps]
    assert [(event.action, event.action_inferred) for event in events if event] == [
        (Action.CREATE, True),
        (Action.UPDATE, True),
        (Action.DELETE, False),
        (Action.UPDATE, True),
    ]
    assert steps[-1].entity.deleted_at is None


@pytest.mark.parametrize("action", [Action.CREATE, Action.UPDATE])
def test_a_newer_create_or_update_brings_a_deleted_entity_back(action: Action) -> None:
    entity, _ = _fold_all([_reading(Action.CREATE, 1, b"{}"), _reading(Action.DELETE, 2), _reading(action, 3)])
    assert entity is not None
    assert (entity.deleted_at, entity.data, entity.version) == (None, b"{}", 3)


@pytest.mark.parametrize("action", [Action.CREATE, Action.UPDATE])
def test_a_late_create_or_update_does_not(action: Action) -> None:
    entity, steps = _fold_all([_reading(Action.DELETE, 2), _reading(action, 1, b"{}")])
    assert entity is not None
    assert entity.deleted_at is not None
    assert steps[1].event is not None
    assert steps[1].event.stale


def test_a_repeated_delete_still_tells_what_is_late() -> None:
    """An update older than the second delete was overtaken by it, although that delete made no event."""
    entity, steps = _fold_all([_reading(Action.DELETE, 1), _reading(Action.DELETE, 5), _reading(Action.UPDATE, 3)])
    assert entity is not None
    assert entity.deleted_at is not None
    assert steps[2].event is not None
    assert steps[2].event.stale


def test_an_equal_timestamp_is_not_older() -> None:
    entity, _ = _fold_all([_reading(Action.UPDATE, 1, b'{"a":1}'), _reading(Action.UPDATE, 1, b'{"a":2}')])
    assert entity is not None
    assert entity.data == b'{"a":2}'


def test_a_delete_of_an_entity_never_seen_leaves_a_tombstone() -> None:
    entity, steps = _fold_all([_reading(Action.DELETE, 1)])
    assert steps[0].event is not None
    assert entity is not None
    assert (entity.version, entity.data) == (1, None)
    assert entity.deleted_at == steps[0].event.received_at


def test_an_event_without_data_leaves_the_data_as_it_was() -> None:
    entity, _ = _fold_all([_reading(Action.CREATE, 1, b'{"a":1}'), _reading(Action.UPDATE, 2)])
    assert entity is not None
    assert (entity.data, entity.data_sequence, entity.sequence) == (b'{"a":1}', 1, 2)
