"""Write preferences about descriptions that a program can check: the price comes last.

    pairs       {prompt, chosen, rejected}: two descriptions of one product, of which one keeps to it
    verdicts    {prompt, completion, label}: one description, and whether it keeps to it

The descriptions of `writing` follow the order of the list, so few of them keep to it by chance.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from graft.seedling.coverage import states
from graft.seedling.phrases import CLOSINGS
from graft.seedling.products import Product, products
from graft.seedling.writing import describe, prompt

PRICE = "price"


def pairs(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Return n pairs of descriptions, each of another product."""
    draw = random.Random(f"pairs {seed} {split}")
    return [
        {
            "prompt": prompt(item),
            "chosen": written(item, draw, last=True),
            "rejected": written(item, draw, last=False),
        }
        for item in islice(_priced(split, seed), n)
    ]


def verdicts(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Return n descriptions with a verdict; every second one is good."""
    draw = random.Random(f"verdicts {seed} {split}")
    items = enumerate(islice(_priced(split, seed), n))
    return [
        {"prompt": prompt(item), "completion": written(item, draw, last=i % 2 == 0), "label": i % 2 == 0}
        for i, item in items
    ]


def price_last(text: str, item: Product) -> bool:
    """Return whether the last sentence of a description states the price.

    >>> item = Product((("name", "Silver Otter"), ("type", "kettle"), ("price", "$34")))
    >>> price_last("A kettle. It costs $34.", item), price_last("It costs $34. A kettle.", item)
    (True, False)
    """
    return states(text.strip().rstrip(".").rpartition(". ")[2], item[PRICE])


def written(item: Product, draw: random.Random, *, last: bool) -> str:
    """Return a description of the product that states its price last, or earlier.

    Neither ends with a closing sentence, by which the two could be told apart.
    """
    named, price = item.attributes[:2], (PRICE, item[PRICE])
    others = [pair for pair in item.attributes[2:] if pair != price]
    draw.shuffle(others)
    at = len(others) if last else draw.randrange(len(others))
    ordered = replace(item, attributes=(*named, *others[:at], price, *others[at:]))
    while True:
        text = describe(ordered, draw)
        if price_last(text, item) == last and not text.endswith(CLOSINGS):
            return text


def _priced(split: str, seed: int) -> Iterator[Product]:
    """Yield the products that have a price."""
    return (item for item in products(split, seed) if any(key == PRICE for key, _ in item.attributes))
