"""The torture run's checker finds nothing where all is well, and complains where a single thing is not.

What it is shown here was made by the service's own pure parts from a shuffled and repeated run of callbacks; one thing of it
is then tampered with.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import pytest

from app.domain.duplicates import idempotency_keys
from app.domain.fold import fold
from app.domain.values import Entity, EntityType, Reading
from app.jasper.reading import interpret
from bench.torture.changes import Change, Kind, callback, changes, text_of
from bench.torture.checker import Checker, Violations, apply
from bench.torture.sender import Answer

COUNT = 600
NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)

Record = dict[str, Any]


@dataclass
class Evidence:
    """A whole run, as the checker is shown it."""

    changes: dict[int, Change] = field(default_factory=dict)
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    deliveries: list[Record] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    events: list[Record] = field(default_factory=list)
    entities: dict[str, Record] = field(default_factory=dict)
    seen: list[tuple[int, str]] = field(default_factory=list)

    def check(self) -> Violations:
        checker = Checker(self.changes, self.answers)
        for delivery in self.deliveries:
            checker.delivery(delivery, self.numbers[delivery["id"]])
        checker.end_of_deliveries()
        for event in self.events:
            checker.event(event)
        checker.end_of_feed()
        for entity_id in sorted(self.entities):
            checker.entity(self.entities[entity_id])
        checker.end_of_state()
        checker.reader("a reader", self.seen)
        return checker.violations

    def a_stale_event(self) -> Record:
        return next(event for event in self.events if event["stale"])

    def an_update(self) -> Record:
        return next(event for event in self.events if event["changes"])

    def delivery_of(self, event: Record) -> Record:
        return next(one for one in self.deliveries if one["id"] == event["delivery_id"])

    def a_repeated_delete(self) -> Record:
        """A delivery of a delete that has no event of its own."""
        own = {self.numbers[one["id"]] for one in self.deliveries if one["status"] == "accepted"}
        return next(
            one for one in self.deliveries if one["status"] == "duplicate" and self.numbers[one["id"]] not in own
        )


def honest_run() -> Evidence:
    """Every change told once or more, out of order; taken in as the service does it, in memory."""
    chance = Random(7)
    run = Evidence()
    source = changes(seed=3, entities=12)
    run.changes = {change.number: change for change in (next(source) for _ in range(COUNT))}
    attempts = [(change.number + chance.uniform(0, 60), change) for change in run.changes.values()]
    attempts += [(at + chance.uniform(0, 200), change) for at, change in attempts if chance.random() < 0.3]
    states: dict[str, Entity] = {}
    newest: dict[str, str] = {}
    originals: dict[bytes, str] = {}
    for number, (_, change) in enumerate(sorted(attempts, key=lambda one: one[0]), 1):
        told = callback(change, number, chance)
        headers = tuple((name.lower(), value) for name, value in told.headers.items())
        reading = interpret(EntityType.PRODUCT, headers, told.body, {})
        delivery_id, event_id = str(UUID(int=number)), str(UUID(int=10_000 + number))
        status, named = "quarantined", None
        if isinstance(reading, Reading):
            keys = idempotency_keys(EntityType.PRODUCT, reading, told.body)
            named = next((originals[key] for key in keys if key in originals), None)
            status = "duplicate"
            if named is None:
                status, named = take_in(run, states, newest, reading, number, delivery_id, event_id)
                originals |= dict.fromkeys(keys, named)
        run.deliveries.append({"id": delivery_id, "status": status, "event_id": named})
        run.numbers[delivery_id] = change.number
        if chance.random() < 0.9:  # some answers are never heard
            run.answers.setdefault(change.number, []).append(Answer(delivery_id, status, named))
    for entity_id, entity in states.items():
        at = entity.source_updated_at
        run.entities[entity_id] = {
            "entity_id": entity_id,
            "data": json.loads(entity.data) if entity.data else None,
            "version": entity.version,
            "sequence": entity.sequence,
            "deleted_at": entity.deleted_at and entity.deleted_at.isoformat(),
            "source_updated_at": at and at.isoformat(),
        }
    run.seen = [(event["sequence"], event["id"]) for event in run.events]
    return run


def take_in(
    run: Evidence,
    states: dict[str, Entity],
    newest: dict[str, str],
    reading: Reading,
    sequence: int,
    delivery_id: str,
    event_id: str,
) -> tuple[str, str]:
    """Fold one reading and note its event; returns the delivery's status and the event it names."""
    entity_id = reading.entity_id
    folded = fold(states.get(entity_id), reading, entity_type=EntityType.PRODUCT, sequence=sequence, received_at=NOW)
    states[entity_id] = folded.entity
    event = folded.event
    if event is None:
        return "duplicate", newest[entity_id]
    if not event.stale:
        newest[entity_id] = event_id
    run.events.append(
        {
            "sequence": sequence,
            "id": event_id,
            "type": f"product.{event.action.past}",
            "entity_type": "product",
            "action": event.action.value,
            "entity_id": entity_id,
            "occurred_at": event.occurred_at and event.occurred_at.isoformat(),
            "source": "webhook",
            "delivery_id": delivery_id,
            "action_inferred": event.action_inferred,
            "stale": event.stale,
            "data": json.loads(event.data) if event.data else None,
            "changed": list(event.changed),
            "changes": json.loads(event.changes),
        }
    )
    return "accepted", event_id


