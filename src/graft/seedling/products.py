"""Invented products: what they are called, what can be said of them, and which of them are held out.

A product is a name, a type and 3 to 6 further attributes, each a value of one to three words. Every product is a pure
function of (seed, index). Whether it is held out is a function of its name alone (one name in ten, by hash), so a
held-out product has a name that no training text contains and, with it, an unseen combination of attributes.
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
    """A thing to be described. `attributes` begins with name and type; the order is the order of its list."""

    attributes: tuple[tuple[str, str], ...]

    def __getitem__(self, key: str) -> str:
        return dict(self.attributes)[key]

    @property
    def split(self) -> str:
        """`held-out` or `train`, by a hash of the first word of the name (`Aroda` and `Aroda 7` go together)."""
        digest = hashlib.sha256(self["name"].split()[0].encode()).digest()
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


_COMMON = ("brand", "colour", "material", "weight", "price", "feature", "use", "origin", "warranty")

_CLOTHS = tuple(
    f"{treated} {cloth}"
    for treated in _words("recycled, woven, brushed, coated, washed, natural, quilted, ribbed, organic, heavy")
    for cloth in _words("cotton, linen, leather, wool, canvas, nylon, hemp, denim, felt, velvet")
)
_SOLIDS = tuple(
    f"{treated} {solid}"
    for treated in _words("recycled, brushed, pressed, polished, coated, natural, reclaimed, painted, smooth, strong")
    for solid in _words("steel, oak, glass, bamboo, walnut, brass, cork, aluminium, ceramic, ash, maple, copper, stone")
)

GROUPS = {
    "light": Group(
        _words("desk lamp, floor lamp, lantern, reading light, night light, pendant light, torch"),
        (*_COMMON, "size", "power", "style"),
        _SOLIDS,
        _words("touch dimmer, warm glow, swivel arm, folding stand, sleep timer, motion sensor, frosted shade"),
        _words("late reading, small bedrooms, narrow hallways, study corners, garden evenings, bedside tables"),
    ),
    "bag": Group(
        _words("backpack, tote bag, suitcase, shoulder bag, duffel bag, laptop sleeve, satchel, camera bag"),
        (*_COMMON, "size", "capacity", "style"),
        _CLOTHS,
        _words("hidden pocket, padded straps, rain cover, laptop sleeve, lockable zip, bottle holder, chest strap"),
        _words("weekend trips, daily commutes, school days, long flights, city walks, market mornings, short hikes"),
    ),
    "kitchen": Group(
        _words("kettle, teapot, frying pan, saucepan, coffee press, mixing bowl, blender, toaster, chopping board"),
        (*_COMMON, "size", "capacity", "style"),
        _SOLIDS,
        _words("cool handle, glass lid, drip spout, fine filter, measuring marks, steam vent, heavy base"),
        _words("busy mornings, slow breakfasts, family dinners, small kitchens, baking days, camping stoves"),
    ),
    "furniture": Group(
        _words("armchair, bookcase, side table, stool, bench, wardrobe, writing desk, coat rack, shoe cabinet"),
        (*_COMMON, "size", "style", "finish"),
        _SOLIDS,
        _words("hidden drawer, rounded corners, soft cushion, adjustable feet, cable tray, folding top, quiet hinges"),
        _words("small flats, home offices, children's rooms, reading corners, entrance halls, guest rooms"),
    ),
    "garment": Group(
        _words("jacket, raincoat, jumper, scarf, sun hat, shirt, apron, cardigan, winter coat"),
        (*_COMMON, "fit", "care", "style"),
        _CLOTHS,
        _words("deep pockets, taped seams, hidden buttons, soft lining, high collar, reflective trim, elastic cuffs"),
        _words("windy beaches, autumn walks, cold offices, rainy commutes, summer evenings, mountain huts"),
    ),
    "device": Group(
        _words("speaker, radio, alarm clock, headset, camera, keyboard, desk fan, weather station, e-reader"),
        (*_COMMON, "size", "power", "battery"),
        _SOLIDS,
        _words("touch controls, splash proof case, quiet motor, voice prompts, night mode, fast charging"),
        _words("home offices, loud trains, beach days, bedside tables, video calls, long journeys, open windows"),
    ),
    "outdoor": Group(
        _words("tent, sleeping bag, hammock, camping stove, cool box, picnic blanket, folding chair, water bottle"),
        (*_COMMON, "size", "capacity", "care"),
        _CLOTHS,
        _words("double seams, quick release, carry handle, wind guard, mesh window, repair kit, storage sack"),
        _words("rocky camps, festival weekends, river banks, winter nights, long treks, family picnics, bike tours"),
    ),
    "desk": Group(
        _words("notebook, fountain pen, pencil case, desk organiser, wall calendar, sketchbook, letter tray, ruler"),
        (*_COMMON, "size", "finish", "style"),
        _SOLIDS,
        _words("lay flat binding, numbered pages, smooth clip, ink window, elastic band, back pocket, non slip feet"),
        _words("travel notes, quick sketches, careful letters, busy desks, exam weeks, daily plans, long meetings"),
    ),
}

_SHADES = _words("deep, pale, bright, soft, dark, light, warm, dusty, matte, smoky")
_COLOURS = _words(
    "red, blue, green, yellow, orange, purple, brown, grey, black, white, pink, teal, ivory, copper, sand, plum, "
    "olive, navy"
)
_STYLES = _words("modern, rustic, vintage, minimal, nautical, industrial, classic, playful, coastal, nordic")
_MOODS = _words("plain, bold, quiet, elegant, sturdy, relaxed, simple, timeless")
_FINISHES = _words("satin, gloss, waxed, oiled, lacquered, powder coated, sanded, hammered, etched, raw")
_FITS = _words("loose, slim, regular, boxy, tailored, relaxed, cropped, long")
_CARES = _words("cold wash, hand wash, wipe clean, line dry, cool iron, spot clean, air dry, brush clean")
_PLACES = _words(
    "Portugal, Denmark, Japan, Italy, Canada, Poland, Norway, Mexico, Vietnam, Austria, Ireland, Chile, Kenya, "
    "Finland, Wales"
)
_BRANDS = _words(
    "Oakham, Linden, Harrow, Velkor, Brightside, Tamsin, Northway, Calder, Fernhill, Juno, Marlow, Quist, Redfern, "
    "Solberg, Thistle, Umbra Works, Vantage, Wren and Co, Yarrow, Zephyr, Ashdown, Bellweather, Copperleaf, Dunmore"
)
_STARTS = _words(
    "Ar, Bel, Cor, Dav, El, Fen, Gal, Hal, Is, Jor, Kal, Lum, Mar, Nor, Or, Pel, Quin, Ros, Sol, Tar, Ul, Ven, Wil, "
    "Yor, Zan"
)
_MIDDLES = _words("a, e, i, o, u, an, el, in, or, ul, av, em")
_ENDS = _words("da, ro, ta, la, no, ris, ton, via, wick, mar, den, ley, so, bra, nix, que, lo, fa")


def _name(draw: random.Random) -> str:
    name = draw.choice(_STARTS) + draw.choice(_MIDDLES) + draw.choice(_ENDS)
    return f"{name} {draw.randint(2, 99)}" if draw.random() < 0.3 else name


def _pair(first: tuple[str, ...], second: tuple[str, ...]) -> Callable[[random.Random], str]:
    return lambda draw: f"{draw.choice(first)} {draw.choice(second)}"


_VALUES: dict[str, Callable[[random.Random], str]] = {
    "brand": lambda draw: draw.choice(_BRANDS),
    "colour": _pair(_SHADES, _COLOURS),
    "weight": lambda draw: draw.choice((f"{draw.randint(2, 98) * 10} g", f"{draw.randint(10, 99) / 10} kg")),
    "price": lambda draw: f"{draw.choice('$€£')}{draw.randint(5, 299)}",
    "size": lambda draw: f"{draw.randint(8, 120)} cm {draw.choice(('tall', 'wide', 'long'))}",
    "capacity": lambda draw: f"{draw.randint(2, 60)} litres",
    "power": lambda draw: f"{draw.randint(3, 90)} watts",
    "battery": lambda draw: f"{draw.randint(4, 72)} hours",
    "warranty": lambda draw: f"{draw.randint(2, 15)} years" if draw.random() < 0.6 else f"{draw.randint(6, 30)} months",
    "style": _pair(_MOODS, _STYLES),
    "finish": lambda draw: draw.choice(_FINISHES),
    "fit": lambda draw: draw.choice(_FITS),
    "care": lambda draw: draw.choice(_CARES),
    "origin": lambda draw: draw.choice(_PLACES),
}


def product(seed: int, index: int) -> Product:
    """The product with this number. A string seeds the generator, so the draw is the same in every process."""
    draw = random.Random(f"product {seed} {index}")
    group = draw.choice(tuple(GROUPS.values()))
    own = {"material": group.materials, "feature": group.features, "use": group.uses}
    chosen = [("name", _name(draw)), ("type", draw.choice(group.types))]
    for key in draw.sample(group.keys, draw.randint(3, 6)):
        chosen.append((key, draw.choice(own[key]) if key in own else _VALUES[key](draw)))
    return Product(tuple(chosen))


def products(split: str, seed: int) -> Iterator[Product]:
    """Products of one split without end, always the same for the same seed."""
    if split not in SPLITS:
        raise UsageError(f"split={split!r} is no split of the products", " or ".join(SPLITS), "use one of the two")
    index = 0
    while True:
        candidate = product(seed, index)
        if candidate.split == split:
            yield candidate
        index += 1
