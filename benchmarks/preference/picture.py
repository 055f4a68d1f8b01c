"""Draw what the iterations of runs on the model's own answers report as one SVG picture: a panel for each."""

from collections.abc import Sequence
from typing import Any

from page import picture

WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 150, 50, 30, 24  # of a panel, in pixels
ROWS = {"reward": "reward", "kl": "divergence from the reference, nats an answer"}
Curve = Sequence[dict[str, Any]]


def svg(curves: Curve) -> str:
    """Return the picture: a column for each part, a line for each seed."""
    parts = list(dict.fromkeys((at["part"], at["data"]) for at in curves))
    panels = []
    for column, (part, data) in enumerate(parts):
        own = [at for at in curves if (at["part"], at["data"]) == (part, data)]
        for row, (name, title) in enumerate(ROWS.items()):
            left, top = column * (LEFT + WIDTH + GAP) + LEFT, row * (TOP + HEIGHT + GAP) + TOP
            panels.append(panel(own, name, f"{part} on {data}: {title}", left, top))
    width = max(1, len(parts)) * (LEFT + WIDTH + GAP)
    return picture(width, len(ROWS) * (TOP + HEIGHT + GAP) + 10, "".join(panels))


def panel(curve: Curve, name: str, title: str, left: int, top: int) -> str:
    """Return one panel whose upper left corner is at (left, top)."""
    seeds: dict[int, list[float]] = {at["seed"]: [] for at in curve}
    for at in sorted(curve, key=lambda at: at["iteration"]):
        seeds[at["seed"]].append(at[name])
    lines = {seed: smooth(values) for seed, values in seeds.items()}
    low, high = (f(v for values in lines.values() for v in values) for f in (min, max))
    span = (high - low) or 1.0
    count = max(map(len, lines.values()))

    def points(values: Sequence[float]) -> str:
        return " ".join(
            f"{left + WIDTH * k / max(count - 1, 1):.1f},{top + HEIGHT * (high - v) / span:.1f}"
            for k, v in enumerate(values)
        )

    drawn = "".join(f'<polyline class="l" points="{points(values)}"/>' for values in lines.values())
    edges = "".join(
        f'<line class="g" x1="{left}" x2="{left + WIDTH}" y1="{y}" y2="{y}"/>'
        f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:.3g}</text>'
        for y, value in ((top, high), (top + HEIGHT, low))
    )
    foot = f'<text x="{left + WIDTH}" y="{top + HEIGHT + 16}" text-anchor="end">iteration {count}</text>'
    return f'<text class="t" x="{left}" y="{top - 10}">{title}</text>{edges}{drawn}{foot}'


def smooth(values: Sequence[float]) -> list[float]:
    """Return for each iteration the mean of the last tenth of those so far.

    >>> smooth([4.0, 2.0])
    [4.0, 2.0]
    """
    spans = [max(1, end // 10) for end in range(1, len(values) + 1)]
    return [sum(values[end - n : end]) / n for end, n in enumerate(spans, 1)]