HONEST = honest_run()


def lose_an_event(run: Evidence) -> None:
    del run.events[100]


def lose_an_event_from_everything(run: Evidence) -> None:
    """As if nothing of it had been committed."""
    run.deliveries.remove(run.delivery_of(run.events.pop(100)))


def double_an_event(run: Evidence) -> None:
    run.events.append(run.events[100] | {"sequence": run.events[-1]["sequence"] + 1})


def make_two_events_of_one_change(run: Evidence) -> None:
    again = run.events[100] | {"sequence": 9999, "id": "again", "delivery_id": "again"}
    run.events.append(again)
    run.numbers["again"] = run.numbers[run.events[100]["delivery_id"]]
    run.deliveries.append({"id": "again", "status": "accepted", "event_id": "again"})


def invent_an_event(run: Evidence) -> None:
    run.events.append(run.events[100] | {"sequence": 9999, "id": "invented"})


def swap_two_events(run: Evidence) -> None:
    run.events[100], run.events[101] = run.events[101], run.events[100]


def number_two_events_the_other_way(run: Evidence) -> None:
    """As if an older change had been numbered after a newer one of the same entity, and still moved the state."""
    run.a_stale_event()["stale"] = False


def call_an_event_stale(run: Evidence) -> None:
    next(event for event in run.events if not event["stale"] and event["occurred_at"])["stale"] = True


def move_a_state_back(run: Evidence) -> None:
    entity_id, entity = next(iter(run.entities.items()))
    older = [event for event in run.events if event["entity_id"] == entity_id and event["data"]]
    entity["data"] = next(event["data"] for event in older if event["data"] != entity["data"])


def miscount_a_version(run: Evidence) -> None:
    run.entities["3"]["version"] += 1


def bring_back_or_delete(run: Evidence) -> None:
    entity = run.entities["3"]
    entity["deleted_at"] = None if entity["deleted_at"] else NOW.isoformat()


def forget_an_entity(run: Evidence) -> None:
    del run.entities["3"]


def show_an_event_late(run: Evidence) -> None:
    """As if it had become visible below a position that had been handed out."""
    run.seen.pop(100)


def show_an_event_twice(run: Evidence) -> None:
    run.seen.insert(100, run.seen[100])


def show_an_event_that_is_gone(run: Evidence) -> None:
    run.seen.append((9999, "gone"))


def show_events_in_another_order(run: Evidence) -> None:
    run.seen[100], run.seen[101] = run.seen[101], run.seen[100]


def change_a_digit(run: Evidence) -> None:
    data = next(event for event in run.events if event["data"])["data"]
    data["price"] += 1


def change_a_time(run: Evidence) -> None:
    event = next(event for event in run.events if event["occurred_at"])
    event["occurred_at"] = text_of(0)


def change_a_change(run: Evidence) -> None:
    run.an_update()["changes"][0]["to"] = "something else"


def forget_a_change(run: Evidence) -> None:
    run.an_update()["changes"].pop()


def forget_what_changed(run: Evidence) -> None:
    run.an_update()["changed"].pop()


def answer_otherwise(run: Evidence) -> None:
    number, [answer, *others] = next((number, given) for number, given in run.answers.items() if given)
    run.answers[number] = [Answer(answer.delivery_id, "duplicate", "another"), *others]


