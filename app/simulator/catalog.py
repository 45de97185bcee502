"""The catalogue: what Jasper knows of products, categories, brands and concrete entities, and believable changes of it.

Knows no HTTP, no webhooks and no clock: the time of a change is given in, and the same seed, times and requests always
give the same changes. A state that has been handed out is never touched again; a change makes a new one.
"""

import copy
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from app.simulator.options import EntityType, SimulatorOptions, TimeFormat, TimeResolution

Entity = dict[str, Any]
Action = Literal["create", "update", "delete"]
Kind = Literal["price", "stock", "text", "category", "new", "gone", "back"]

# Out of a hundred changes of a shop's catalogue, most are prices and stock.
KIND_WEIGHTS: dict[Kind, int] = {"stock": 40, "price": 30, "text": 14, "category": 8, "new": 4, "gone": 3, "back": 1}
_PRODUCT_ONLY: frozenset[Kind] = frozenset({"price", "stock", "category"})
_RANDOM_PICKS = 20
# An invented shop for kitchen and garden, for those who have no file at hand.
_BUILTIN = Path(__file__).parent / "builtin"
_NOTICES = (
    "Now with free returns.",
    "Packed without plastic.",
    "Back by popular demand.",
    "Measurements have been corrected.",
    "Made in small batches.",
    "Care instructions are enclosed.",
)


class CatalogError(Exception):
    """A catalogue file cannot be used; the message names the file, the line and the reason."""


class ChangeRefusedError(Exception):
    """The wanted change is impossible: no such entity, or none to which this kind of change applies."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one entity. `entity` is its state afterwards (for a delete: its last state, with `deleted_at`)."""

    sequence: int
    entity_type: EntityType
    action: Action
    kind: Kind | None
    entity: Entity
    changed_at: datetime

    @property
    def entity_id(self) -> Any:
        """The id as the catalogue has it, a number or a text."""
        return self.entity["id"]


@dataclass(frozen=True, slots=True)
class _Record:
    """A state, and when it came to be at the catalogue's resolution."""

    entity: Entity
    changed_at: datetime


class _Collection:
    """All entities of one type, present and gone, by their id as text."""

    def __init__(self, entities: Iterable[Entity], loaded_at: datetime) -> None:
        self.live = {str(entity["id"]): _Record(entity, loaded_at) for entity in entities}
        self.gone: dict[str, _Record] = {}
        self._made = 0

    def sorted_live(self) -> list[Entity]:
        return sorted((record.entity for record in self.live.values()), key=_by_id)

    def sorted_gone(self) -> list[Entity]:
        return sorted((record.entity for record in self.gone.values()), key=_by_id)

    def new_id(self) -> Any:
        """An id never used before, of the kind that the others have."""
        ids = [record.entity["id"] for records in (self.live, self.gone) for record in records.values()]
        if all(isinstance(value, int) for value in ids):
            return max(ids, default=0) + 1
        self._made += 1
        return f"sim{self._made:08d}"


def _by_id(entity: Entity) -> tuple[int, int, str]:
    """Numbers in their order, then texts in theirs."""
    value = entity["id"]
    return (0, value, "") if isinstance(value, int) else (1, 0, str(value))


def read_jsonl(path: Path) -> list[Entity]:
    """The JSON objects of a file, one a line; empty lines are passed over.

    Raises CatalogError for a file that cannot be read, a line that is no JSON object with an `id` (a number or a text),
    and an id that came before.
    """
    entities: list[Entity] = []
    seen: set[str] = set()
    try:
        # By newline only: JSON may hold other characters that Python takes for the end of a line.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise CatalogError(f"{path}: cannot be read ({exc})") from exc
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entity = json.loads(line, parse_constant=_refuse_constant, parse_float=_finite)
        except (ValueError, RecursionError) as exc:
            raise CatalogError(f"{path}, line {number}: no JSON ({exc})") from exc
        if not isinstance(entity, dict):
            raise CatalogError(f"{path}, line {number}: not a JSON object")
        identity = entity.get("id")
        if isinstance(identity, bool) or not isinstance(identity, int | str) or identity == "":
            raise CatalogError(f"{path}, line {number}: no `id` that is a whole number or a text")
        if str(identity) in seen:
            raise CatalogError(f"{path}, line {number}: the id {identity!r} came before")
        seen.add(str(identity))
        entities.append(entity)
    if not entities:
        raise CatalogError(f"{path}: holds no entity")
    return entities


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def format_time(moment: datetime, resolution: TimeResolution, style: TimeFormat) -> str:
    """A moment in UTC as the simulated Jasper writes it."""
    text = (
        moment.astimezone(UTC)
        .replace(tzinfo=None)
        .isoformat(
            sep=" " if style == "space" else "T",
            timespec="seconds" if resolution == "second" else "microseconds",
        )
    )
    return text + {"zulu": "Z", "offset": "+00:00", "space": ""}[style]


