"""The difference of two JSON values as a list of changes: what was added, removed and replaced, by JSON Pointer (RFC 6901).

Pure, and exact: values are the texts they came as. Objects are compared member by member, arrays of equal length element
by element; everything else that differs is replaced as a whole, so that applying the list to the value before always
gives the value after. The list is bounded: a value in which very much differs is told member by member only.
"""

from collections.abc import Iterator
from functools import reduce

from msgspec import Struct

from app.domain import jsontext
from app.domain.jsontext import NotJsonError
from app.domain.values import JsonText


class Change(Struct, frozen=True, gc=False):
    """One difference at `path` (names not yet escaped): `before` is None where it was added, `after` where it was removed."""

    path: tuple[str, ...]
    before: JsonText | None
    after: JsonText | None

    def as_json(self) -> bytes:
        """The change as readers get it: `op`, `path`, and `from`, `to` where there is such a side."""
        operation = b"add" if self.before is None else b"remove" if self.after is None else b"replace"
        pointer = reduce(jsontext.append_to_pointer, self.path, "")
        text = b'{"op":"%b","path":%b' % (operation, jsontext.quote(pointer))
        if self.before is not None:
            text += b',"from":' + self.before
        if self.after is not None:
            text += b',"to":' + self.after
        return text + b"}"


_LARGEST = 256 * 1024
"""Characters of all paths, each with `_LEAST` for what stands around it, up to which every level is looked into.

Each change names its whole path, so that a few megabytes of tiny values under long names would else fill the memory."""

_LEAST = 32

_MOST_VALUES = 500_000
"""Commas in both values together up to which every level is looked into: to read half a million tiny values takes a second."""


def diff(before: JsonText, after: JsonText) -> list[Change]:
    """All changes that lead from one JSON value to the other, in the order of the names; empty where they are equal."""
    if len(before) + len(after) > _MOST_VALUES and before.count(b",") + after.count(b",") > _MOST_VALUES:
        return _coarse(before, after)
    changes: list[Change] = []
    size = 0
    for change in _differences((), before, after):
        changes.append(change)
        size += _LEAST + sum(map(len, change.path))
        if size > _LARGEST:
            return _coarse(before, after)
    return changes


def _coarse(before: JsonText, after: JsonText) -> list[Change]:
    """The top-level members that differ, each as a whole; a number spelled otherwise differs."""
    if not jsontext.kind(before) == jsontext.kind(after) == "object":
        return [Change((), before, after)]
    ours, theirs = jsontext.members(before), jsontext.members(after)
    names = sorted({*ours, *theirs})
    return [
        Change((name,), ours.get(name), theirs.get(name))
        for name in names
        if _is_other(ours.get(name), theirs.get(name))
    ]


def _is_other(one: JsonText | None, other: JsonText | None) -> bool:
    if one == other or one is None or other is None:
        return one != other
    return jsontext.kind(one) in {"number", "boolean", "null"} or jsontext.digest(one) != jsontext.digest(other)


def as_json(changes: list[Change]) -> JsonText:
    """The list of changes as JSON text."""
    return JsonText(b"[" + b",".join(change.as_json() for change in changes) + b"]")


def top_level_names(changes: list[Change]) -> tuple[str, ...]:
    """The top-level members that changed, each once, in order. Empty where the value as a whole was replaced.

    NUL and lone surrogates, which Postgres cannot hold in a text, become U+FFFD; the exact name is in the change's path.
    """
    names = dict.fromkeys(change.path[0] for change in changes if change.path)
    return tuple(dict.fromkeys(jsontext.storable(name) for name in names))


def _differences(path: tuple[str, ...], before: JsonText, after: JsonText) -> Iterator[Change]:
    if before == after:
        return
    what = jsontext.kind(before)
    if what == jsontext.kind(after) and what in {"object", "array"} and len(path) < jsontext.MAX_DEPTH:
        try:
            if what == "object":
                yield from _members_that_differ(path, before, after)
                return
            ours, theirs = jsontext.elements(before), jsontext.elements(after)
            if len(ours) == len(theirs):
                for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                    yield from _differences((*path, str(index)), one, other)
                return
        except NotJsonError:  # a repeated name: nothing under it can be told apart
            pass
    if not _are_equal(before, after):
        yield Change(path, before, after)


def _members_that_differ(path: tuple[str, ...], before: JsonText, after: JsonText) -> Iterator[Change]:
    for name, (ours, theirs) in jsontext.members_that_differ(before, after).items():
        if ours is None or theirs is None:
            yield Change((*path, name), ours, theirs)
        else:
            yield from _differences((*path, name), ours, theirs)


def _are_equal(before: JsonText, after: JsonText) -> bool:
    try:
        return jsontext.equal(before, after)
    except NotJsonError:
        return False
