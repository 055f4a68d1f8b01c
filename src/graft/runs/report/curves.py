"""Curves and charts as a page draws them: smoothed where they are noisy, thinned where they are long."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeGuard

MOST = 800  # points of a curve on a page; a screen has no more
NOISY = 30  # points from which on a curve is smoothed
STEP = "step"


@dataclass(frozen=True)
class Curve:
    """A line through points, from left to right.

    style: line, faint, dashed or bars.  right: whether the axis on the right is its own.
    colour: the number of its colour; -1 is the next that no curve of the chart has.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"
    right: bool = False
    colour: int = -1


@dataclass(frozen=True)
class Chart:
    """Curves over one axis, called `x`.  wide: whether it takes a page's whole width."""

    title: str
    curves: Sequence[Curve]
    x: str = STEP
    wide: bool = False

    def json(self) -> dict[str, Any]:
        """Return the chart as the page's script reads it. All charts over steps share their axis."""
        curves, following = [], 0
        for curve in self.curves:
            colour = curve.colour if curve.colour >= 0 else following
            following = max(following, colour + 1)
            x, y = thinned(curve.x, curve.y)
            told = {"name": curve.name, "x": short(x), "y": short(y), "style": curve.style}
            curves.append({**told, "right": curve.right, "colour": colour})
        return {"x": self.x, "shared": self.x == STEP, "wide": self.wide, "curves": curves}


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours: a twentieth of all, fewer at the ends.

    >>> smoothed([3.0, 6.0, 9.0])
    [4.5, 6.0, 7.5]
    """
    reach = max(1, len(values) // 40)
    sums = [0.0, *accumulate(values)]
    parts = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in parts]


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most MOST points: of each part of a long curve the lowest and the highest, so that no spike
    is lost, and its first and last."""
    if len(x) <= MOST:
        return list(x), list(y)
    size = -(-len(x) // (MOST // 2 - 1))
    kept = {0, len(x) - 1}
    for start in range(0, len(x), size):
        part = range(start, min(start + size, len(x)))
        kept |= {min(part, key=y.__getitem__), max(part, key=y.__getitem__)}
    places = sorted(kept)
    return [x[i] for i in places], [y[i] for i in places]


def short(values: Sequence[float]) -> list[float]:
    """Return numbers with six digits: more cannot be seen.

    >>> short([1, 0.123456789, 2e-05])
    [1, 0.123457, 2e-05]
    """
    return [value if isinstance(value, int) else float(f"{value:.6g}") for value in values]


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value can be drawn."""
    return type(value) in (int, float) and math.isfinite(value)  # True and False are none
