"""What losses report, added up over micro-batches: numbers, or tables of numbers, summed in double precision.

Nothing waits for the device before everything is added.
"""

from collections.abc import Mapping
from typing import Any

import torch


def add(sums: dict[str, Any], metrics: Mapping[str, Any]) -> None:
    """Add the metrics of one loss to the sums: numbers, or tensors of any shape."""
    for name, value in metrics.items():
        value = value.detach().double() if isinstance(value, torch.Tensor) else value
        sums[name] = sums[name] + value if name in sums else value


def numbers(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sums as floats; tables as lists of them.

    >>> sums = {}
    >>> for hits in (2, 3):
    ...     add(sums, {"tokens": 4.0, "correct": torch.tensor(hits)})
    >>> numbers(sums)
    {'tokens': 8.0, 'correct': 5.0}
    """
    return {name: v.tolist() if isinstance(v, torch.Tensor) else float(v) for name, v in sums.items()}


def accuracy(sums: Mapping[str, Any]) -> dict[str, float]:
    """Return {"accuracy": the share of what is supervised that is right}; empty for losses without."""
    return {"accuracy": sums["correct"] / sums["tokens"]} if "correct" in sums else {}
