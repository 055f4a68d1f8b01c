"""Write preferences about descriptions that a program can check: the price comes last.

    pairs       {prompt, chosen, rejected}: two descriptions of one product, of which one keeps to it
    verdicts    {prompt, completion, label}: one description, and whether it keeps to it
    prompts     {prompt, price, attributes}: what a model answers itself, and what a program checks it by

The descriptions of `writing` follow the order of the list, so few of them keep to it by chance. The functions
whose names end in `reward` judge the answers to `prompts`. They have the form that TRL's trainers expect of a
reward function, so a recipe names them as `graft.seedling.preferences:NAME`.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from graft.seedling.coverage import coverage, share_before, states
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


def prompts(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Return n prompts, each with the price and all attributes, {key: value}, of its product."""
    items = islice(_priced(split, seed), n)
    return [
        {"prompt": prompt(item), PRICE: item[PRICE], "attributes": dict(item.attributes)} for item in items
    ]


def price_last_reward(
    prompts: Sequence[str], completions: Sequence[str], price: Sequence[str], **columns: Any
) -> list[float]:
    """Return 1 for each description whose last sentence states the price and no sentence before it; else 0.

    price: of each prompt's product.

    >>> texts = ["A kettle. It costs $34.", "A kettle for $34. You pay $34.", "A kettle."]
    >>> price_last_reward([""] * 3, texts, ["$34"] * 3)
    [1.0, 0.0, 0.0]
    """
    return [float(only_last(text, value)) for text, value in zip(completions, price, strict=True)]


def price_late_reward(
    prompts: Sequence[str], completions: Sequence[str], price: Sequence[str], **columns: Any
) -> list[float]:
    """Return how much of each description stands before its price, from 0 to 1; 0 without a price.

    Answers that miss the goal of `price_last_reward` are told apart by it, so that it is reached sooner.

    >>> price_late_reward([""] * 3, ["$34 for it.", "It costs $34.", "It costs money."], ["$34"] * 3)
    [0.0, 0.6923076923076923, 0.0]
    """
    return [share_before(text, value) or 0.0 for text, value in zip(completions, price, strict=True)]


def coverage_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    attributes: Sequence[Mapping[str, str]],
    **columns: Any,
) -> list[float]:
    """Return the share of a product's attribute values that each description states, from 0 to 1.

    attributes: {key: value} of each prompt's product.

    >>> coverage_reward([""], ["A kettle for $34."], [{"type": "kettle", "price": "$34", "size": "small"}])
    [0.6666666666666666]
    """
    items = [Product(tuple(values.items())) for values in attributes]
    return [coverage(text, item) for text, item in zip(completions, items, strict=True)]


def only_last(text: str, value: str) -> bool:
    """Return whether the last sentence of a text states the value, and no sentence before it does."""
    before, last = _last_sentence(text)
    return states(last, value) and not states(before, value)


def price_last(text: str, item: Product) -> bool:
    """Return whether the last sentence of a description states the price.

    >>> item = Product((("name", "Silver Otter"), ("type", "kettle"), ("price", "$34")))
    >>> price_last("A kettle. It costs $34.", item), price_last("It costs $34. A kettle.", item)
    (True, False)
    """
    return states(_last_sentence(text)[1], item[PRICE])


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


def _last_sentence(text: str) -> tuple[str, str]:
    """Return what stands before the last sentence of a text, and that sentence."""
    before, _, last = text.strip().rstrip(".").rpartition(". ")
    return before, last


def _priced(split: str, seed: int) -> Iterator[Product]:
    """Yield the products that have a price."""
    return (item for item in products(split, seed) if any(key == PRICE for key, _ in item.attributes))
