"""The checker: compares what the sender meant and was told with what the receivers have to show for it.

It knows the contract and nothing else: no code of the service, no SQL. Records go in as the API gives them, in this order:
deliveries, the feed, the state, and what readers saw on the way. What comes out is violations, of which there must be none.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.torture.changes import Change, Kind
from bench.torture.sender import Answer

_SHOWN = 10
"""So many violations of one kind are told in full; the rest is counted."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Violations:
    """What was broken, by kind: how often, and the first of them in words."""

    counts: Counter[str] = field(default_factory=Counter)
    details: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, detail: str) -> None:
        """One more."""
        self.counts[kind] += 1
        told = self.details.setdefault(kind, [])
        if len(told) < _SHOWN:
            told.append(detail)


@dataclass(slots=True)
class _History:
    """One entity, folded from the feed by the rules of the contract. Times are in microseconds since 1970.

    `newest` is the newest time known, repeated deletes included, `source_updated_at` that of its own events alone.
    """

    version: int = 0
    sequence: int = 0
    data: Any = None
    data_at: int | None = None
    newest: int | None = None
    source_updated_at: int | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Told:
    """What a delivery has to be, as its sender was told."""

    number: int
    answer: Answer


class Checker:
    """One check; `changes` by their numbers, `answers` by the number of the change."""

    def __init__(self, changes: Mapping[int, Change], answers: Mapping[int, Iterable[Answer]]) -> None:
        self.violations = Violations()
        self.events = 0
        self.stale = 0
        self.deliveries: Counter[str] = Counter()
        self.unheard = 0
        """Deliveries that were committed without their sender having been told."""
        self._changes = changes
        self._told = {one.delivery_id: _Told(number, one) for number, given in answers.items() for one in given}
        self._promised = [number for number, given in answers.items() if given]
        self._event_of: dict[int, str] = {}
        self._origin: dict[str, tuple[int, str]] = {}  # event id → number of the change, delivery id
        self._repeats: dict[int, set[str]] = {}  # number of the change → events that its duplicates name
        self._kept_unread: set[int] = set()
        self._repeated_deletes: dict[str, list[Change]] = {}  # event id → deletes that came while it was the newest
        self._unseen: set[str] = set()
        self._feed: list[tuple[int, str]] = []
        self._entities: dict[str, _History] = {}
        self._meant: dict[str, list[tuple[Change, int]]] = {}  # entity id → changes with the sequence of their event
        self._states: list[str] = []

    # Deliveries

    def was_told(self, delivery_id: str) -> bool:
        """Whether a sender was told of this delivery; of others somebody has to find out whose they are."""
        return delivery_id in self._told

    def delivery(self, record: Mapping[str, Any], number: int | None = None) -> None:
        """One delivery of the list; `number` is the change that it came with, where somebody has looked."""
        delivery_id, status, event_id = record["id"], record["status"], record["event_id"]
        self.deliveries[status] += 1
        told = self._told.pop(delivery_id, None)
        if told is not None:
            number = told.number if number is None else number
            if (told.number, told.answer.status, told.answer.event_id) != (number, status, event_id):
                self._violated("told otherwise", f"{told} but delivery {record}")
        else:
            self.unheard += 1
        if number is None or number not in self._changes:
            self._violated("never sent", f"delivery {delivery_id} is of no change: {record}")
            return
        match status:
            case "accepted":
                if number in self._event_of:
                    self._violated("doubled", f"change {number} made events {self._event_of[number]} and {event_id}")
                self._event_of[number] = event_id
                self._origin[event_id] = (number, delivery_id)
            case "duplicate":
                self._repeats.setdefault(number, set()).add(event_id)
            case _:
                self._kept_unread.add(number)

    def end_of_deliveries(self) -> None:
        """All deliveries have been given."""
        for delivery_id, told in self._told.items():
            self._violated("lost", f"delivery {delivery_id} was promised, but is not there: {told}")
        for number in {*self._promised, *self._event_of, *self._repeats, *self._kept_unread}:
            self._check_outcome(self._changes[number])
        self._unseen = set(self._origin)

    def _check_outcome(self, change: Change) -> None:
        """That one change has come to one thing, however often it was told."""
        event_id = self._event_of.get(change.number)
        named = self._repeats.get(change.number, set())
        if change.kind is Kind.UNREADABLE:
            if event_id or named:
                self._violated("guessed", f"{change} made or repeated an event: {event_id}, {named}")
            return
        if change.number in self._kept_unread:
            self._violated("not understood", f"{change} was quarantined")
        if event_id is None and not named:
            self._violated("lost", f"{change} has neither an event nor one that it repeats")
        elif event_id is not None and named - {event_id}:
            self._violated("doubled", f"{change} made event {event_id}, and was told to repeat {named - {event_id}}")
        elif event_id is None:
            # The one change without an event: a delete of what is deleted.
            if change.action != "delete" or len(named) > 1:
                self._violated("lost", f"{change} has no event of its own, but is told to repeat {named}")
            for name in named:
                self._repeated_deletes.setdefault(name, []).append(change)

    def kept(self, record: Mapping[str, Any], number: int, body: bytes, sent: bytes) -> None:
        """One delivery that must be there byte for byte."""
        if body != sent:
            self._violated("not kept whole", f"change {number} came as {sent!r}, delivery {record['id']} has {body!r}")

    # The feed

    def event(self, record: Mapping[str, Any]) -> None:
        """One event of the feed, stale ones included."""
        self.events += 1
        self.stale += record["stale"]
        sequence, event_id = record["sequence"], record["id"]
        if self._feed and sequence <= self._feed[-1][0]:
            self._violated("out of order", f"event {event_id} with {sequence} comes after {self._feed[-1]}")
        self._feed.append((sequence, event_id))
        if event_id not in self._origin:
            self._violated("never sent", f"event {event_id} is of no delivery: {record}")
            return
        if event_id not in self._unseen:
            self._violated("doubled", f"event {event_id} is in the feed twice, the second time at {sequence}")
            return
        self._unseen.discard(event_id)
        number, delivery_id = self._origin[event_id]
        change = self._changes[number]
        history = self._entities.setdefault(record["entity_id"], _History())
        self._check_content(record, change, delivery_id, known=history.version > 0)
        self._fold(history, record)
        self._meant.setdefault(change.entity_id, []).append((change, sequence))

    def end_of_feed(self) -> None:
        """All events have been given."""
        for event_id in self._unseen:
            self._violated("lost", f"event {event_id} of change {self._origin[event_id][0]} is not in the feed")

    def _check_content(self, record: Mapping[str, Any], change: Change, delivery_id: str, *, known: bool) -> None:
        """That an event says what its change meant."""
        action = change.action or ("update" if known else "create")
        meant = {
            "type": f"product.{action}d",
            "entity_type": "product",
            "entity_id": change.entity_id,
            "action": action,
            "action_inferred": change.action is None,
            "source": "webhook",
            "delivery_id": delivery_id,
            "data": change.data(),
        }
        wrong = [name for name, value in meant.items() if record[name] != value]
        if _moment(record["occurred_at"]) != change.at:
            wrong.append("occurred_at")
        if wrong:
            self._violated("changed on the way", f"{', '.join(wrong)}: {change} became {record}")

    def _fold(self, history: _History, record: Mapping[str, Any]) -> None:
        """Move an entity by one event, and check what the event says about that."""
        at, data = _moment(record["occurred_at"]), record["data"]
        stale = at is not None and history.newest is not None and at < history.newest
        if record["stale"] != stale:
            self._violated("out of order", f"stale should be {stale}, the newest being {history.newest}: {record}")
        brings_data = data is not None and (not stale or history.data is None or _not_older(at, history.data_at))
        self._check_changes(history, record, brings_data=brings_data)
        if brings_data:
            history.data, history.data_at = data, at
        if not stale:
            history.version += 1
            history.sequence = record["sequence"]
            history.source_updated_at = _newest(history.source_updated_at, at)
            history.deleted = record["action"] == "delete"
            repeated = [change.at for change in self._repeated_deletes.get(record["id"], ())]
            history.newest = _newest(history.newest, at, *repeated)

    def _check_changes(self, history: _History, record: Mapping[str, Any], *, brings_data: bool) -> None:
        """That `changes` lead from the state before to the state after."""
        before, after, listed = history.data, record["data"], record["changes"]
        if record["action"] != "update" or before is None or not brings_data:
            if listed:
                self._violated("wrong changes", f"there is nothing to compare with: {record}")
            return
        try:
            result = apply(listed, before)
        except (LookupError, TypeError, ValueError) as error:
            self._violated("wrong changes", f"they do not fit the state before ({error!r}): {before} {record}")
            return
        if result != after:
            self._violated("wrong changes", f"they make {result} of {before}: {record}")
        names = list(dict.fromkeys(_steps(change["path"])[0] for change in listed))
        if record["changed"] != names:
            self._violated("wrong changes", f"changed should be {names}: {record}")

    # The state

    def entity(self, record: Mapping[str, Any]) -> None:
        """One entity of the list, deleted ones included."""
        entity_id = record["entity_id"]
        if self._states and entity_id <= self._states[-1]:
            self._violated("wrong state", f"entity {entity_id} comes after {self._states[-1]}")
        self._states.append(entity_id)
        history = self._entities.get(entity_id)
        if history is None:
            self._violated("wrong state", f"entity {entity_id} has no event: {record}")
            return
        shown = (record["version"], record["sequence"], record["data"], record["deleted_at"] is not None)
        folded = (history.version, history.sequence, history.data, history.deleted)
        if shown != folded or _moment(record["source_updated_at"]) != history.source_updated_at:
            self._violated("wrong state", f"entity {entity_id} should be {history}: {record}")
        self._check_newest_wins(entity_id, record)

    def end_of_state(self) -> None:
        """All entities have been given."""
        for entity_id in self._entities.keys() - set(self._states):
            self._violated("wrong state", f"entity {entity_id} is not in the list")

    def _check_newest_wins(self, entity_id: str, record: Mapping[str, Any]) -> None:
        """The state by what was meant, without the feed: of all that happened to an entity the newest counts."""
        told = [(change.at, sequence, change) for change, sequence in self._meant[entity_id] if change.at is not None]
        with_data = [one for one in told if one[2].has_data]
        newest_data = max(with_data, key=lambda one: one[:2])[2].data() if with_data else None
        if record["data"] != newest_data:
            self._violated("wrong state", f"the newest data of {entity_id} is {newest_data}: {record}")
        if any(change.at is None for change, _ in self._meant[entity_id]) or not told:
            return  # what has no time counts when it comes, so only the feed can tell
        told += [
            (change.at, sequence, change)
            for (_, sequence, one) in told
            for change in self._repeated_deletes.get(self._event_of[one.number], ())
            if change.at is not None
        ]
        newest = max(at for at, _, _ in told)
        actions = {change.action == "delete" for at, _, change in told if at == newest}
        if len(actions) == 1 and actions != {record["deleted_at"] is not None}:
            self._violated("wrong state", f"the newest change of {entity_id} says deleted {actions}: {record}")

    # Readers

    def reader(self, name: str, seen: list[tuple[int, str]]) -> None:
        """What a reader was given from beginning to end: it must be the feed, each event once and in its place.

        An event that came below a position that had been handed out was never given to the one that had that position.
        """
        if seen == self._feed:
            return
        missed, extra = Counter(self._feed) - Counter(seen), Counter(seen) - Counter(self._feed)
        for sequence, event_id in missed:
            self._violated("missed by a reader", f"{name} never saw event {event_id} at {sequence}")
        for sequence, event_id in extra:
            self._violated("shown to a reader", f"{name} saw event {event_id} at {sequence} too often, or it is gone")
        if not missed and not extra:
            self._violated("out of order", f"{name} saw the events of the feed in another order")

    def _violated(self, kind: str, detail: str) -> None:
        self.violations.add(kind, detail)


