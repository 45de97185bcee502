"""What happens in the imaginary Jasper, and how it tells of it: changes, and the callbacks that carry them.

All follows from the seed. Every change can be told apart from every other by what it carries, so what has to come of it
is certain. Written from the contract alone: it shares no code with what reads it.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

ATTEMPT_HEADER = "X-Torture-Attempt"
"""Says which change, and which attempt at it, a callback is, as `CHANGE.ATTEMPT`. It feeds nothing, but it is kept."""

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEP = 10_000
"""Microseconds between two changes, as their timestamps say."""

_SEGMENT = 300
"""So many changes see the clock in one mood."""

_DAY = 86_400 * 1_000_000


class Kind(StrEnum):
    """How a change is told."""

    FULL = "full"  # the entity with its `updated_at`, in envelopes that differ from attempt to attempt
    ENVELOPE = "envelope"  # the entity without a time, in an envelope with a timestamp and a delivery id
    ID_ONLY = "id only"  # an id and a timestamp
    UNTIMED = "untimed"  # an id, and a delivery id in a header
    BARE = "bare"  # the entity with its `updated_at`, and no word about what happened
    UNREADABLE = "unreadable"  # nothing that can be read as an event


class Clock(StrEnum):
    """What the sender's clock does for a while."""

    RIGHT = "right"
    BEHIND = "behind"  # by some seconds, which is some hundred changes
    AHEAD = "ahead"  # likewise
    COARSE = "coarse"  # whole seconds, so that many changes have the same time
    MAD = "mad"  # a year ahead, for a few entities


@dataclass(frozen=True, slots=True)
class Change:
    """One change as it was meant. `action` is None where no word says it, `at` is in microseconds since 1970."""

    number: int
    entity_id: str
    kind: Kind
    action: str | None
    at: int | None
    has_data: bool

    def data(self) -> dict[str, Any] | None:
        """The entity as it is told, or None where it is not."""
        if not self.has_data:
            return None
        chance = random.Random(f"data {self.number}")
        data: dict[str, Any] = {
            "id": int(self.entity_id),
            "name": f"Thing {self.entity_id} größer \U0001f600 {chance.randrange(5)}",
            "price": chance.randrange(1, 9) + 0.1,
            "stock": {"qty": chance.randrange(50), "by_shop": [chance.randrange(9) for _ in range(3)]},
            "description": "Words about a thing / with a slash. " * chance.randrange(1, 12),
            "change": self.number,
        }
        if chance.choice((True, False)):
            data["special price ~/"] = chance.randrange(100)
        if self.kind is not Kind.ENVELOPE:
            data["updated_at"] = text_of(self.at)
        return data


@dataclass(frozen=True, slots=True)
class Callback:
    """One attempt to tell a change."""

    headers: dict[str, str]
    body: bytes


