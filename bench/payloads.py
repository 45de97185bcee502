"""Generated callbacks through the whole pure road: prove, redact, interpret, idempotency keys, fold.

    python -m bench.payloads --count 1000000 --seed 1

Payload N of a seed is always the same one, so a violation can be seen again with `--first N --count 1`. What it checks of
each is in `check`: nothing raises, no byte is lost, nothing but secrets is blanked, another spelling of the same
payload reads the same, and what comes out can be stored. It shares no code with the receiver for making or comparing JSON.
"""

import argparse
import base64
import hmac
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

from app.domain.duplicates import idempotency_keys
from app.domain.fold import Folded, fold
from app.domain.values import Entity, EntityType, Headers, Reading, Unreadable
from app.jasper.proof import Location, prove
from app.jasper.reading import LONGEST_ID, interpret
from app.jasper.redact import BLANK, redact_body, redact_headers

SECRETS = ("whsec_7f/Zs+9aQ==kkk", 'key"\\é-of-another-kind')
"""Neither begins with a letter that makes an escape of a backslash before it."""

TYPES = tuple(EntityType)
MOST_ENTITIES = 2_000
"""States that are kept to fold into; then the fold begins anew."""

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)

Json = Any
"""None, a bool, a str, a `Number`, a list, or a `Members`."""


class Number(str):
    """A number as it is spelled."""

    __slots__ = ()


class Members(list[tuple[str, Json]]):
    """An object: its members in order, in which a name may stand twice."""

    __slots__ = ()


@dataclass(slots=True)
class Callback:
    """One generated callback. `value` is None where the body was damaged or is no JSON."""

    entity_type: EntityType
    headers: Headers
    mapping: dict[str, list[str]]
    body: bytes
    value: Json
    proven: bool | None = None
    """Whether the secret is there to be found; None where that cannot be said."""


class ViolationError(Exception):
    """A payload for which something does not hold."""


# Making payloads