class Catalog:
    """The four collections and the ways in which they change.

    Whatever `created_at` and `updated_at` a file holds, here they begin at `loaded_at`: a simulator that is started
    anew then never seems to be older than what it said before. Raises CatalogError if a file cannot be used.
    """

    def __init__(self, options: SimulatorOptions, *, loaded_at: datetime) -> None:
        self._options = options
        self._random = options.random_for("catalog")
        self._sequence = 0
        stamp = self._floor(loaded_at)
        products = read_jsonl(options.catalog or _BUILTIN / "product.jsonl")
        self._category_paths = sorted(
            {path for product in products for path in _texts(product.get("categories"))},
        )
        categories = read_jsonl(options.categories) if options.categories else _categories_of(self._category_paths)
        loaded: dict[EntityType, list[Entity]] = {
            "product": products,
            "category": categories,
            "brand": read_jsonl(_BUILTIN / "brand.jsonl"),
            "concrete_entity": read_jsonl(_BUILTIN / "concrete_entity.jsonl"),
        }
        written = self.format_time(stamp)
        self._collections: dict[EntityType, _Collection] = {
            entity_type: _Collection(
                ({**entity, "created_at": written, "updated_at": written} for entity in entities), stamp
            )
            for entity_type, entities in loaded.items()
        }

    def format_time(self, moment: datetime) -> str:
        """A moment as this catalogue writes it."""
        return format_time(moment, self._options.time_resolution, self._options.time_format)

    def entities(self, entity_type: EntityType) -> list[Entity]:
        """The present state of all entities of a type, in the order of their ids. Not to be changed."""
        return self._collections[entity_type].sorted_live()

    def gone(self, entity_type: EntityType) -> list[Entity]:
        """The last state of all deleted entities of a type, in the order of their ids. Not to be changed."""
        return self._collections[entity_type].sorted_gone()

    def find(self, entity_type: EntityType, entity_id: str) -> Entity | None:
        """One present entity by its id as text, or None."""
        record = self._collections[entity_type].live.get(entity_id)
        return record.entity if record else None

    def load(self, entity_type: EntityType) -> list[Change]:
        """All entities of a type as creations; their time is that of their latest change."""
        records = self._collections[entity_type].live
        return [
            self._change(entity_type, "create", None, records[str(entity["id"])])
            for entity in self.entities(entity_type)
        ]

    def change(
        self,
        now: datetime,
        *,
        kind: Kind | None = None,
        entity_type: EntityType | None = None,
        entity_id: str | None = None,
    ) -> Change | None:
        """Change something, as wanted or as chance has it.

        None if it cannot be done before the next tick of the resolution, because `updated_at` would not grow. Raises
        ChangeRefusedError if it cannot be done at all.
        """
        chosen_type = self._random.choice(self._options.changing_types) if entity_type is None else entity_type
        collection = self._collections[chosen_type]
        possible = self._possible_kinds(chosen_type, collection, entity_id)
        if kind is None:
            if not possible:
                raise ChangeRefusedError(f"there is no {chosen_type} {entity_id}")
            kind = self._random.choices(possible, weights=[KIND_WEIGHTS[name] for name in possible])[0]
        elif kind not in possible:
            raise ChangeRefusedError(f"{kind!r} applies to no {chosen_type}" + (f" {entity_id}" if entity_id else ""))

        stamp = self._floor(now)
        if kind == "new":
            return self._create(chosen_type, collection, stamp)
        source = collection.gone if kind == "back" else collection.live
        identity = self._pick(source, entity_id, stamp)
        if identity is None:
            return None
        before = source[identity]
        # Clocks step back at times; updated_at does not.
        moment = max(stamp, before.changed_at)
        after = copy.deepcopy(before.entity)
        after["updated_at"] = self.format_time(moment)
        if kind == "gone":
            after["deleted_at"] = after["updated_at"]
            del collection.live[identity]
            collection.gone[identity] = _Record(after, moment)
            return self._change(chosen_type, "delete", kind, collection.gone[identity])
        if kind == "back":
            del after["deleted_at"], collection.gone[identity]
        else:
            mutate = _MUTATIONS[kind]
            while _same_but_for_time(after, before.entity):
                mutate(self._random, after, self._category_paths)
        collection.live[identity] = _Record(after, moment)
        return self._change(chosen_type, "create" if kind == "back" else "update", kind, collection.live[identity])

    def until_next_tick(self, now: datetime) -> timedelta:
        """How long until a time can be written that differs from the one of `now`."""
        if self._options.time_resolution == "microsecond":
            return timedelta(microseconds=1)
        return timedelta(seconds=1, microseconds=-now.microsecond)

    def _possible_kinds(self, entity_type: EntityType, collection: _Collection, entity_id: str | None) -> list[Kind]:
        """The kinds of change that some entity of the type, or the one that is named, can undergo now."""
        is_live = entity_id in collection.live if entity_id else bool(collection.live)
        is_gone = entity_id in collection.gone if entity_id else bool(collection.gone)
        applies: dict[Kind, bool] = {
            "stock": is_live,
            "price": is_live,
            "text": is_live,
            "category": is_live and len(self._category_paths) > 1,
            "new": entity_id is None,
            # The last one stays: an empty catalogue would have nothing left to copy new entities from.
            "gone": is_live and len(collection.live) > 1,
            "back": is_gone,
        }
        return [
            kind for kind in KIND_WEIGHTS if applies[kind] and (entity_type == "product" or kind not in _PRODUCT_ONLY)
        ]

    def _pick(self, records: dict[str, _Record], entity_id: str | None, stamp: datetime) -> str | None:
        """An entity that may change at this time, or None if there is none just now."""

        def may_change(identity: str) -> bool:
            return self._options.same_tick_changes or records[identity].changed_at < stamp

        if entity_id is not None:
            return entity_id if may_change(entity_id) else None
        identities = list(records)
        for _ in range(_RANDOM_PICKS):
            identity = self._random.choice(identities)
            if may_change(identity):
                return identity
        rested = [identity for identity in identities if may_change(identity)]
        return self._random.choice(rested) if rested else None

    def _create(self, entity_type: EntityType, collection: _Collection, stamp: datetime) -> Change:
        """A new entity, much like one that is there."""
        template = self._random.choice(list(collection.live.values())).entity
        identity = collection.new_id()
        written = self.format_time(stamp)
        entity = {
            **copy.deepcopy(template),
            "id": identity,
            "name": f"{template.get('name') or entity_type} (No. {identity})",
            "created_at": written,
            "updated_at": written,
        }
        if entity_type == "product":
            entity["sku"] = f"{template.get('sku', 'SKU')}-{identity}"
            _change_price(self._random, entity, self._category_paths)
            _change_stock(self._random, entity, self._category_paths)
        collection.live[str(identity)] = _Record(entity, stamp)
        return self._change(entity_type, "create", "new", collection.live[str(identity)])

    def _change(self, entity_type: EntityType, action: Action, kind: Kind | None, record: _Record) -> Change:
        self._sequence += 1
        return Change(self._sequence, entity_type, action, kind, record.entity, record.changed_at)

    def _floor(self, moment: datetime) -> datetime:
        return moment.replace(microsecond=0) if self._options.time_resolution == "second" else moment