def apply(changes: Iterable[Mapping[str, Any]], value: Any) -> Any:
    """A JSON value after a list of changes. Raises LookupError, TypeError or ValueError where they do not fit it."""
    for change in changes:
        steps = _steps(change["path"])
        value = _applied(change, steps, value) if steps else change["to"]
    return value


def _applied(change: Mapping[str, Any], steps: list[str], value: Any) -> Any:
    step, *rest = steps
    if isinstance(value, list):
        position = int(step)
        return [*value[:position], _replaced(change, rest, value[position]), *value[position + 1 :]]
    present = dict(value)
    if not rest and change["op"] == "add":
        if step in present:
            raise ValueError(f"{step} is there already")
        return present | {step: change["to"]}
    if not rest and change["op"] == "remove":
        if present.pop(step) != change["from"]:
            raise ValueError(f"{step} was not as said")
        return present
    return present | {step: _replaced(change, rest, present[step])}


def _replaced(change: Mapping[str, Any], rest: list[str], value: Any) -> Any:
    if rest:
        return _applied(change, rest, value)
    if change["op"] != "replace" or value != change["from"]:
        raise ValueError(f"{value} was not as said")
    return change["to"]


def _steps(pointer: str) -> list[str]:
    """A JSON Pointer in its parts (RFC 6901)."""
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _moment(text: str | None) -> int | None:
    return None if text is None else (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def _newest(*times: int | None) -> int | None:
    return max((time for time in times if time is not None), default=None)


def _not_older(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one >= other
