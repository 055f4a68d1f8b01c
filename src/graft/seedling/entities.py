"""Sentences about products with a tag for every word: which are the name, the price, the colour and so on.

    Meet  the  Silver  Otter   ,  a  kettle  in  deep      green     .
    O     O    B-NAME  I-NAME  O  O  B-TYPE  O   B-COLOUR  I-COLOUR  O

The descriptions of `writing` are written with a mark after every value, which tells whose it is without a
search that could mistake "laptop sleeve" the product for "laptop sleeve" the feature. One sentence of each
becomes a row.
"""

import random
import re
from itertools import islice
from typing import Any

from graft.data.tags import words_of
from graft.seedling.phrases import PHRASES
from graft.seedling.products import Product, products
from graft.seedling.writing import describe

KEYS = ("name", "type", *PHRASES)
MARKS = {key: chr(0xE000 + i) for i, key in enumerate(KEYS)}  # private characters, which no text contains
_SENTENCE, _MARK = re.compile(r"(?<=[.?!]) (?=[A-Z])"), re.compile(f"([{''.join(MARKS.values())}])")


def rows(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Return n rows {tokens, tags} in IOB2; the same arguments give the same rows in any process."""
    draw, made = random.Random(f"entities {seed} {split}"), []
    for item in islice(products(split, seed), n):
        marked = Product(tuple((key, value + MARKS[key]) for key, value in item.attributes))
        sentence = draw.choice(_SENTENCE.split(describe(marked, draw)))
        tokens, tags = tagged(sentence, item)
        made.append({"tokens": tokens, "tags": tags})
    return made


def tagged(sentence: str, item: Product) -> tuple[list[str], list[str]]:
    """Return the words of a marked sentence about this product, and their tags."""
    tokens: list[str] = []
    tags: list[str] = []
    key_of = {mark: key for key, mark in MARKS.items()}
    for part in _MARK.split(sentence):
        if part in key_of:  # the value stands before its mark
            key = key_of[part]
            size = len(words_of(item[key]))
            tags[-size:] = [f"B-{key.upper()}", *[f"I-{key.upper()}"] * (size - 1)]
        else:
            tokens += words_of(part)
            tags += ["O"] * (len(tokens) - len(tags))
    return tokens, tags
