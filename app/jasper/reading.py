"""Reads a payload: headers, body and mapping in, a Reading or the reason why there is none out. Pure and total.

Nothing about the payload's shape is documented by Jasper, so it is searched in steps that are the same for every shape:

1. *Levels*: from the body's root through wrappers (`data`, `product`, `payload` …) down to the entity.
2. *Entity id*: the entity's own, else one that an envelope around it gives.
3. *Action*: a word at the usual places; none leaves it to be inferred, two that contradict each other stop the reading.
4. *Data, time, delivery id, version*.

Where the operator's mapping names a place and something stands there, that is taken and nothing else is asked. What cannot
be read with confidence is Unreadable, which quarantines the delivery whole; it is never guessed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import lru_cache

from msgspec import Raw, Struct

from app.domain import jsontext
from app.domain.jsontext import NotJsonError
from app.domain.values import Action, EntityType, Headers, JsonText, Reading, Unreadable
from app.jasper import wire
from app.jasper.redact import BLANK

Mappings = Mapping[str, Sequence[str]]
"""Part of an event (`action`, `entity_id`, `data`, `occurred_at`, `delivery_id`) → places, in order."""

LONGEST_ID = 512
"""Bytes of UTF-8; Postgres could not index much more."""

_MOST_LEVELS = 4
_LONGEST_SHOWN = 60
_LONGEST_TIME = 64
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)")
_EPOCH = re.compile(r"[0-9]{9,17}(\.[0-9]{1,9})?")
_DATE_AND_TIME = re.compile(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}[T ][0-9]{2}.*", re.IGNORECASE)
_WEAK_ACTION_NAMES = (wire.WEAK_ACTION_NAME,)
_SIDE_ACTION_NAMES = (*wire.ACTION_NAMES, wire.WEAK_ACTION_NAME, "name")
_SIDE_TIME_NAMES = (*wire.TIME_NAMES, *wire.ENVELOPE_TIME_NAMES)
_STAMP_NAMES = (*wire.ENTITY_TIME_NAMES, *wire.VERSION_NAMES)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
"""Many systems write these for "none", and the driver of Postgres takes them for infinity, which is no time to compare."""

_PING_TIME = "%a %b %d %H:%M:%S UTC %Y"
"""How Jasper's documented answer to `GET /ping` spells a time."""


class _UnreadableError(Exception):
    """Stops a reading; the message is for the operator."""


class _Found(Struct, frozen=True, gc=False):
    """A value and the place it was found at: a JSON Pointer or `header:NAME`."""

    place: str
    value: str


class _Level(Struct, frozen=True, gc=False):
    """One object on the way from the root to the entity."""

    pointer: str
    text: JsonText
    members: Mapping[str, Raw | JsonText]
    known: "_Known"

    @property
    def name(self) -> str:
        """The member that holds it, also where it stands in an array of one."""
        return self.pointer.removesuffix("/0").rpartition("/")[2]

    def at(self, name: str) -> str:
        return jsontext.append_to_pointer(self.pointer, name)

    def value(self, name: str) -> JsonText:
        """The text of a member that is there."""
        return JsonText(bytes(self.members[name]))

    def scalars(self, names: tuple[str, ...]) -> Sequence[_Found]:
        """The strings and numbers that are not empty among `names`, in their order."""
        here = self.known[names]
        if not here:  # as is usual
            return ()
        return [_Found(self.at(name), value) for name in here if (value := _scalar(self.value(name)))]

    def ids(self, names: tuple[str, ...]) -> Sequence[_Found]:
        """The strings and whole numbers among `names`: what can be an id."""
        here = self.known[names]
        if not here:  # as is usual
            return ()
        return [_Found(self.at(name), value) for name in here if (value := _identifier(self.value(name)))]

    def has_any(self, names: tuple[str, ...]) -> bool:
        """Whether there is a member with one of the names."""
        return bool(self.known[names])


class _Known(dict[tuple[str, ...], tuple[str, ...]]):
    """Which of some of the usual names an object has, in their order, for each tuple of them that was asked for.

    Objects of one sender have the same ones, and are asked for the same tuples: what was found for one is found for all.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self._names = names

    def __missing__(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Look for a tuple that was never asked for. Raises KeyError where it has a name that `wire` does not list."""
        if not wire.NAMES.issuperset(names):
            raise KeyError(names)
        here = self[names] = tuple(name for name in names if name in self._names)
        return here


