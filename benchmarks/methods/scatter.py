"""Draw quality against trained parameters as one SVG picture: a panel for each task, a labelled point for
each line.

The curve joins the Pareto front: the points that no other beats in quality with as few parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from page import picture

WIDTH, HEIGHT, LEFT, TOP, GAP = 640, 520, 44, 30, 60  # of a panel, in pixels
LABEL, CHARACTER = 11, 5.6  # height of a label and width of its letters
STYLE = ".n{font-size:9.5px}.f{fill:#3465a4}.t1{stroke:#bbb;stroke-width:.7}"


@dataclass(frozen=True)
class Point:
    name: str
    trained: int
    quality: float


@dataclass(frozen=True)
class Panel:
    title: str
    axis: str
    points: list[Point]


def svg(panels: Sequence[Panel]) -> str:
    """Return the panels side by side as an SVG."""
    width, height = len(panels) * (LEFT + WIDTH + GAP), TOP + HEIGHT + 40
    content = "".join(drawn(panel, i * (LEFT + WIDTH + GAP) + LEFT) for i, panel in enumerate(panels))
    return picture(width, height, content, STYLE)


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that are better than all with as few parameters, from few to many.

    >>> [p.name for p in front([Point("a", 10, 1.0), Point("b", 20, 0.5), Point("c", 30, 2.0)])]
    ['a', 'c']
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.trained, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def drawn(panel: Panel, left: int) -> str:
    """Return one panel, its axis at x = left."""
    points = [p for p in panel.points if p.trained > 0 and math.isfinite(p.quality)]
    if not points:
        return f'<text class="t" x="{left}" y="18">{panel.title}</text>'
    first = math.floor(math.log10(min(p.trained for p in points)))
    last = max(math.ceil(math.log10(max(p.trained for p in points))), first + 1)
    low, high, step = ticks([p.quality for p in points])

    def x(trained: float) -> float:
        return left + WIDTH * (math.log10(trained) - first) / (last - first)

    def y(quality: float) -> float:
        return TOP + HEIGHT * (high - quality) / (high - low)

    foot = TOP + HEIGHT + 16
    parts = [f'<text class="t" x="{left}" y="18">{panel.title}</text>']
    for tick in range(round((high - low) / step) + 1):
        at = y(low + tick * step)
        parts.append(f'<line class="g" x1="{left}" x2="{left + WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{low + tick * step:g}</text>')
    for power in range(first, last + 1):
        parts.append(f'<text x="{x(10**power):.1f}" y="{foot}" text-anchor="middle">{10**power:,}</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{foot + 16}" text-anchor="middle">{panel.axis}</text>')
    best = front(points)
    joined = " ".join(f"{x(p.trained):.1f},{y(p.quality):.1f}" for p in best)
    parts.append(f'<polyline class="l" points="{joined}"/>')
    for point in points:
        kind = "f" if point in best else "d"
        parts.append(
            f'<circle class="{kind}" cx="{x(point.trained):.1f}" cy="{y(point.quality):.1f}" r="3"/>'
        )
    return "".join(parts + labels([(x(p.trained), y(p.quality), p.name) for p in points]))


def ticks(values: Sequence[float]) -> tuple[float, float, float]:
    """Return (lowest, highest, step) of about six round marks around the values.

    >>> ticks([31.0, 78.0])
    (30, 80, 10)
    """
    reach = max(max(values) - min(values), 1e-6)
    power = 10 ** math.floor(math.log10(reach / 5))
    step = next(power * unit for unit in (1, 2, 5, 10) if reach / (power * unit) <= 6)
    return math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step, step


def labels(places: Sequence[tuple[float, float, str]]) -> list[str]:
    """Write each name to the right of its point (x, y), or at the nearest free height with a line to the
    point."""
    taken: list[tuple[float, float, float]] = []
    drawn_labels = []
    for x, y, name in sorted(places, key=lambda place: place[1]):
        wide = CHARACTER * len(name)
        shifts = sorted((LABEL * i for i in range(-20, 21)), key=abs)
        inside = (s for s in shifts if TOP <= y + s <= TOP + HEIGHT - LABEL / 2)
        free = (
            s for s in inside if all(abs(y + s - b) >= LABEL or x + wide < a or c < x for a, b, c in taken)
        )
        at = y + next(free, 0)
        taken.append((x, at, x + wide))
        if at != y:
            drawn_labels.append(
                f'<line class="t1" x1="{x:.1f}" y1="{y:.1f}" x2="{x + 5:.1f}" y2="{at:.1f}"/>'
            )
        drawn_labels.append(f'<text class="n" x="{x + 5:.1f}" y="{at + 3:.1f}">{name}</text>')
    return drawn_labels