_ENTITY_WORDS = ("product", "category", "brand", "concrete_entity", "concreteEntity", "products", "Product", "CATEGORY")
_VERBS = (
    *("create", "created", "creation", "add", "added", "insert", "new", "update", "updated", "change", "changed"),
    *("edit", "modified", "delete", "deleted", "deletion", "destroy", "destroyed", "remove", "removed"),
    *("archived", "undeleted", "simple", "published", "", "null", "created or updated"),
)
_ACTION_NAMES = (
    *("action", "event", "event_type", "eventType", "event_name", "operation", "topic", "trigger", "type"),
)
_WRAPPERS = ("data", "entity", "payload", "resource", "object", "record", "item", "body", "product", "brand")
_SIDES = ("event", "meta", "metadata", "webhook", "header", "headers")
_ID_NAMES = ("id", "uuid", "product_id", "productId", "category_id", "brand_id", "entity_id", "resource_id", "objectId")
_TIME_NAMES = (
    *("timestamp", "occurred_at", "time", "date", "event_time", "triggered_at", "created_at", "updated_at"),
    *("updatedAt", "modified_at", "deleted_at"),
)
_OTHER_NAMES = (
    "name",
    "price",
    "version",
    "revision",
    "entity_type",
    "tenant",
    "delivery_id",
    "event_id",
    "webhook_id",
)
_ODD_NAMES = ("", "a", "~", "/", "~1", "é", "\0", "\ud800", "\u202eid", "__proto__", "data.id", "id ", "ID")
_STRINGS = (
    *("", "x", "Hoodie - größer", "\0", "\ud83d", "\U0001f511", '"', "\\", "\\u0041", "\u202egnol", "\u2028", BLANK),
    *("null", "true", "1", "01", " 1", "-0", "NaN", "'; DROP TABLE events;--", "../../etc/passwd", "%00"),
)
_NUMBERS = (
    *("0", "-0", "1", "-1", "1.10", "1e400", "-1E-400", "1e999999999", "0.1", "9007199254740993", "1.0", "1e2"),
    *(
        "18446744073709551616",
        "-9223372036854775809",
        "1767323045",
        "1767323045000",
        "1767323045.5",
        "99999999999999999",
    ),
    *("9" * 64, "0." + "1" * 64, "2.5e-3"),
)
_LONG = ("a" * 600, "é" * 300, Number("1" + "0" * 4_400), Number("9" * 4_299), Number("0." + "3" * 5_000))
_TIMES = (
    *("2026-01-02T03:04:05Z", "2026-01-02 03:04:05", "2026-01-02T03:04:05.123456789Z", "20260102T030405Z"),
    *("2026-01-02T03:04:05+14:00", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59.999999Z"),
    *(
        "9999-12-31T23:59:59-01:00",
        "2026-02-30T00:00:00Z",
        "2026-01-02T24:00:00Z",
        "2026-01-02",
        "2016-12-31T23:59:60Z",
    ),
    *("Fri, 02 Jan 2026 03:04:05 GMT", "Tue Feb 7 19:05:03 UTC 2017", "1767323045", "1767323045678901", "soon", ""),
    *("Fri, 99 Jan 2026 03:04:05 GMT", "2026-01-02t03:04:05z", "2026-W01-5T03:04:05", "2026-01-02T03:04:05 UTC"),
)
_PIECES = (
    b"",
    b"\\",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"0",
    b"-",
    b"NaN",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b" ",
)
_PLACES = ("/data", "/data/0", "/data/id", "/meta/id", "/type", "/event", "", "/~1", "/nowhere")
_PARTS = ("action", "entity_id", "data", "occurred_at", "delivery_id")
_HEADERS = (
    *("host", "user-agent", "x-event", "x-jasper-event", "x-topic", "x-delivery-id", "idempotency-key", "signature"),
)
_HEADER_VALUES = ("product.updated", "deleted", "d-1", "", "\xff", "sha256=", "0" * 64, "A" * 43, "é" * 64, BLANK)


def callback(seed: int, number: int) -> Callback:
    """Payload `number` of a seed."""
    random = Random(seed << 40 | number)
    chance = random.random()
    value: Json
    if chance < 0.75:
        value = _envelope(random, 3, _Usual(random))
    elif chance < 0.95:
        value = _any(random, 3)
    else:
        value = _deep(random)
    made = Callback(TYPES[0] if random.random() < 0.7 else random.choice(TYPES), (), {}, b"", value)
    if random.random() < 0.15:
        made.mapping = {part: random.choices(_PLACES, k=2) for part in random.sample(_PARTS, random.randint(1, 3))}
        if "data" not in made.mapping:
            made.mapping["action"] = ["header:X-Event"]
    if isinstance(value, Members) and random.random() < 0.2:
        made.proven = _put_secret(random, value)
    made.body = spell(value, random if random.random() < 0.7 else None).encode("utf-8", "surrogatepass")
    if (chance := random.random()) < 0.15:
        made.body, made.value, made.proven = _damage(random, made.body), None, None
    elif chance < 0.16:
        made.body, made.value, made.proven = _bury(random, made.body), None, None
    _add_headers(random, made)
    return made


def _add_headers(random: Random, made: Callback) -> None:
    """Headers of all kinds, and in half of all cases one that proves the secret."""
    headers: list[tuple[str, str]] = []
    if random.random() < 0.3:
        headers = [(random.choice(_HEADERS), random.choice(_HEADER_VALUES)) for _ in range(random.randint(1, 4))]
    secret = random.choice(SECRETS)
    if (where := random.random()) < 0.25:
        headers.append(("x-any", random.choice([secret, f"Bearer {secret}", f"bearer   {secret}"])))
        made.proven = True
    elif where < 0.5:
        digest = hmac.digest(secret.encode(), made.body, "sha256")
        text = random.choice([digest.hex(), digest.hex().upper(), base64.b64encode(digest).decode()])
        headers.append(("x-any", random.choice([text, f"sha256={text}"])))
        made.proven = True
    elif made.proven is None and made.value is not None:
        made.proven = False
    random.shuffle(headers)
    made.headers = tuple(headers)


def _put_secret(random: Random, value: Members) -> bool | None:
    """Put a secret somewhere; whether it is proof there, None where that is open (a wrapper may hold it as well)."""
    secret = random.choice(SECRETS)
    match random.randint(0, 3):
        case 0:
            value.insert(0, ("token", secret))
            return True
        case 1:
            value.append(("auth", Members([("token", secret)])))
            return True
        case 2:
            value.append(("text", f"before {secret} after"))
        case _:
            value.append(("deep", [[[secret, f"Bearer {secret}"]]]))
    return False


class _Usual:
    """What the parts of one payload agree on, if they do."""

    def __init__(self, random: Random) -> None:
        self.identifier = _identifier(random)
        self.verb = random.choice(_VERBS[:20])
        self.noun = _ENTITY_WORDS[0] if random.random() < 0.7 else random.choice(_ENTITY_WORDS)


def _envelope(random: Random, depth: int, usual: _Usual) -> Json:
    """What a callback may look like: names that mean something, values that often do."""
    if random.random() < 0.06:
        return [_envelope(random, depth - 1, usual) for _ in range(random.choice([0, 1, 1, 1, 2]))] if depth else []
    found = Members([("id", usual.identifier)] if random.random() < 0.5 else [])
    for _ in range(random.randint(1, 5)):
        kind = random.random()
        if kind < 0.22:
            found.append((random.choice(_ID_NAMES), usual.identifier if random.random() < 0.9 else _identifier(random)))
        elif kind < 0.4:
            found.append((random.choice(_ACTION_NAMES), _word(random, usual)))
        elif kind < 0.55:
            found.append((random.choice(_TIME_NAMES), _time(random)))
        elif kind < 0.8 and depth:
            found.append((random.choice(_WRAPPERS), _envelope(random, depth - 1, usual)))
        elif kind < 0.86 and depth:
            found.append((random.choice(_SIDES), _envelope(random, 0, usual)))
        elif kind < 0.93:
            found.append((random.choice(_OTHER_NAMES), _scalar(random)))
        else:
            found.append((random.choice(_ODD_NAMES), _any(random, 2)))
    if random.random() < 0.95:
        return Members(dict(found).items())
    return found


def _any(random: Random, depth: int) -> Json:
    kind = random.random()
    if not depth or kind < 0.5:
        return _scalar(random)
    if kind < 0.7:
        return [_any(random, depth - 1) for _ in range(random.randint(0, 4))]
    names = (*_ODD_NAMES, *_ID_NAMES, *_WRAPPERS)
    return Members((random.choice(names), _any(random, depth - 1)) for _ in range(random.randint(0, 4)))


def _deep(random: Random) -> Json:
    """Nesting far beyond what is looked into."""
    value = _envelope(random, 1, _Usual(random))
    for _ in range(random.choice([5, 30, 63, 64, 65, 100, 300])):
        value = [value] if random.random() < 0.4 else Members([(random.choice(("data", "x", "product")), value)])
    return Members([("id", Number("1")), ("x", value)]) if random.random() < 0.5 else value


def _scalar(random: Random) -> Json:
    kind = random.random()
    if kind < 0.005:
        return random.choice(_LONG)
    if kind < 0.5:
        return random.choice(_STRINGS)
    if kind < 0.85:
        return Number(random.choice(_NUMBERS))
    return random.choice((None, True, False))


def _identifier(random: Random) -> Json:
    kind = random.random()
    if kind < 0.6:
        return Number(random.randint(1, 300))
    return str(random.randint(1, 300)) if kind < 0.8 else _scalar(random)


def _time(random: Random) -> Json:
    text = (
        random.choice(_TIMES)
        if random.random() < 0.6
        else f"2026-0{random.randint(1, 9)}-11T10:0{random.randint(0, 9)}:00Z"
    )
    return Number(text) if text.isdecimal() and random.random() < 0.5 else text


def _word(random: Random, usual: _Usual) -> Json:
    if random.random() < 0.05:
        return _any(random, 1)
    usually = random.random() < 0.9
    verb, noun = (usual.verb, usual.noun) if usually else (random.choice(_VERBS), random.choice(_ENTITY_WORDS))
    word = random.choice(("{0}", "{0}", "{1}.{0}", "{1}_{0}", "{1}/{0}", "{0}.{1}", "{1}.image.{0}", "jasper:{1}:{0}"))
    return random.choice((str, str.upper, str.title, str.swapcase))(word.format(verb, noun))


def _damage(random: Random, body: bytes) -> bytes:
    """Bytes changed, taken out, put in or cut off."""
    damaged = bytearray(body)
    for _ in range(random.randint(1, 3)):
        position = random.randint(0, len(damaged))
        damaged[position : position + random.randint(0, 2)] = random.choice(_PIECES)
    if random.random() < 0.1:
        del damaged[random.randint(0, len(damaged)) :]
    return bytes(damaged)


def _bury(random: Random, body: bytes) -> bytes:
    """Nesting beyond what can be read, with or without its end."""
    begin, end = random.choice([(b"[", b"]"), (b'{"data":', b"}"), (b'{"id":1,"x":[', b"]}")])
    depth = random.choice([400, 900, 1_000, 1_100, 10_000])
    return begin * depth + body + end * random.choice([depth, 0])


# Spelling JSON

_SHORT = {'"': r"\"", "\\": r"\\", "/": r"\/", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t"}


def spell(value: Json, random: Random | None) -> str:
    """A value as JSON text: compact, or with white space, order of members and escapes as chance has it."""
    pieces: list[str] = []
    _spell(value, random, pieces.append)
    return "".join(pieces)


def _spell(value: Json, random: Random | None, put: Callable[[str], None]) -> None:
    space = "" if random is None else random.choice(("", "", " ", "\n", "\t\r "))
    if isinstance(value, Number):
        put(value)
    elif isinstance(value, str):
        put(json.dumps(value) if random is None else _spell_string(value, random))
    elif isinstance(value, Members):
        members = list(value)
        if random is not None and len({name for name, _ in members}) == len(members):
            random.shuffle(members)
        put("{")
        for number, (name, inner) in enumerate(members):
            put(f",{space}" if number else space)
            put(json.dumps(name) if random is None else _spell_string(name, random))
            put(f"{space}:")
            _spell(inner, random, put)
        put(f"{space}}}")
    elif isinstance(value, list):
        put("[")
        for number, inner in enumerate(value):
            put(f"{space},{space}" if number else "")
            _spell(inner, random, put)
        put(f"{space}]")
    else:
        put(json.dumps(value))


def _spell_string(value: str, random: Random) -> str:
    """A string whose characters are escaped, all, some or where they must be."""
    share = random.choice((0.0, 0.0, 0.2, 1.0))
    pieces = ['"']
    for char in value:
        raw = char >= " " and char not in '"\\' and not "\ud800" <= char <= "\udfff"
        if raw and random.random() >= share:
            pieces.append(char)
        elif char in _SHORT and random.random() < 0.5:
            pieces.append(_SHORT[char])
        else:
            units = char.encode("utf-16-be", "surrogatepass").hex(" ", 2).split()
            pieces.extend(f"\\u{unit.upper() if share == 1 else unit}" for unit in units)
    pieces.append('"')
    return "".join(pieces)


# The road


@dataclass(slots=True)
class Road:
    """What the pure road makes of callbacks, and the state they fold into."""

    entities: dict[tuple[EntityType, str], Entity] = field(default_factory=dict)
    sequence: int = 0

    def take(self, made: Callback, headers: Headers, body: bytes) -> tuple[Reading | Unreadable, tuple[bytes, ...]]:
        """Read one callback whose secrets are blanked, fold it; returns the reading and its keys."""
        reading = interpret(made.entity_type, headers, body, made.mapping)
        if isinstance(reading, Unreadable):
            return reading, ()
        keys = idempotency_keys(made.entity_type, reading, body)
        self.sequence += 1
        identity = (made.entity_type, reading.entity_id)
        folded = fold(
            self.entities.get(identity), reading, entity_type=made.entity_type, sequence=self.sequence, received_at=NOW
        )
        _check_folded(folded)
        if len(self.entities) >= MOST_ENTITIES and identity not in self.entities:
            self.entities.clear()
        self.entities[identity] = folded.entity
        return reading, keys


def check(made: Callback, road: Road, random: Random) -> Reading | Unreadable:
    """Put one callback through the road. Raises ViolationError, or whatever the road raised."""
    proof = prove(made.headers, made.body, SECRETS, Location("auto"))
    if made.proven is not None and made.proven != (proof is not None):
        raise ViolationError(f"the proof is {proof}, but proven is {made.proven}")
    headers = redact_headers(made.headers, SECRETS, [], proof and proof.partition(":")[2])
    body = redact_body(made.body, SECRETS)
    _check_redacted(made, body)
    reading, keys = road.take(made, headers, body)
    if isinstance(reading, Reading):
        _check_storable(reading, body)
    elif not reading.reason or "\0" in reading.reason or len(reading.reason.encode()) > 2_000:
        raise ViolationError("the reason cannot be stored")
    json.dumps(reading.places).encode()
    if made.value is not None:
        _check_spelling(made, headers, reading, keys, random)
    return reading


def _check_redacted(made: Callback, body: bytes) -> None:
    """No secret is left, and nothing else was touched."""
    for secret in SECRETS:
        if secret.encode() in body or json.dumps(secret)[1:-1].encode() in body:
            raise ViolationError("a secret is left in the body")
    if body != made.body and redact_body(body, SECRETS) != body:
        raise ViolationError("redaction is not done after one time")
    if made.value is not None and body != made.body and _parse(body) != _blanked(_parse(made.body)):
        raise ViolationError("redaction changed something else")


def _blanked(value: Json) -> Json:
    if isinstance(value, str) and not isinstance(value, Number):
        bare = value[7:].strip() if value[:7].lower() == "bearer " else value
        if bare in SECRETS:
            return BLANK
        for secret in SECRETS:
            value = value.replace(secret, BLANK)
        return value
    if isinstance(value, Members):
        return Members((_blanked(name), _blanked(inner)) for name, inner in value)
    return [_blanked(inner) for inner in value] if isinstance(value, list) else value


def _check_storable(reading: Reading, body: bytes) -> None:
    """Every byte of the data came from the body, and Postgres can hold what it has to."""
    if reading.data is not None and (body.find(reading.data) < 0 or reading.data.count(0)):
        raise ViolationError("the data is no slice of the body")
    size = len(reading.entity_id.encode())
    if not 0 < size <= LONGEST_ID or "\0" in reading.entity_id or BLANK in reading.entity_id:
        raise ViolationError("the id cannot be stored")
    if reading.occurred_at is not None and reading.occurred_at.tzinfo is not UTC:
        raise ViolationError("the time is not in UTC")


def _check_folded(folded: Folded) -> None:
    if (event := folded.event) is None:
        return
    for text in (*event.changed, event.changes.decode(), (event.data or b"").decode()):
        if "\0" in text:
            raise ViolationError("the event cannot be stored")
        text.encode()
    json.loads(event.changes, parse_int=len, parse_float=len)


def _check_spelling(
    made: Callback, headers: Headers, reading: Reading | Unreadable, keys: tuple[bytes, ...], random: Random
) -> None:
    """The same payload in another spelling reads the same."""
    body = redact_body(spell(made.value, random).encode("utf-8", "surrogatepass"), SECRETS)
    other = interpret(made.entity_type, headers, body, made.mapping)
    if isinstance(reading, Unreadable) or isinstance(other, Unreadable):
        if type(reading) is not type(other):
            raise ViolationError(f"another spelling is read otherwise: {body!r}")
        return
    for name in Reading.__struct_fields__:
        one, two = getattr(reading, name), getattr(other, name)
        if name == "data" and one is not None and two is not None:
            one, two = _sorted(_parse(one)), _sorted(_parse(two))
        if one != two:
            raise ViolationError(f"another spelling has another {name}: {body!r}")
    if _is_canonical(made.value) and keys != idempotency_keys(made.entity_type, other, body):
        raise ViolationError(f"another spelling counts as another delivery: {body!r}")


def _is_canonical(value: Json, depth: int = 0) -> bool:
    """Whether every spelling of a value has the same digest: no lone surrogate, no name twice, nothing endless."""
    if isinstance(value, Members):
        names = {name for name, _ in value}
        if len(names) != len(value) or not all(_is_canonical(name) for name in names):
            return False
        return depth < 100 and all(_is_canonical(inner, depth + 1) for _, inner in value)
    if isinstance(value, list):
        return depth < 100 and all(_is_canonical(inner, depth + 1) for inner in value)
    if isinstance(value, Number):
        return len(value) < _LONGEST_NUMBER
    return not isinstance(value, str) or not any("\ud800" <= char <= "\udfff" for char in value)


_LONGEST_NUMBER = 4_300
"""Digits of an integer beyond which a digest goes letter by letter."""


def _parse(text: bytes) -> Json:
    """A JSON text by the standard library alone, numbers as they are spelled."""
    return json.loads(text, object_pairs_hook=Members, parse_int=Number, parse_float=Number)


def _sorted(value: Json) -> Json:
    """A value with the members of its objects in order, but for those with a name twice."""
    if isinstance(value, Members):
        inside = Members((name, _sorted(inner)) for name, inner in value)
        if len({name for name, _ in inside}) == len(inside):
            inside.sort(key=lambda member: member[0])
        return inside
    return [_sorted(inner) for inner in value] if isinstance(value, list) else value


# The run


@dataclass(slots=True)
class Report:
    """What came of a run. Times are in seconds."""

    taken: int = 0
    readings: int = 0
    inferred: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    slowest_number: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[int, str, bytes]] = field(default_factory=list)


def run(seed: int, first: int, count: int) -> Iterator[Report]:
    """Check payloads `first` to `first + count - 1`; yields the report after each of them, the same one always."""
    report, road = Report(), Road()
    started = time.perf_counter()
    for number in range(first, first + count):
        made = callback(seed, number)
        begun = time.perf_counter()
        try:
            reading = check(made, road, Random(number))
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is what we are looking for
            report.violations.append((number, f"{type(exc).__name__}: {exc}", made.body))
        else:
            if isinstance(reading, Reading):
                report.readings += 1
                report.inferred += reading.action is None
            else:
                report.reasons[_kind_of(reading.reason)] += 1
        finished = time.perf_counter()
        if finished - begun > report.slowest:
            report.slowest, report.slowest_number = finished - begun, number
        report.taken += 1
        report.seconds = finished - started
        yield report


def _kind_of(reason: str) -> str:
    """A reason without what differs from payload to payload."""
    words = (("#" if set(word) & set("/'\"()0123456789") else word) for word in reason.partition("; ")[0].split())
    return " ".join(words)[:100]


def main() -> int:
    """The command; returns 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.payloads", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=100_000, help="how many payloads")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other payloads")
    parser.add_argument("--first", type=int, default=0, help="the number of the first payload")
    given = parser.parse_args()
    report = Report()
    for report in run(given.seed, given.first, given.count):
        if report.taken % 20_000 == 0:
            print(f"{report.taken} of {given.count}, {len(report.violations)} violations", file=sys.stderr, flush=True)
    unreadable = sum(report.reasons.values())
    print(f"payloads    {report.taken} (seed {given.seed}), {report.taken / report.seconds:.0f} a second")
    print(f"readings    {report.readings}, of them {report.inferred} without an action word")
    print(f"unreadable  {unreadable}, for {len(report.reasons)} distinct reasons")
    for reason, times in report.reasons.most_common(12):
        print(f"            {times:8} {reason}")
    print(f"slowest     {report.slowest * 1000:.1f} ms, payload {report.slowest_number}")
    print(f"violations  {len(report.violations)}")
    for number, what, body in report.violations[:20]:
        print(f"\nseed {given.seed}, payload {number}: {what[:2000]}\n{body!r}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
