"""What is known here against what Jasper shows: the difference as a reading, or none. Pure.

Only what both sides carry is compared, by value: a list may leave members out, callbacks may carry other ones than the API,
and 1.10 is 1.1. What arrived here after Jasper was asked wins, and so does what Jasper itself says is newer.
"""

from datetime import datetime

from msgspec import Struct

from app.domain import jsontext
from app.domain.jsontext import NotJsonError
from app.domain.values import Action, JsonText, Reading, Source
from app.jasper.entities import ShownEntity, stamp_of


class KnownEntity(Struct, frozen=True):
    """The state of an entity here. `sequence` is the newest event that moved it, `source` that of its newest event."""

    sequence: int
    data: JsonText | None
    newest_at: datetime | None
    is_deleted: bool
    source: Source


def difference(known: KnownEntity | None, shown: ShownEntity, *, known_until: int) -> Reading | None:
    """What Jasper's answer tells that was missed here; None where nothing was.

    `known_until` is the newest event at the time before Jasper was asked.
    """
    if known is None:
        return _reading(Action.CREATE, shown, occurred_at=shown.updated_at)
    if known.sequence > known_until:
        return None
    if known.is_deleted:
        # Where Jasper itself said before that it was gone, what it says now is newer, whenever the entity was changed.
        if known.source is Source.WEBHOOK and is_before(shown.updated_at, known.newest_at):
            return None
        return _reading(Action.CREATE, shown, occurred_at=not_before(shown.updated_at, known.newest_at))
    if known.data is not None and (
        known.data == shown.data or _is_older(shown, known, known.data) or agree(known.data, shown.members)
    ):
        return None
    return _reading(Action.UPDATE, shown, occurred_at=not_before(shown.updated_at, known.newest_at))


def agree(data: JsonText, members: dict[str, JsonText]) -> bool:
    """Whether all members that both sides have mean the same."""
    try:
        ours = jsontext.members(data)
        return all(jsontext.equal(value, ours[name]) for name, value in members.items() if name in ours)
    except NotJsonError:  # a name that is there twice: nothing in it can be told apart
        return False


def carries(members: dict[str, JsonText], data: JsonText) -> bool:
    """Whether `members` hold all that `data` does, with the same values."""
    try:
        whole = jsontext.members(data)
        return all(name in members and jsontext.equal(value, members[name]) for name, value in whole.items())
    except NotJsonError:
        return False


def as_callbacks_would_tell(shown: ShownEntity) -> tuple[Reading, ...]:
    """What callbacks may still tell of this, late: the same data, under whichever word. None where nothing marks it."""
    if not shown.stamped:
        return ()
    return tuple(
        Reading(entity_id=shown.entity_id, action=action, data=shown.data, data_stamped=True)
        for action in (Action.CREATE, Action.UPDATE, None)
    )


def not_before(moment: datetime | None, newest: datetime | None) -> datetime | None:
    """The time that Jasper's answer gives; None where an event here names a later one, which yet was before the answer.

    The clocks differ: an event's own time may be a little later than the `updated_at` of the entity that it is about.
    """
    return None if is_before(moment, newest) else moment


def is_before(one: datetime | None, other: datetime | None) -> bool:
    """Whether both are known and the one is strictly before the other."""
    return one is not None and other is not None and one < other


def _reading(action: Action, shown: ShownEntity, *, occurred_at: datetime | None) -> Reading:
    return Reading(entity_id=shown.entity_id, action=action, data=shown.data, occurred_at=occurred_at)


def _is_older(shown: ShownEntity, known: KnownEntity, data: JsonText) -> bool:
    """Whether Jasper's answer is from before what is known; by the entity's own stamps where both sides have them."""
    try:
        own = stamp_of(jsontext.members(data))
    except NotJsonError:
        own = None
    return is_before(shown.updated_at, own or known.newest_at)