def _texts(value: object) -> list[str]:
    """The texts of a list; nothing of anything else, since a file may hold categories of another form."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _categories_of(paths: Sequence[str]) -> list[Entity]:
    """A category for every path that products name, with its parent where that is a category too."""
    numbers = {path: number for number, path in enumerate(paths, start=1)}
    return [
        {
            "id": number,
            "name": path.rpartition("/")[2],
            "path": path,
            "description": None,
            "parent_id": numbers.get(path.rpartition("/")[0]),
        }
        for path, number in numbers.items()
    ]


def _same_but_for_time(one: Entity, other: Entity) -> bool:
    return {**one, "updated_at": None} == {**other, "updated_at": None}


def _change_price(chance: random.Random, entity: Entity, _paths: Sequence[str]) -> None:
    price = entity.get("price")
    if isinstance(price, bool) or not isinstance(price, int | float) or price <= 0:
        price = 10.0
    if entity.get("special_price") is not None and chance.random() < 0.5:  # noqa: PLR2004 # an offer ends as often as it is renewed
        entity["special_price"] = None
    elif chance.random() < 0.3:  # noqa: PLR2004 # most price changes are no special offers
        entity["special_price"] = round(price * chance.uniform(0.6, 0.9), 2)
    else:
        entity["price"] = max(0.01, round(price * chance.uniform(0.85, 1.18), 2))


def _change_stock(chance: random.Random, entity: Entity, _paths: Sequence[str]) -> None:
    inventory = entity.get("inventory")
    stock = dict(inventory) if isinstance(inventory, dict) else {}
    quantity = stock.get("qty")
    if not isinstance(quantity, int) or quantity <= 0:
        quantity = chance.randint(20, 200)
    else:
        quantity = max(0, quantity - chance.randint(1, 12))
    entity["inventory"] = {**stock, "qty": quantity, "is_in_stock": quantity > 0}


def _change_text(chance: random.Random, entity: Entity, _paths: Sequence[str]) -> None:
    notice = chance.choice(_NOTICES)
    if chance.random() < 0.5:  # noqa: PLR2004 # either of the two texts
        entity["short_description"] = f"{entity.get('name') or 'This'}. {notice}"
        return
    description = entity.get("description")
    text = description if isinstance(description, str) else ""
    for earlier in _NOTICES:
        text = text.removesuffix(f"<p>{earlier}</p>").rstrip("\n")
    entity["description"] = f"{text}\n<p>{notice}</p>" if text else f"<p>{notice}</p>"


def _change_category(chance: random.Random, entity: Entity, paths: Sequence[str]) -> None:
    current = _texts(entity.get("categories"))
    path = chance.choice(paths)
    entity["categories"] = [item for item in current if item != path] if path in current else [*current, path]


_MUTATIONS: dict[Kind, Callable[[random.Random, Entity, Sequence[str]], None]] = {
    "price": _change_price,
    "stock": _change_stock,
    "text": _change_text,
    "category": _change_category,
}
