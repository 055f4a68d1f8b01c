"""Draw loss curves as one SVG picture.

Each run has a panel: a line for the training loss, averaged over the last tenth of the steps so far, and dots
for the held-out loss.
"""

import math
from collections.abc import Sequence
from typing import Any

from page import picture

WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 190, 44, 30, 24  # of a panel, in pixels


def svg(runs: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]]) -> str:
    """Return the picture.  runs: {"objective", "model"}; curves: {"objective", "step", "loss",
    "held_loss"}."""
    width, height = len(runs) * (LEFT + WIDTH + GAP), TOP + HEIGHT + 34
    panels = [
        panel(
            run,
            [at for at in curves if at["objective"] == run["objective"]],
            index * (LEFT + WIDTH + GAP) + LEFT,
        )
        for index, run in enumerate(runs)
    ]
    return picture(width, height, "".join(panels))


def panel(run: dict[str, Any], curve: Sequence[dict[str, Any]], left: int) -> str:
    """Return one run's panel, its axis at x = left."""
    losses = smooth([at["loss"] for at in curve if "loss" in at])
    held = [(at["step"], at["held_loss"]) for at in curve if "held_loss" in at]
    values = losses + [loss for _, loss in held]
    low, high = math.floor(min(values)), math.ceil(max(values))

    def x(step: int) -> float:
        return left + WIDTH * step / len(losses)

    def y(loss: float) -> float:
        return TOP + HEIGHT * (high - loss) / (high - low)

    grid = "".join(
        f'<line class="g" x1="{left}" x2="{left + WIDTH}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v}</text>'
        for v in range(low, high + 1)
    )
    points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in enumerate(losses, 1))
    dots = "".join(f'<circle class="d" cx="{x(step):.1f}" cy="{y(loss):.1f}" r="3"/>' for step, loss in held)
    foot = TOP + HEIGHT + 16
    return (
        f'<text class="t" x="{left}" y="18">{run["objective"]}: {run["model"]}</text>{grid}'
        f'<polyline class="l" points="{points}"/>{dots}<text x="{left}" y="{foot}">0</text>'
        f'<text x="{left + WIDTH}" y="{foot}" text-anchor="end">step {len(losses)}</text>'
    )


def smooth(losses: Sequence[float]) -> list[float]:
    """Return for each step the mean loss of the last tenth of the steps so far.

    >>> smooth([4.0, 2.0])
    [4.0, 2.0]
    """
    spans = [max(1, end // 10) for end in range(1, len(losses) + 1)]
    return [sum(losses[end - n : end]) / n for end, n in enumerate(spans, 1)]