@lru_cache(maxsize=256)
def _known(names: frozenset[str]) -> _Known:
    return _Known(names)


class _Payload(Struct, frozen=True, gc=False):
    """What is being read: `envelopes` lead from the root to just above the `entity`; a bare entity has none.

    `around` is where facts about the event stand: the envelopes, or the one level there is. `is_bare` says that the body is
    nothing but an entity: no envelope around it, no word in it about what happened.
    """

    entity_type: EntityType
    headers: Headers
    mapping: Mappings
    root: JsonText
    envelopes: tuple[_Level, ...]
    entity: _Level
    around: tuple[_Level, ...]
    is_bare: bool
    places: dict[str, str]

    def beside(self) -> Sequence[_Level]:
        """Objects next to the entity that tell about the event, such as `meta`."""
        if self.is_bare:
            return ()
        return [
            _level(level.at(name), level.value(name))
            for level in self.around
            for name in level.known[wire.SIDE_OBJECTS]
            if jsontext.kind(level.value(name)) == "object"
        ]

    def mapped(self, part: str) -> Iterable[_Found]:
        """The scalars at the places that the operator's mapping names for a part."""
        places = self.mapping.get(part)
        return self._at(places) if places else ()  # as is usual

    def _at(self, places: Sequence[str]) -> Iterator[_Found]:
        for place in places:
            if place.startswith("header:"):
                yield from _header_values(self.headers, [place.removeprefix("header:").lower()])
            else:
                text = jsontext.resolve(self.root, place)
                if text is not None and (value := _scalar(text)):
                    yield _Found(place, value)


def action_headers(mapping: Mappings) -> frozenset[str]:
    """The names of the headers in which the action may stand, in lower case."""
    mapped = [
        place.removeprefix("header:").lower() for place in mapping.get("action", ()) if place.startswith("header:")
    ]
    return frozenset([*wire.ACTION_HEADERS, *mapped])


def interpret(entity_type: EntityType, headers: Headers, body: bytes, mapping: Mappings) -> Reading | Unreadable:
    """Read one callback. Never raises: that it cannot be read is an answer, too."""
    places: dict[str, str] = {}
    try:
        root = jsontext.document(body)
        envelopes, entity = _find_levels(entity_type, root, mapping)
        around = envelopes or (entity,)
        is_bare = not envelopes and not _states_action(entity)
        return _read(_Payload(entity_type, headers, mapping, root, envelopes, entity, around, is_bare, places))
    except NotJsonError as exc:
        return Unreadable(f"the body cannot be read as JSON: {exc}", places)
    except _UnreadableError as exc:
        return Unreadable(str(exc), places)


def _read(payload: _Payload) -> Reading:
    entity_id = _entity_id(payload)
    action = _action(payload)
    data = _data(payload)
    occurred_at = _occurred_at(payload, action)
    data_stamped = data is not None and _is_stamped(payload.entity)
    return Reading(
        entity_id=entity_id,
        action=action,
        data=data,
        occurred_at=occurred_at,
        delivery_key=_delivery_key(payload),
        stamped=occurred_at is not None or data_stamped or _is_stamped(payload.entity),
        data_stamped=data_stamped,
        places=payload.places,
    )


# 1. Levels


def _find_levels(entity_type: EntityType, root: JsonText, mapping: Mappings) -> tuple[tuple[_Level, ...], _Level]:
    """The envelopes from the root inwards, and the entity."""
    level = _level("", root)
    for place in mapping.get("data", ()):
        text = jsontext.resolve(root, place)
        if text is not None and jsontext.kind(text) in {"object", "array"}:
            return (level,) if place else (), _level(place, text)
    envelopes: list[_Level] = []
    while len(envelopes) < _MOST_LEVELS and (inner := _wrapped(entity_type, level)) is not None:
        if envelopes and _is_part(entity_type, inner, level):
            break
        envelopes.append(level)
        level = inner
    return tuple(envelopes), level