def quarantine_what_can_be_read(run: Evidence) -> None:
    delivery = run.delivery_of(run.events.pop(100))
    delivery |= {"status": "quarantined", "event_id": None}
    run.answers[run.numbers[delivery["id"]]] = [Answer(delivery["id"], "quarantined", None)]


def guess_what_cannot_be_read(run: Evidence) -> None:
    delivery = next(one for one in run.deliveries if one["status"] == "quarantined")
    delivery |= {"status": "duplicate", "event_id": run.events[0]["id"]}


def repeat_something_else(run: Evidence) -> None:
    """A duplicate of another change: this one would be lost."""
    own = {run.numbers[one["id"]] for one in run.deliveries if one["status"] == "accepted"}
    delivery = next(one for one in run.deliveries if one["status"] == "duplicate" and run.numbers[one["id"]] in own)
    delivery["event_id"] = run.events[0]["id"]


def forget_a_delete(run: Evidence) -> None:
    """A change that is no delete, told to be one of what is deleted: it would be lost."""
    number = run.numbers[run.a_repeated_delete()["id"]]
    change = run.changes[number]
    run.changes[number] = Change(number, change.entity_id, Kind.FULL, "update", change.at, has_data=True)


@pytest.mark.parametrize(
    ("tamper", "kind"),
    [
        (lose_an_event, "lost"),
        (lose_an_event_from_everything, "lost"),
        (double_an_event, "doubled"),
        (make_two_events_of_one_change, "doubled"),
        (invent_an_event, "never sent"),
        (swap_two_events, "out of order"),
        (number_two_events_the_other_way, "out of order"),
        (call_an_event_stale, "out of order"),
        (move_a_state_back, "wrong state"),
        (miscount_a_version, "wrong state"),
        (bring_back_or_delete, "wrong state"),
        (forget_an_entity, "wrong state"),
        (show_an_event_late, "missed by a reader"),
        (show_an_event_twice, "shown to a reader"),
        (show_an_event_that_is_gone, "shown to a reader"),
        (show_events_in_another_order, "out of order"),
        (change_a_digit, "changed on the way"),
        (change_a_time, "changed on the way"),
        (change_a_change, "wrong changes"),
        (forget_a_change, "wrong changes"),
        (forget_what_changed, "wrong changes"),
        (answer_otherwise, "told otherwise"),
        (quarantine_what_can_be_read, "not understood"),
        (guess_what_cannot_be_read, "guessed"),
        (repeat_something_else, "doubled"),
        (forget_a_delete, "lost"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_the_checker_complains_of_a_single_wrong_thing(tamper: Callable[[Evidence], None], kind: str) -> None:
    run = copy.deepcopy(HONEST)
    tamper(run)
    assert kind in run.check().counts


def test_the_checker_finds_nothing_where_all_is_well() -> None:
    assert HONEST.check().details == {}
    assert {change.kind for change in HONEST.changes.values()} == set(Kind)
    assert any(event["stale"] and event["data"] for event in HONEST.events)


def test_a_body_that_was_not_kept_whole_is_a_violation() -> None:
    checker = Checker({}, {})
    checker.kept({"id": "d"}, 1, b"as it came", b"as it came")
    assert not checker.violations.counts
    checker.kept({"id": "d"}, 1, b"as it came ", b"as it came")
    assert checker.violations.counts == {"not kept whole": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"op": "replace", "path": "/a/1", "from": 1, "to": 3},
        {"op": "remove", "path": "/b~1~0", "from": 1},
        {"op": "add", "path": "/b~1~0", "to": 1},
        {"op": "replace", "path": "/missing", "from": 1, "to": 3},
        {"op": "replace", "path": "/a/7", "from": 1, "to": 3},
    ],
)
def test_changes_that_do_not_fit_are_refused(change: Record) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        apply([change], {"a": [1, 2], "b/~": 2})


def test_changes_are_applied_at_their_places() -> None:
    changed = apply(
        [
            {"op": "replace", "path": "/a/1", "from": 2, "to": 3},
            {"op": "remove", "path": "/b~1~0", "from": 2},
            {"op": "add", "path": "/c", "to": {"d": 1}},
            {"op": "replace", "path": "/c/d", "from": 1, "to": None},
        ],
        {"a": [1, 2], "b/~": 2},
    )
    assert changed == {"a": [1, 3], "c": {"d": None}}
