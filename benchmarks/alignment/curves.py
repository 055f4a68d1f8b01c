"""Draw, method by method, the share of held-out answers that satisfy the preference, as one SVG picture.

A panel for each method, a line for each seed; the highest horizontal line is the goal. The panel of the
cheated reward shows the reward that is trained on, and, dashed, the judge that is not.
"""

from collections.abc import Sequence
from typing import Any

from page import picture

WIDTH, HEIGHT, LEFT, TOP, GAP = 170, 150, 34, 30, 14  # of a panel, in pixels
GOAL = 0.9
DASHED = ".j{fill:none;stroke:#c4321f;stroke-width:1.6;stroke-dasharray:4 3}"
Curve = Sequence[dict[str, Any]]  # points with "seed" and "step"


def svg(panels: dict[str, tuple[Curve, dict[str, str]]]) -> str:
    """Return the picture.  panels: of each title, its points and the columns to draw, with their class."""
    drawn = [
        panel(title, points, columns, LEFT + index * (LEFT + WIDTH + GAP))
        for index, (title, (points, columns)) in enumerate(panels.items())
    ]
    return picture(len(panels) * (LEFT + WIDTH + GAP), TOP + HEIGHT + 34, "".join(drawn), DASHED)


def panel(title: str, points: Curve, columns: dict[str, str], left: int) -> str:
    """Return one panel with its axis at x = left, from 0 to 1."""
    last = max(point["step"] for point in points)

    def x(step: int) -> float:
        return left + WIDTH * step / last

    def y(share: float) -> float:
        return TOP + HEIGHT * (1 - share)

    grid = "".join(
        f'<line class="g" x1="{left}" x2="{left + WIDTH}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.5, GOAL)
    )
    lines = "".join(
        f'<polyline class="{style}" points="'
        + " ".join(
            f"{x(p['step']):.1f},{y(p[column]):.1f}" for p in points if p["seed"] == seed and column in p
        )
        + '"/>'
        for column, style in columns.items()
        for seed in sorted({point["seed"] for point in points})
    )
    foot = TOP + HEIGHT + 16
    return (
        f'<text class="t" x="{left}" y="18">{title}</text>{grid}{lines}<text x="{left}" y="{foot}">0</text>'
        f'<text x="{left + WIDTH}" y="{foot}" text-anchor="end">step {last}</text>'
    )