def _level(pointer: str, text: JsonText) -> _Level:
    """An object, or the object in an array of one, as a level."""
    what = jsontext.kind(text)
    if what == "array":
        elements = jsontext.elements(text)
        if len(elements) != 1:
            raise _UnreadableError(
                f"{pointer or 'the body'} is an array of {len(elements)}, but one callback is one event"
            )
        pointer, text = f"{pointer}/0", elements[0]
        what = jsontext.kind(text)
    if what != "object":
        raise _UnreadableError(f"{pointer or 'the body'} is a JSON {what}, not an object")
    members = jsontext.members_in_place(text)
    return _Level(pointer, text, members, _known(wire.NAMES.intersection(members)))


def _wrapped(entity_type: EntityType, level: _Level) -> _Level | None:
    """The level inside, if this one is an envelope; None if it is the entity itself."""
    wrappers = level.known[wire.wrappers(entity_type)]
    if not wrappers:
        return None
    states_action = _states_action(level)
    gives_id = level.ids(wire.reference_names(entity_type)) or (states_action and level.ids(("id",)))
    is_entity = not states_action and _own_id(entity_type, level) is not None
    inside: list[_Level] = []
    for name in wrappers:
        text = level.value(name)
        if jsontext.kind(text) == "object" or (jsontext.kind(text) == "array" and not is_entity):
            inner = _level(level.at(name), text)
            if gives_id or _own_id(entity_type, inner) or _holds_entity(entity_type, inner):
                inside.append(inner)
    if len(inside) <= 1:
        return next(iter(inside), None)
    ids = {found.value for inner in inside if (found := _own_id(entity_type, inner))}
    if len(ids) > 1:
        raise _UnreadableError(
            f"{' and '.join(inner.pointer for inner in inside)} hold different entities; "
            "name the right one in JASPER_PAYLOAD_MAPPING (data)"
        )
    candidates = [inner for inner in inside if _own_id(entity_type, inner)] or inside
    telling = [inner for inner in candidates if not _says_nothing(entity_type, inner)]
    for other in telling[1:]:
        if _contradict(entity_type, telling[0], other):
            raise _UnreadableError(
                f"{telling[0].pointer} and {other.pointer} contradict each other; "
                "name the right one in JASPER_PAYLOAD_MAPPING (data)"
            )
    return next(iter(telling or candidates), None)


def _is_part(entity_type: EntityType, inner: _Level, level: _Level) -> bool:
    """Whether `level` is the entity already, within an envelope, and `inner` no more than an attribute of it.

    Raises _UnreadableError where either may be the entity.
    """
    own = wire.own_names(entity_type)
    outer_id = _first(level.ids(("id", "uuid")))
    if outer_id is None or _states_action(level) or _says_nothing(entity_type, level):
        return False
    if level.name in own:
        return True
    inner_id = _own_id(entity_type, inner)
    if inner_id is None or inner.name in own:
        return False
    if inner_id.value != outer_id.value:
        raise _UnreadableError(
            f"either {level.pointer} or {inner.pointer} may be the entity; "
            "name the right one in JASPER_PAYLOAD_MAPPING (data)"
        )
    return _says_nothing(entity_type, inner)


def _contradict(entity_type: EntityType, one: _Level, other: _Level) -> bool:
    """Whether two objects tell different things under the same name."""
    shared = one.members.keys() & other.members.keys() - wire.says_nothing(entity_type)
    return any(not jsontext.equal(one.value(name), other.value(name)) for name in shared)


def _says_nothing(entity_type: EntityType, level: _Level) -> bool:
    """Whether an object only says which entity it is about and when, but nothing of the entity itself."""
    silent = wire.says_nothing(entity_type)
    return all(name in silent or jsontext.equal(level.value(name), _BLANK) for name in level.members)


_BLANK = jsontext.quote(BLANK)


def _holds_entity(entity_type: EntityType, level: _Level) -> bool:
    """Whether an object without an id of its own wraps one that has one."""
    return any(
        _own_id(entity_type, _level(level.at(name), level.value(name)))
        for name in level.known[wire.wrappers(entity_type)]
        if jsontext.kind(level.value(name)) == "object"
    )


def _states_action(level: _Level) -> bool:
    return level.has_any(wire.ACTION_NAMES) or any(
        _is_telling(found.value) for found in level.scalars(_WEAK_ACTION_NAMES)
    )


