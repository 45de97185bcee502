"""The callbacks that the benchmark sends: products that are created and updated, each callback a new change.

All follows from the seed, so every subject of every round gets the same ones in the same order. One in four creates a
product, the others change one of those that are there: its price, its stock, a text, and `updated_at`, which advances by a
second with every callback. The bodies have 1 to 8 KB, about 3 KB in the median.
"""

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import msgspec

CREATED_SHARE = 0.25
LIVELY = 10_000
"""Updates are of one of so many products that were created last."""

FASTEST = 12_000
"""Callbacks a second for which requests are prepared: more than any subject that keeps them can take here."""

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
"""When the first of them happened."""

FIRST_ID = 1_000_001
_MEDIAN_TEXT = 1_750
_LONGEST_TEXT = 6_300
_TEXT = (
    "a able across against all along and any at back base before belt best body both bottom brass breathable bright brushed "
    "by can care carbon carry case clean clear close colour comfort comes cotton cover cut daily deep design double dries "
    "dry durable each easily edge every extra fabric fast feel finish firm fit flat for frame free from full gives glass "
    "grip guard hand handle heavy high holds in inner inside is it its keeps kitchen large lasting layer leather light "
    "lined linen lock long low machine made makes matt metal natural never not of oiled on one open or outer over pad "
    "panel pocket press quick quiet range ready recycled repair rinse robust rubber safe screw seam season seat set shape "
    "sharp side silent size slim smooth soft solid stainless stays steel stitched strap strong style surface table that "
    "the thick thin this through tight to tool top touch tough travel use warm wash water weather weight wide wind with "
    "without wool work year you your zip"
)
_WORDS = _TEXT.split()
_ATTRIBUTES = {
    "brand": ("Fernhill", "Oakridge", "Stillwater", "Hartmoor", "Kestrel & Sons"),
    "color": ("Black", "Grey", "Cream", "Bottle Green", "Marine"),
    "size": ("XS", "S", "M", "L", "XL", None),
    "material": ("cotton", "linen", "carbon steel", "cast iron", "oak"),
    "pattern": ("plain", "striped", "checked"),
    "season": ("spring", "summer", "autumn", "winter", "all year"),
    "care": ("hand wash", "machine wash 30 °C", "wipe with a damp cloth"),
    "country_of_origin": ("PT", "DE", "IT", "IN", "VN"),
    "warranty_years": (1, 2, 5, 10),
    "energy_class": (None, "A", "B", "C"),
    "hs_code": ("7323930010", "6110209100", "8215992000"),
}
_PATHS = [
    f"Shop/{room}/{kind}" for room in ("Home", "Kitchen", "Outdoor", "Men", "Women") for kind in ("New", "Sale", "All")
]

Product = dict[str, Any]


def bodies(
    catalog: Sequence[Product] = (), *, known: Sequence[Product] = (), first_id: int = FIRST_ID, seed: int = 1
) -> Iterator[bytes]:
    """Bodies of callbacks without an end, no two alike. Products are made up, or taken in turn from `catalog`.

    Their ids count from `first_id`. `known` are products that are there already, and so may be updated at once.
    """
    chance = random.Random(seed)
    alive = [dict(product) for product in known]
    created = 0
    for number in count():
        if not alive or chance.random() < CREATED_SHARE:
            action, identity = "created", first_id + created
            product = {**catalog[created % len(catalog)], "id": identity} if catalog else made_up(chance, identity)
            product["created_at"] = change_time(number)
            created += 1
            alive.append(product)
        else:
            action = "updated"
            product = alive[chance.randrange(max(0, len(alive) - LIVELY), len(alive))]
            _change(chance, product)
        product["updated_at"] = change_time(number)
        yield msgspec.json.encode({"event": f"product.{action}", "data": product})


def change_time(number: int) -> str:
    """When change number so much happened: each a second after the one before."""
    return (BEGIN + timedelta(seconds=number)).isoformat().replace("+00:00", "Z")


def made_up(chance: random.Random, identity: int) -> Product:
    """A product that nobody sells, without its times."""
    name = _words(chance, 4).title()
    sku = f"SKU-{identity}"
    length = min(_LONGEST_TEXT, int(chance.lognormvariate(0, 0.65) * _MEDIAN_TEXT))
    return {
        "id": identity,
        "sku": sku,
        "name": name,
        "type": chance.choice(("simple", "configurable")),
        "attribute_set": "Default",
        "status": "enabled",
        "visibility": "Catalog, Search",
        "description": f"<p>{_words(chance, length // 6)}.</p>",
        "short_description": _words(chance, 12),
        "url_key": name.lower().replace(" ", "-"),
        "categories": chance.sample(_PATHS, chance.randint(1, 4)),
        "price": chance.randint(400, 40_000) / 100,
        "special_price": None,
        "weight": chance.randint(1, 900) / 10,
        "tax_class": "Taxable Goods",
        "attributes": {attribute: chance.choice(values) for attribute, values in _ATTRIBUTES.items()},
        "images": [f"/{sku.lower()}/{sku.lower()}_{view}.jpg" for view in ("main", "back", "detail")],
        "inventory": {"qty": chance.randint(0, 400), "is_in_stock": True, "backorders": False, "min_qty": 0},
        "related": [f"SKU-{FIRST_ID + chance.randrange(identity)}" for _ in range(chance.randint(0, 8))],
        "parent_id": None,
    }


def _words(chance: random.Random, number: int) -> str:
    return " ".join(chance.choices(_WORDS, k=number))


def _change(chance: random.Random, product: Product) -> None:
    """Change a product in one of the ways in which products change; what a catalogue holds need not have any form."""
    kind = chance.random()
    if kind < 0.5:
        inventory = product.get("inventory")
        product["inventory"] = {**(inventory if isinstance(inventory, dict) else {}), "qty": chance.randint(0, 999)}
    elif kind < 0.9:
        product["price"] = chance.randint(400, 40_000) / 100
    else:
        product["short_description"] = _words(chance, 12)
