"""Write preferences about descriptions that a program can check: the price comes last, and only there.

    pairs       {prompt, chosen, rejected}: two descriptions of one product, of which one keeps to it
    verdicts    {prompt, completion, label}: one description, and whether it keeps to it
    prompts     {prompt, price, attributes}: what a model answers itself, and what a program checks it by

All of them follow the order of the list in everything but the price, as the descriptions of `writing` do, few
of which keep to the preference by chance. About one in three that break it states the price in the last
sentence too: without these a reward model pays for saying the price twice, and a policy learns to.

The functions whose names end in `reward` judge the answers to `prompts`. They have the form that TRL's
trainers expect of a reward function, so a recipe names them as `graft.seedling.preferences:NAME`.
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
    """Return n pairs of descriptions, each of another product. The longer one is as often the better one."""
    draw = random.Random(f"pairs {seed} {split}")
    return [{"prompt": prompt(item), **_pair(item, draw)} for item in islice(_priced(split, seed), n)]


def verdicts(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Return n descriptions with a verdict; every second one is good."""
    draw = random.Random(f"verdicts {seed} {split}")
    rows = []
    for i, item in enumerate(islice(_priced(split, seed), n)):
        good = i % 2 == 0
        text = _pair(item, draw)["chosen" if good else "rejected"]
        rows.append({"prompt": prompt(item), "completion": text, "label": good})
    return rows


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


def keeping(item: Product, draw: random.Random) -> str:
    """Return a description of the product that states its price in the last sentence, and nowhere before."""
    price, others = _price_and_others(item)
    return _open_ended(item, [*others, price], draw, keeps=True)


def breaking(item: Product, draw: random.Random) -> str:
    """Return a description that states the price earlier, and one time in three in the last sentence too."""
    price, others = _price_and_others(item)
    at = draw.randrange(len(others))
    again = [price] if draw.random() < 1 / 3 else []
    return _open_ended(item, [*others[:at], price, *others[at:], *again], draw, keeps=False)


def _pair(item: Product, draw: random.Random) -> dict[str, str]:
    longer = draw.random() < 0.5  # whether the better one is: its length must not tell it
    while True:
        chosen, rejected = keeping(item, draw), breaking(item, draw)
        if len(chosen) != len(rejected) and (len(chosen) > len(rejected)) == longer:
            return {"chosen": chosen, "rejected": rejected}


def _price_and_others(item: Product) -> tuple[tuple[str, str], list[tuple[str, str]]]:
    """Return the product's price, and what its list has beside name, type and price."""
    price = (PRICE, item[PRICE])
    return price, [pair for pair in item.attributes[2:] if pair != price]


def _open_ended(item: Product, order: list[tuple[str, str]], draw: random.Random, *, keeps: bool) -> str:
    """Return a description in this order without a closing sentence, by which the two kinds could be told."""
    ordered = replace(item, attributes=(*item.attributes[:2], *order))
    while True:
        text = describe(ordered, draw)
        if only_last(text, item[PRICE]) == keeps and not text.endswith(CLOSINGS):
            return text


def _last_sentence(text: str) -> tuple[str, str]:
    """Return what stands before the last sentence of a text, and that sentence."""
    before, _, last = text.strip().rstrip(".").rpartition(". ")
    return before, last


def _priced(split: str, seed: int) -> Iterator[Product]:
    """Yield the products that have a price."""
    return (item for item in products(split, seed) if any(key == PRICE for key, _ in item.attributes))
