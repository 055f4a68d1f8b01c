"""Measure descriptions by program: does a text state what was asked for?

    coverage         share of a product's attribute values that its text contains: whole words, ignoring case
    against others   the same, for every OTHER product's values: what one gets without reading the list
    verbatim         share of texts that repeat half of the list's lines or more as they stand
    distinct-2       different word pairs per word pair, over all texts (Li et al. 2016, arXiv 1510.03055, §5)
    unique           different texts per text

The value of reference descriptions against others is the level of chance.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import fmean

from graft.seedling.products import Product


def states(text: str, value: str) -> bool:
    """Return whether the text contains the value as whole words.

    >>> states("It costs $34 and is Deep\\nGreen.", "deep green"), states("It costs $349.", "$34")
    (True, False)
    """
    return _pattern(value).search(_plain(text)) is not None


def share_before(text: str, value: str) -> float | None:
    """Return how much of the text stands before the value's first mention, 0 to 1; None if there is none.

    >>> share_before("$34 it is", "$34"), share_before("For $34", "$34"), share_before("For $340", "$34")
    (0.0, 0.5714285714285714, None)
    """
    plain = _plain(text)
    found = _pattern(value).search(plain)
    return None if found is None else found.start() / len(plain)


def coverage(text: str, item: Product) -> float:
    """Return the share of the product's attribute values, name and type included, that the text states."""
    return fmean(states(text, value) for _, value in item.attributes)


def mean_coverage(texts: Sequence[str], items: Sequence[Product]) -> float:
    """Return the mean coverage, text i against product i."""
    return fmean(map(coverage, texts, items))


def against_others(texts: Sequence[str], items: Sequence[Product]) -> float:
    """Return the mean coverage over all pairs of text i and product j, i ≠ j. Needs at least two of each."""
    return fmean(
        coverage(text, other) for i, text in enumerate(texts) for j, other in enumerate(items) if i != j
    )


def is_verbatim(text: str, item: Product) -> bool:
    """Return whether the text repeats at least half of the list's lines `key: value` as they stand."""
    return fmean(states(text, f"{key}: {value}") for key, value in item.attributes) >= 0.5


def verbatim_share(texts: Sequence[str], items: Sequence[Product]) -> float:
    """Return the share of texts that are mostly the attribute list itself."""
    return fmean(map(is_verbatim, texts, items))


def distinct_2(texts: Sequence[str]) -> float:
    """Return the number of different pairs of neighbouring words per pair; 0 if no text has two words."""
    pairs = [pair for text in texts for pair in pairwise(_words(text))]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def unique_share(texts: Sequence[str]) -> float:
    """Return the number of different texts per text, ignoring case and white space."""
    return len({_plain(text) for text in texts}) / len(texts)


@lru_cache(maxsize=1024)  # every text is searched for many values
def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> Iterator[str]:
    return (match.group() for match in re.finditer(r"\w+", text.casefold()))


@lru_cache(maxsize=4096)
def _pattern(value: str) -> re.Pattern[str]:
    # A number does not end before ".5" nor begin after "1.", a word does end before a full stop.
    return re.compile(rf"(?<!\w)(?<!\d[.,]){re.escape(_plain(value))}(?!\w)(?![.,]\d)")
