"""Reads an entity as Jasper's API shows it, in a list or alone: its id, and when it was last changed. Pure.

Unlike a callback (`app.jasper.reading`) it is known to be an entity, so nothing has to be searched for. The id must come
out as the one that callbacks give, or every entity would seem to be missing: where the operator's mapping names another
member for it, that member counts here, too.
"""

import re
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from app.domain import jsontext
from app.domain.jsontext import NotJsonError
from app.domain.values import EntityType, JsonText
from app.errors import JasperUnavailableError
from app.jasper import wire
from app.jasper.reading import LONGEST_ID, Mappings, parse_time

_WHOLE_NUMBER = re.compile(rb"-?(0|[1-9][0-9]*)")


class ShownEntity(Struct, frozen=True):
    """An entity as Jasper shows it. `stamped` says that it carries what changes with every change of it."""

    entity_id: str
    data: JsonText
    members: dict[str, JsonText]
    updated_at: datetime | None
    stamped: bool


def shown_entity(entity_type: EntityType, text: JsonText, mapping: Mappings) -> ShownEntity:
    """Read one entity. Raises JasperUnavailableError, in words, where it is none or has no id that can be kept."""
    text, members = _unwrapped(entity_type, text)
    entity_id = next(filter(None, (_identifier(members.get(name)) for name in _id_names(entity_type, mapping))), None)
    if entity_id is None:
        raise JasperUnavailableError(
            f"an entity in Jasper's answer has no id (its members: {', '.join(sorted(members)[:10])}); "
            "name its place in JASPER_PAYLOAD_MAPPING (entity_id)"
        )
    if not _is_keepable(entity_id):
        raise JasperUnavailableError("an entity in Jasper's answer has an id that cannot be kept as text")
    return ShownEntity(
        entity_id=entity_id,
        data=text,
        members=members,
        updated_at=stamp_of(members),
        stamped=any(name in members for name in (*wire.ENTITY_TIME_NAMES, *wire.VERSION_NAMES)),
    )


def stamp_of(members: dict[str, JsonText]) -> datetime | None:
    """When an entity says that it was last changed."""
    for name in wire.ENTITY_TIME_NAMES:
        text = members.get(name)
        if text is not None and jsontext.kind(text) in {"string", "number"}:
            moment = parse_time(jsontext.string(text) if jsontext.kind(text) == "string" else text.decode())
            if moment is not None:
                return moment
    return None


def _unwrapped(entity_type: EntityType, text: JsonText) -> tuple[JsonText, dict[str, JsonText]]:
    """An entity and its members, taken out of a wrapper that has no id itself."""
    try:
        members = jsontext.members(text)
        if "id" not in members:
            for name in wire.wrappers(entity_type):
                inner = members.get(name)
                if inner is not None and jsontext.kind(inner) == "object" and "id" in jsontext.members(inner):
                    return inner, jsontext.members(inner)
    except NotJsonError as exc:
        raise JasperUnavailableError(f"an entity in Jasper's answer cannot be read: {exc}") from exc
    return text, members


def _id_names(entity_type: EntityType, mapping: Mappings) -> Sequence[str]:
    mapped = (place.rpartition("/")[2] for place in mapping.get("entity_id", ()) if place.startswith("/"))
    return (*mapped, "id", *wire.reference_names(entity_type), "uuid")


def _identifier(text: JsonText | None) -> str | None:
    if text is None:
        return None
    if jsontext.kind(text) == "string":
        return jsontext.string(text) or None
    return text.decode() if _WHOLE_NUMBER.fullmatch(text) else None


def _is_keepable(entity_id: str) -> bool:
    try:
        return "\0" not in entity_id and len(entity_id.encode()) <= LONGEST_ID
    except UnicodeEncodeError:  # a lone surrogate
        return False
