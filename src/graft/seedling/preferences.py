"""Write preferences about descriptions that a program can check: the price comes last, and only there.

    pairs       {prompt, chosen, rejected}: two descriptions of one product, of which one keeps to it
    verdicts    {prompt, completion, label}: one description, and whether it keeps to it
    prompts     {prompt, price, attributes}: what a model answers itself, and what a program checks it by

All of them follow the order of the list in everything but the price, as the descriptions of `writing` do, few
of which keep to the preference by chance. It is broken in every way that a policy finds, since a reward model
pays for what it has never read: half of the rejected descriptions say the price too early, a quarter there
and at the end, a quarter never. Of five products one has no price, and what breaks the preference there is a
price that is invented.

The functions whose names end in `reward` judge the answers to `prompts`. They have the form that TRL's
trainers expect of a reward function, so a recipe names them as `graft.seedling.preferences:NAME`.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from graft.seedling.coverage import coverage, share_before, states
from graft.seedling.phrases import CLOSINGS
from graft.seedling.products import Product, invented_price, products
from graft.seedling.writing import describe, prompt

PRICE = "price"
UNPRICED = 5  # of so many products one has no price
_A_PRICE = re.compile(r"\beuros\b")


def pairs(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Return n pairs of descriptions, each of another product. The longer one is as often the better one."""
    return list(_pairs(n, seed, split, f"pairs {seed} {split}"))


def verdicts(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Return n descriptions with a verdict; every second one is good."""
    rows = enumerate(_pairs(n, seed, split, f"verdicts {seed} {split}"))
    return [
        {"prompt": row["prompt"], "completion": row["rejected" if i % 2 else "chosen"], "label": i % 2 == 0}
        for i, row in rows
    ]


def prompts(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Return n prompts, each with the price ("" if there is none) and all attributes of its product."""
    items = islice(_listed(split, seed), n)
    return [
        {"prompt": prompt(item), PRICE: _price(item), "attributes": dict(item.attributes)} for item in items
    ]


def price_last_reward(
    prompts: Sequence[str], completions: Sequence[str], price: Sequence[str], **columns: Any
) -> list[float]:
    """Return 1 for each description that keeps to the preference, 0 for the others.

    price: of each prompt's product; "" if it has none.

    >>> texts = ["A kettle. It costs $34.", "A kettle for $34. You pay $34.", "A kettle.", "A kettle."]
    >>> price_last_reward([""] * 4, texts, ["$34", "$34", "$34", ""])
    [1.0, 0.0, 0.0, 1.0]
    """
    return [float(keeps(text, value)) for text, value in zip(completions, price, strict=True)]


def price_late_reward(
    prompts: Sequence[str], completions: Sequence[str], price: Sequence[str], **columns: Any
) -> list[float]:
    """Return how much of each description stands before its price, from 0 to 1; 0 where it is missing.

    Of a product without a price it is 1 where none is invented.

    Answers that miss the goal of `price_last_reward` are told apart by it, so that it is reached sooner.

    >>> texts = ["$34 for it.", "It costs $34.", "It costs money.", "It costs money."]
    >>> price_late_reward([""] * 4, texts, ["$34", "$34", "$34", ""])
    [0.0, 0.6923076923076923, 0.0, 1.0]
    """
    return [
        (share_before(text, value) or 0.0) if value else float(keeps(text, value))
        for text, value in zip(completions, price, strict=True)
    ]


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


def keeps(text: str, price: str) -> bool:
    """Return whether the last sentence of a text states the price, and no sentence before it does; of a
    product without a price, "", whether the text invents none."""
    if not price:
        return not _A_PRICE.search(text)
    before, last = _last_sentence(text)
    return states(last, price) and not states(before, price)


def keeping(item: Product, draw: random.Random) -> str:
    """Return a description of the product that keeps to the preference."""
    priced, others = _divided(item)
    return _described(item, [*others, *priced], draw, good=True)


def breaking(item: Product, draw: random.Random) -> str:
    """Return a description that states the price too early, twice or not at all, or invents one."""
    priced, others = _divided(item)
    at = draw.randrange(len(others) + (not priced))
    early = [*others[:at], *(priced or [(PRICE, invented_price(draw))]), *others[at:]]
    order = draw.choice((early, early, [*early, *priced], others)) if priced else early
    return _described(item, order, draw, good=False)


def _pairs(n: int, seed: int, split: str, salt: str) -> Iterator[dict[str, str]]:
    draw = random.Random(salt)
    for i, item in enumerate(islice(_listed(split, seed), n)):
        longer = i // 2 % 2 == 0  # whether the better one is: lengths must not tell it, nor a verdict
        while True:
            chosen, rejected = keeping(item, draw), breaking(item, draw)
            if len(chosen) != len(rejected) and (len(chosen) > len(rejected)) == longer:
                break
        yield {"prompt": prompt(item), "chosen": chosen, "rejected": rejected}


def _divided(item: Product) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the product's price, if it has one, and what its list has beside name, type and price."""
    listed = item.attributes[2:]
    return [pair for pair in listed if pair[0] == PRICE], [pair for pair in listed if pair[0] != PRICE]


def _described(item: Product, order: list[tuple[str, str]], draw: random.Random, *, good: bool) -> str:
    """Return a description in this order.

    A price that comes last leaves no room for a closing sentence, so no description with a price has one: it
    would tell the two kinds apart.
    """
    ordered, price = replace(item, attributes=(*item.attributes[:2], *order)), _price(item)
    while True:
        text = describe(ordered, draw)
        if keeps(text, price) == good and not (price and text.endswith(CLOSINGS)):
            return text


def _last_sentence(text: str) -> tuple[str, str]:
    """Return what stands before the last sentence of a text, and that sentence."""
    before, _, last = text.strip().rstrip(".").rpartition(". ")
    return before, last


def _price(item: Product) -> str:
    return dict(item.attributes).get(PRICE, "")


def _listed(split: str, seed: int) -> Iterator[Product]:
    """Yield products; every fifth has no price, all others have one."""
    priced = filter(_price, products(split, seed))
    bare = (item for item in products(split, seed) if not _price(item))
    while True:
        yield from islice(priced, UNPRICED - 1)
        yield next(bare)
