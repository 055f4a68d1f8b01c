"""Invent products: what they are called, what can be said about them, and which of them are held out.

A product is a name, a type and 3 to 6 further attributes, each a value of one or two words. Every product is
a pure function of (seed, index). Whether it is held out depends on its name alone (one name in ten, by hash),
so a held-out product has a name that no training text contains and, with it, an unseen combination of
attributes.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graft.errors import UsageError

SPLITS = ("train", "held-out")
HELD_OUT_SHARE = 10  # one name in ten


@dataclass(frozen=True)
class Product:
    """Something to be described. `attributes` begins with name and type, and keeps the order of its list."""

    attributes: tuple[tuple[str, str], ...]

    def __getitem__(self, key: str) -> str:
        return dict(self.attributes)[key]

    @property
    def split(self) -> str:
        """Return `held-out` or `train`, by a hash of the name."""
        digest = hashlib.sha256(self["name"].encode()).digest()
        return SPLITS[int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0]


@dataclass(frozen=True)
class Group:
    """Product types that share the attributes that make sense for them."""

    types: tuple[str, ...]
    keys: tuple[str, ...]
    materials: tuple[str, ...]
    features: tuple[str, ...]
    uses: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


_COMMON = ("colour", "material", "price", "feature", "use", "size")

_CLOTHS = tuple(
    f"{treated} {cloth}"
    for treated in _words("recycled, woven, brushed, washed, organic, quilted, ribbed, undyed")
    for cloth in _words("cotton, linen, leather, wool, canvas, nylon, hemp, denim, felt, velvet")
)
_SOLIDS = tuple(
    f"{treated} {solid}"
    for treated in _words("recycled, brushed, pressed, polished, reclaimed, painted, carved, forged")
    for solid in _words(
        "steel, oak, glass, bamboo, walnut, brass, cork, aluminium, ceramic, ash, maple, stone"
    )
)

GROUPS = {
    "light": Group(
        _words("desk lamp, floor lamp, lantern, reading light, night light, pendant light, torch"),
        (*_COMMON, "style"),
        _SOLIDS,
        _words(
            "touch dimmer, warm glow, swivel arm, folding stand, sleep timer, motion sensor, frosted shade"
        ),
        _words(
            "late reading, small bedrooms, narrow hallways, study corners, garden evenings, bedside tables"
        ),
    ),
    "bag": Group(
        _words("backpack, tote bag, suitcase, shoulder bag, duffel bag, laptop sleeve, satchel, camera bag"),
        (*_COMMON, "style"),
        _CLOTHS,
        _words(
            "hidden pocket, padded straps, rain cover, laptop sleeve, lockable zip, bottle holder, chest strap"
        ),
        _words(
            "weekend trips, daily commutes, school days, long flights, city walks, market mornings, short hikes"
        ),
    ),
    "kitchen": Group(
        _words(
            "kettle, teapot, frying pan, saucepan, coffee press, mixing bowl, blender, toaster, chopping board"
        ),
        (*_COMMON, "style"),
        _SOLIDS,
        _words("cool handle, glass lid, drip spout, fine filter, measuring marks, steam vent, heavy base"),
        _words("busy mornings, slow breakfasts, family dinners, small kitchens, baking days, camping stoves"),
    ),
    "furniture": Group(
        _words(
            "armchair, bookcase, side table, stool, bench, wardrobe, writing desk, coat rack, shoe cabinet"
        ),
        (*_COMMON, "style"),
        _SOLIDS,
        _words(
            "hidden drawer, rounded corners, soft cushion, adjustable feet, cable tray, folding top, quiet hinges"
        ),
        _words("small flats, home offices, children's rooms, reading corners, entrance halls, guest rooms"),
    ),
    "garment": Group(
        _words("jacket, raincoat, jumper, scarf, sun hat, shirt, apron, cardigan, winter coat"),
        (*_COMMON, "care", "style"),
        _CLOTHS,
        _words(
            "deep pockets, taped seams, hidden buttons, soft lining, high collar, reflective trim, elastic cuffs"
        ),
        _words("windy beaches, autumn walks, cold offices, rainy commutes, summer evenings, mountain huts"),
    ),
    "device": Group(
        _words("speaker, radio, alarm clock, headset, camera, keyboard, desk fan, weather station, e-reader"),
        (*_COMMON, "style"),
        _SOLIDS,
        _words("touch controls, splash proof case, quiet motor, voice prompts, night mode, fast charging"),
        _words(
            "home offices, loud trains, beach days, bedside tables, video calls, long journeys, open windows"
        ),
    ),
    "outdoor": Group(
        _words(
            "tent, sleeping bag, hammock, camping stove, cool box, picnic blanket, folding chair, water bottle"
        ),
        (*_COMMON, "care", "style"),
        _CLOTHS,
        _words(
            "double seams, quick release, carry handle, wind guard, mesh window, repair kit, storage sack"
        ),
        _words(
            "rocky camps, festival weekends, river banks, winter nights, long treks, family picnics, bike tours"
        ),
    ),
    "desk": Group(
        _words(
            "notebook, fountain pen, pencil case, desk organiser, wall calendar, sketchbook, letter tray, ruler"
        ),
        (*_COMMON, "style"),
        _SOLIDS,
        _words(
            "lay flat binding, numbered pages, smooth clip, ink window, elastic band, back pocket, non slip feet"
        ),
        _words(
            "travel notes, quick sketches, careful letters, busy desks, exam weeks, daily plans, long meetings"
        ),
    ),
}

_SHADES = _words("deep, pale, bright, soft, dark, warm, dusty, matte, smoky, misty")
_COLOURS = _words(
    "red, blue, green, yellow, orange, purple, brown, grey, black, white, pink, teal, ivory, crimson, plum, olive, navy"
)
_STYLES = _words("modern, rustic, vintage, minimal, nautical, industrial, classic, coastal, nordic, oriental")
_MOODS = _words("plain, bold, quiet, elegant, sturdy, simple, timeless, playful")
_CARES = _words("cold wash, hand wash, wipe clean, line dry, cool iron, spot clean, air dry, brush clean")
_SIZES = _words("tiny, small, compact, medium, large, huge, oversized, narrow, wide, tall")
_NUMBERS = _words(
    "eight, nine, eleven, twelve, fifteen, eighteen, twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety"
)
_FIRST_NAMES = _words(
    "Silver, Golden, Amber, Coral, Velvet, Crystal, Royal, Lunar, Solar, Polar, Arctic, Alpine, Urban, Rapid, Gentle, "
    "Lucky, Happy, Noble, Secret, Hidden, Wild, Little, Grand, Early, Lazy, Merry, Proud, Clever, Brave, Swift"
)
_LAST_NAMES = _words(
    "Falcon, Heron, Otter, Badger, Willow, Clover, Meadow, Harbour, Lagoon, Summit, Canyon, Comet, Meteor, Planet, "
    "Anchor, Arrow, Beacon, Compass, Feather, Pebble, Breeze, Thunder, Shadow, Whisper, Echo, Ember, Sparrow, Rabbit, "
    "Panther, Dolphin"
)


def _name(draw: random.Random) -> str:
    return f"{draw.choice(_FIRST_NAMES)} {draw.choice(_LAST_NAMES)}"


def _pair(first: tuple[str, ...], second: tuple[str, ...]) -> Callable[[random.Random], str]:
    return lambda draw: f"{draw.choice(first)} {draw.choice(second)}"


_VALUES: dict[str, Callable[[random.Random], str]] = {
    "colour": _pair(_SHADES, _COLOURS),
    "price": _pair(_NUMBERS, ("euros",)),
    "size": lambda draw: draw.choice(_SIZES),
    "style": _pair(_MOODS, _STYLES),
    "care": lambda draw: draw.choice(_CARES),
}


def invented_price(draw: random.Random) -> str:
    """Return a price that belongs to no product.

    >>> invented_price(random.Random(1))
    'eleven euros'
    """
    return _VALUES["price"](draw)


def product(seed: int, index: int) -> Product:
    """Return the product with this number.

    A string seeds the generator, so the draw is the same in every process.
    """
    draw = random.Random(f"product {seed} {index}")
    group = draw.choice(tuple(GROUPS.values()))
    of_group = {"material": group.materials, "feature": group.features, "use": group.uses}
    chosen = [("name", _name(draw)), ("type", draw.choice(group.types))]
    for key in draw.sample(group.keys, draw.randint(3, 6)):
        chosen.append((key, draw.choice(of_group[key]) if key in of_group else _VALUES[key](draw)))
    return Product(tuple(chosen))


def products(split: str, seed: int) -> Iterator[Product]:
    """Yield products of one split without end, always the same for the same seed."""
    if split not in SPLITS:
        raise UsageError(
            f"split={split!r} is not a split of the products", " or ".join(SPLITS), "use one of the two"
        )
    index = 0
    while True:
        candidate = product(seed, index)
        if candidate.split == split:
            yield candidate
        index += 1
