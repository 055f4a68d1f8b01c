"""Which classes were taken for which: how often each true class was answered by each."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

Counts = list[tuple[str, str, int]]


def confusion(predicted: Sequence[Any], true: Sequence[Any], labels: Sequence[str]) -> Counts:
    """Return (true class, predicted class, rows) of every pair that occurs, by the order of the classes.

    predicted, true: one class index per row, or a list with one per word.  labels: names of the classes.

    >>> confusion([0, 1, 1], [0, 0, 1], ["no", "yes"])
    [('no', 'no', 1), ('no', 'yes', 1), ('yes', 'yes', 1)]
    """
    tagged = bool(true) and isinstance(true[0], list)
    pairs = zip(chain(*true) if tagged else true, chain(*predicted) if tagged else predicted, strict=True)
    return [(labels[a], labels[b], count) for (a, b), count in sorted(Counter(pairs).items())]