def _is_telling(word: str) -> bool:
    """Whether a word names both what happened and to what, such as `product.updated`: no attribute looks like this."""
    return wire.action_of(word) is not None and bool(wire.entity_types_of(word))


# 2. Entity id


def _entity_id(payload: _Payload) -> str:
    found = next(iter(payload.mapped("entity_id")), None) or _built_in_id(payload)
    if found is None:
        raise _UnreadableError("no id of an entity was found; name its place in JASPER_PAYLOAD_MAPPING (entity_id)")
    try:
        size = len(found.value.encode())
    except UnicodeEncodeError as exc:
        raise _UnreadableError(f"the id at {found.place} holds a lone surrogate, which cannot be kept as text") from exc
    if "\0" in found.value:
        raise _UnreadableError(f"the id at {found.place} holds a NUL character, which cannot be kept as text")
    if size > LONGEST_ID:
        raise _UnreadableError(f"the id at {found.place} has {size} bytes; at most {LONGEST_ID} can be kept")
    payload.places["entity_id"] = found.place
    return found.value


def _built_in_id(payload: _Payload) -> _Found | None:
    """The entity's own id; else what only can mean the entity; else a plain `id`, where nothing contradicts it."""
    own = _own_id(payload.entity_type, payload.entity)
    if own is not None and (payload.envelopes or payload.is_bare):
        return own
    for names in (
        wire.reference_names(payload.entity_type),
        ("id", *wire.own_names(payload.entity_type), "data"),
        ("uuid",),
    ):
        found = [one for level in reversed(payload.around) for one in level.ids(names)]
        if len({one.value for one in found}) > 1:
            raise _UnreadableError(
                f"{' and '.join(one.place for one in found)} give different ids; "
                "name the right one in JASPER_PAYLOAD_MAPPING (entity_id)"
            )
        if found:
            return found[0]
    return None


def _own_id(entity_type: EntityType, level: _Level) -> _Found | None:
    return _first(level.ids(wire.id_names(entity_type)))


def _identifier(text: JsonText) -> str | None:
    """A JSON string that is not empty, or a whole number, as text; None for anything else."""
    value = _scalar(text)
    if value and (jsontext.kind(text) == "string" or _WHOLE_NUMBER.fullmatch(value)):
        return value
    return None


def _scalar(text: JsonText) -> str | None:
    """A string's value, or a number as it is spelled; None for anything else.

    A blanked secret is none: it is the same on every callback, and would make one entity or one delivery of them all.
    """
    match jsontext.kind(text):
        case "string":
            value = jsontext.string(text)
            return None if BLANK in value else value
        case "number":
            return text.decode()
        case _:
            return None


def _first(found: Sequence[_Found]) -> _Found | None:
    return found[0] if found else None


def _header_values(headers: Headers, names: Sequence[str]) -> Iterator[_Found]:
    if {name for name, _ in headers}.isdisjoint(names):
        return
    for wanted in names:
        for name, value in headers:
            if name == wanted and value and BLANK not in value:
                yield _Found(f"header:{name}", value)


# 3. Action


def _action(payload: _Payload) -> Action | None:
    found = next(iter(payload.mapped("action")), None)
    stated = [found] if found is not None else list(_words(payload))
    _check_entity_type(payload, stated)
    actions: dict[Action, _Found] = {}
    for one in stated:
        action = wire.action_of(one.value)
        if action is None:
            raise _UnreadableError(
                f"the word {one.value[:_LONGEST_SHOWN]!r} at {one.place} names no create, update or delete; "
                "name the right place in JASPER_PAYLOAD_MAPPING (action)"
            )
        actions.setdefault(action, one)
    if len(actions) > 1:
        raise _UnreadableError(
            f"{' and '.join(f'{one.place} ({action})' for action, one in actions.items())} contradict each other; "
            "name the right one in JASPER_PAYLOAD_MAPPING (action)"
        )
    for action, one in actions.items():
        payload.places["action"] = one.place
        return action
    return None


def _words(payload: _Payload) -> Iterator[_Found]:
    """Every word at a usual place for the action."""
    for level in payload.around:
        yield from level.scalars(wire.ACTION_NAMES)
        for weak in level.scalars(_WEAK_ACTION_NAMES):
            if _is_telling(weak.value) or (payload.envelopes and wire.action_of(weak.value)):
                yield weak
    for level in payload.beside():
        for found in level.scalars(_SIDE_ACTION_NAMES):
            if wire.action_of(found.value):
                yield found
    yield from _header_values(payload.headers, wire.ACTION_HEADERS)