def text_of(at: int | None) -> str:
    """A time as it is written in payloads and in the feed. There must be one."""
    assert at is not None
    return (_EPOCH + timedelta(microseconds=at)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def changes(seed: int, entities: int) -> Iterator[Change]:
    """Changes without an end, of `entities` entities that come and go."""
    chance = random.Random(f"changes {seed}")
    begin = (_BEGIN - _EPOCH) // timedelta(microseconds=1)
    alive: set[int] = set()
    clock = Clock.RIGHT
    number = 0
    while True:
        number += 1
        if number % _SEGMENT == 0:
            clock = chance.choice([Clock.RIGHT, Clock.RIGHT, *Clock])
        entity = chance.randrange(1, entities + 1)
        kind = chance.choices(list(Kind), weights=[40, 25, 15, 5, 10, 2])[0]
        at = _at(begin + number * _STEP, clock, kind, chance, mad=clock is Clock.MAD and entity % 12 == 0)
        action = _action(kind, chance, alive=entity in alive)
        has_data = kind in {Kind.FULL, Kind.ENVELOPE, Kind.BARE}
        if kind is not Kind.UNREADABLE:
            (alive.discard if action == "delete" else alive.add)(entity)
        yield Change(number, str(entity), kind, action, at, has_data)


def _at(now: int, clock: Clock, kind: Kind, chance: random.Random, *, mad: bool) -> int | None:
    if kind in {Kind.UNTIMED, Kind.UNREADABLE}:
        return None
    if mad:
        return now + 365 * _DAY
    match clock:
        case Clock.BEHIND | Clock.AHEAD:
            # Never a whole step, and odd or even, so that no two changes have the same time by accident.
            odd = 3_000_000 + chance.randrange(1, _STEP - 1, 2)
            return now - odd if clock is Clock.BEHIND else now + odd + 1
        case Clock.COARSE if kind is not Kind.ID_ONLY:  # which can be told from another by its time alone
            return now - now % 1_000_000
        case _:
            return now


def _action(kind: Kind, chance: random.Random, *, alive: bool) -> str | None:
    if kind in {Kind.BARE, Kind.UNREADABLE}:
        return None
    if kind is Kind.UNTIMED:  # would delete out of turn, and nobody could say whether rightly
        return "update"
    if alive:
        return chance.choices(["update", "delete"], weights=[88, 12])[0]
    return chance.choices(["create", "update", "delete"], weights=[80, 10, 10])[0]


def callback(change: Change, attempt: int, chance: random.Random) -> Callback:
    """One attempt: what makes it the same change is the same every time, the rest differs as `chance` has it."""
    headers = {ATTEMPT_HEADER: f"{change.number}.{attempt}", "Content-Type": "application/json"}
    if change.kind is Kind.UNREADABLE:
        return Callback(headers, unreadable(change))
    if change.kind is Kind.UNTIMED:
        headers["X-Jasper-Delivery"] = f"untimed-{change.number}"
    return Callback(headers, _written(_payload(change, attempt, chance), chance))


def _payload(change: Change, attempt: int, chance: random.Random) -> dict[str, Any]:
    data = change.data()
    past = f"{change.action}d"
    match change.kind:
        case Kind.BARE:
            assert data is not None
            return data
        case Kind.FULL:
            return chance.choice(
                [
                    {"event": f"product.{past}", "data": data},
                    {"event": f"product.{past}", "delivery_id": f"{change.number}-{attempt}", "data": data},
                    {"action": past, "product": data, "meta": {"attempt": attempt}},
                    {"type": f"Product{past.title()}", "payload": {"product": data}},
                ]
            )
        case Kind.ENVELOPE:
            envelope = {"action": change.action, "occurred_at": text_of(change.at), "delivery_id": f"e{change.number}"}
            return envelope | {"product": data} | chance.choice(({}, {"attempt": attempt}))
        case Kind.ID_ONLY:
            stamp = {"timestamp": text_of(change.at)}
            return {"event": f"product.{past}", "product_id": int(change.entity_id), **stamp}
        case _:
            return {"event": f"product.{past}", "product_id": int(change.entity_id)}


def _written(payload: dict[str, Any], chance: random.Random) -> bytes:
    """JSON in one of the ways to write it: members in any order, with white space and escapes or without."""
    if chance.choice((True, False)):
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    members = list(payload.items())
    chance.shuffle(members)
    text = json.dumps(dict(members), indent=chance.choice((None, 1, "\t")), ensure_ascii=chance.choice((True, False)))
    return text.replace("/", "\\/").encode()


def unreadable(change: Change) -> bytes:
    """The body of a callback that tells no event, the same at every attempt."""
    mark = change.number
    return random.Random(f"unreadable {mark}").choice(
        [
            b'{"event": "product.updated", "data": {"id": %d, "name": "cut off' % mark,
            b'{"event": "product.updated", "data": {"id": 1, "price": NaN, "mark": %d}}' % mark,
            b'[{"id": 1, "mark": %d}, {"id": 2}]' % mark,
            b'{"event": "product.updated", "action": "deleted", "product_id": 1, "mark": %d}' % mark,
            b'{"event": "product.evaporated", "product_id": 1, "mark": %d}' % mark,
            b'{"event": "product.updated", "product_id": 1, "resource_id": 2, "mark": %d}' % mark,
            b"\xff\xfe\x00 no text at all %d" % mark,
            b"",
        ]
    )
