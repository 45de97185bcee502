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


changes_in_time = st.lists(
    st.sampled_from([Action.CREATE, Action.UPDATE, Action.UPDATE, None]).flatmap(
        lambda action: st.tuples(st.just(action), st.none() | states.map(compact))
    )
    | st.just((Action.DELETE, None)),
    min_size=1,
    max_size=7,
)
"""What happened to an entity, one thing a second: some with its data, some only saying that it changed."""


@given(changes_in_time, st.randoms(use_true_random=False))
def test_any_order_and_repetition_of_events_with_timestamps_ends_in_the_same_state(
    events: list[tuple[Action | None, bytes | None]], random: Random
) -> None:
    """The newest one decides whether the entity is there, and the newest one that had its data what is known of it."""
    in_order = [_reading(action, at, data) for at, (action, data) in enumerate(events)]
    shuffled = [*in_order, *random.choices(in_order, k=3)]
    random.shuffle(shuffled)
    for arrived in (in_order, shuffled):
        entity, _ = _fold_all(arrived)
        assert entity is not None
        assert (entity.deleted_at is not None) == (events[-1][0] is Action.DELETE)
        assert entity.newest_at == in_order[-1].occurred_at
        assert entity.data == next((data for _, data in reversed(events) if data is not None), None)


@given(
    st.lists(st.tuples(st.sampled_from(Action), states.map(compact)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_so_it_is_where_deletes_carry_data(events: list[tuple[Action, bytes]], random: Random) -> None:
    """A delete that comes after another delete makes no event, so its data is not kept; else the newest one decides."""
    in_order = [_reading(action, at, data) for at, (action, data) in enumerate(events)]
    shuffled = random.sample(in_order, k=len(in_order))
    entity, _ = _fold_all(shuffled)
    assert entity is not None
    assert (entity.deleted_at is None) == (events[-1][0] is not Action.DELETE)
    if events[-1][0] is not Action.DELETE or [action for action, _ in events].count(Action.DELETE) == 1:
        assert entity.data == events[-1][1]


@given(st.lists(st.tuples(states.map(compact), st.booleans()), min_size=1, max_size=6))
def test_what_is_read_late_never_comes_before_what_was_told_after_it(told: list[tuple[bytes, bool]]) -> None:
    """Readings without any time, some of which could not be read when they came, and are read afterwards, in order."""
    calls = [(number, _reading(Action.UPDATE, data=data), late) for number, (data, late) in enumerate(told)]
    entity: Entity | None = None
    for sequence, (number, reading, late) in enumerate(sorted(calls, key=lambda call: (call[2], call[0]))):
        heard_at = START + timedelta(days=1, seconds=number)
        received_at = START + timedelta(days=2, seconds=sequence) if late else heard_at
        before = entity
        folded = fold(
            entity,
            reading,
            entity_type=EntityType.PRODUCT,
            sequence=sequence,
            received_at=received_at,
            heard_at=heard_at,
        )
        entity = folded.entity
        assert folded.event is not None
        assert folded.event.received_at == received_at
        assert folded.event.stale == (before is not None and heard_at < before.heard_at)
    assert entity is not None
    assert (entity.data, entity.heard_at) == (told[-1][0], START + timedelta(days=1, seconds=len(told) - 1))


def test_callbacks_that_are_read_as_they_come_are_not_late_whatever_their_order_of_arrival() -> None:
    """Two replicas received them within a moment, and the one that came second committed first."""
    entity, steps = None, []
    for sequence, moment in enumerate([2, 1]):
        folded = fold(
            entity,
            _reading(Action.UPDATE, data=b"{}"),
            entity_type=EntityType.PRODUCT,
            sequence=sequence,
            received_at=START + timedelta(milliseconds=moment),
        )
        entity = folded.entity
        steps.append(folded)
    assert [step.event.stale for step in steps if step.event] == [False, False]


@pytest.mark.parametrize("action", [Action.UPDATE, Action.DELETE])
def test_a_late_event_completes_the_state_where_only_older_data_is_known(action: Action) -> None:
    """The newest event said nothing of the entity. Else what is known would depend on which of them came first."""
    arrived = [
        _reading(Action.CREATE, 1, b'{"a":1}'),
        _reading(action, 5),
        _reading(Action.UPDATE, 3, b'{"a":3}'),
        _reading(Action.UPDATE, 2, b'{"a":2}'),
    ]
    entity, steps = _fold_all(arrived)
    assert entity is not None
    assert (entity.data, entity.data_sequence, entity.version, entity.sequence) == (b'{"a":3}', 3, 2, 2)
    assert (entity.deleted_at is not None) == (action is Action.DELETE)
    assert entity.updated_at == START + timedelta(days=1, seconds=3)
    events = [step.event for step in steps if step.event]
    assert [event.stale for event in events] == [False, False, True, True]
    assert [event.changed for event in events] == [(), (), ("a",), ()]


@given(histories)
def test_version_counts_the_events_that_are_not_stale(readings: list[Reading]) -> None:
    entity, steps = _fold_all(readings)
    assert entity is not None
    fresh = [step.event for step in steps if step.event and not step.event.stale]
    assert entity.version == len(fresh)
    assert entity.sequence == fresh[-1].sequence
    holders = [step.event for step in steps if step.event and step.event.sequence == entity.data_sequence]
    assert [event.data for event in holders] == ([] if entity.data is None else [entity.data])
    assert entity.updated_at == max(event.received_at for event in (fresh[-1], *holders))


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
def test_a_stale_event_never_moves_the_state_back(readings: list[Reading]) -> None:
    """It moves nothing but the data, and that only where what is known is older or nothing."""
    before: Entity | None = None
    for reading, step in zip(readings, _fold_all(readings)[1], strict=True):
        if step.event is not None and step.event.stale:
            assert before is not None
            after = step.entity
            if after != before:
                assert before.data is None or (before.data_at is not None and before.data_at <= _time_of(reading))
                assert (after.data, after.data_sequence) == (reading.data, step.event.sequence)
            for name in ("version", "sequence", "deleted_at", "newest_at", "source_updated_at", "created_at"):
                assert getattr(after, name) == getattr(before, name)
        before = step.entity


def _time_of(reading: Reading) -> datetime:
    assert reading.occurred_at is not None
    return reading.occurred_at


@given(histories)
def test_changes_lead_from_the_state_before_to_the_state_after(readings: list[Reading]) -> None:
    before: Entity | None = None
    for step in _fold_all(readings)[1]:
        event = step.event
        if event is not None:
            took_data = step.entity.data_sequence == event.sequence
            if event.action is Action.UPDATE and took_data and before and before.data and step.entity.data:
                assert meaning(_apply(parse(event.changes), parse(before.data))) == meaning(parse(step.entity.data))
            else:
                assert (event.changes, event.changed) == (b"[]", ())
            if not event.stale and event.data is not None:
                assert (step.entity.data, step.entity.data_sequence) == (event.data, event.sequence)
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