def _check_entity_type(payload: _Payload, words: Sequence[_Found]) -> None:
    """A callback about another entity type than the address it came to is not read: one of both is wrong."""
    named = [found for level in payload.around for found in level.scalars(wire.ENTITY_TYPE_NAMES)]
    for found in (*words, *named):
        types = wire.entity_types_of(found.value)
        if types and payload.entity_type not in types:
            raise _UnreadableError(
                f"{found.place} says {found.value[:_LONGEST_SHOWN]!r}, but the callback came to "
                f"/callbacks/{payload.entity_type.collection}"
            )


# 4. Data, time, delivery id, version


def _data(payload: _Payload) -> JsonText | None:
    """The entity's text, unless it only says which entity it is."""
    if _says_nothing(payload.entity_type, payload.entity):
        return None
    payload.places["data"] = payload.entity.pointer
    return payload.entity.text


def _occurred_at(payload: _Payload, action: Action | None) -> datetime | None:
    for found in _times(payload, action):
        moment = parse_time(found.value)
        if moment is not None:
            payload.places["occurred_at"] = found.place
            return moment
    return None


def _times(payload: _Payload, action: Action | None) -> Iterator[_Found]:
    yield from payload.mapped("occurred_at")
    for level in payload.envelopes:
        yield from level.scalars(wire.TIME_NAMES)
    for level in payload.beside():
        yield from level.scalars(_SIDE_TIME_NAMES)
    for level in payload.envelopes:
        yield from level.scalars(wire.ENVELOPE_TIME_NAMES)
    if not payload.envelopes:
        names = wire.CERTAIN_TIME_NAMES if payload.is_bare else wire.TIME_NAMES
        vague = () if _says_nothing(payload.entity_type, payload.entity) else wire.VAGUE_TIME_NAMES
        yield from payload.entity.scalars(tuple(name for name in names if name not in vague))
    if action is Action.DELETE:
        yield from payload.entity.scalars(wire.DELETION_TIME_NAMES)
    yield from payload.entity.scalars(wire.ENTITY_TIME_NAMES)


def parse_time(text: str) -> datetime | None:
    """ISO 8601 (UTC where no zone is given), seconds, milliseconds or microseconds since 1970, an HTTP date or the
    spelling of Jasper's ping, as a time in UTC; None where it is none of these.
    """  # noqa: D205 - one sentence
    if len(text) > _LONGEST_TIME:
        return None
    try:
        if _DATE_AND_TIME.fullmatch(text):
            moment = datetime.fromisoformat(text.upper().removesuffix(" UTC"))
        elif _EPOCH.fullmatch(text):
            return _since_epoch(text)
        elif text.endswith(("GMT", "UTC", "+0000")):
            moment = parsedate_to_datetime(text)
        else:
            moment = datetime.strptime(text, _PING_TIME).replace(tzinfo=UTC)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return moment if _FIRST < moment < _LAST else None


def _since_epoch(text: str) -> datetime:
    whole = len(text.partition(".")[0])
    seconds_digits, milliseconds_digits = 11, 14
    unit = 1_000_000 if whole < seconds_digits else 1_000 if whole < milliseconds_digits else 1
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(Decimal(text) * unit))


def _delivery_key(payload: _Payload) -> str | None:
    for found in _delivery_keys(payload):
        payload.places["delivery_id"] = found.place
        return found.value
    return None


def _delivery_keys(payload: _Payload) -> Iterator[_Found]:
    yield from payload.mapped("delivery_id")
    yield from _header_values(payload.headers, wire.DELIVERY_HEADERS)
    for level in () if payload.is_bare else payload.around:
        yield from level.scalars(wire.DELIVERY_NAMES)
    for level in payload.beside():
        yield from level.scalars(wire.DELIVERY_NAMES)


def _is_stamped(entity: _Level) -> bool:
    """Whether an entity carries what changes with every change of it: `updated_at` or a version."""
    return any(entity.scalars(_STAMP_NAMES))
