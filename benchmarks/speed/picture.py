"""Draw where the time of a training step goes: a bar for each side of each row, cut into its parts.

The bars of a row have one scale, so that their lengths compare; the longest fills the width.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from columns import PARTS
from grid import ROWS
from page import picture

LEFT, WIDTH, RIGHT, BAR, GAP, TOP = 150, 620, 70, 16, 12, 46  # in pixels
COLOURS = ("#3465a4", "#8ab4d8", "#c4321f", "#e9b54d", "#7a9f4b", "#9a6fb0", "#555", "#ccc")
STYLE = ".n{font-size:10px}"


def svg(lines: Sequence[dict[str, Any]]) -> str:
    """Return the picture.  lines: those of results.csv, in the order of the page."""
    drawn, at = [_legend()], TOP
    measured = [line for line in lines if PARTS[0] in line]
    for (row, cpu), group in groupby(measured, key=lambda line: (line["row"], line["cpu"])):
        bars = list(group)
        drawn.append(f'<text class="t" x="8" y="{at + 10}">{ROWS[row].title}, {cpu}</text>')
        at += 20
        longest = max(map(_length, bars))
        for line in bars:
            drawn.append(_bar(line, at, WIDTH / longest))
            at += BAR + 4
        at += GAP
    return picture(LEFT + WIDTH + RIGHT, at + 4, "".join(drawn), STYLE)


def _length(line: dict[str, Any]) -> float:
    """Return the seconds of the step."""
    return sum(line.get(part, 0.0) for part in PARTS)


def _bar(line: dict[str, Any], at: int, scale: float) -> str:
    """Return one side's bar with its name and the length of its step.  scale: pixels of a second."""
    drawn = [f'<text x="{LEFT - 6}" y="{at + 12}" text-anchor="end">{line["side"]}</text>']
    x = float(LEFT)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        wide = line.get(part, 0.0) * scale
        drawn.append(
            f'<rect x="{x:.1f}" y="{at}" width="{wide:.1f}" height="{BAR}" fill="{colour}">'
            f"<title>{part}: {1000 * line.get(part, 0.0):.1f} ms</title></rect>"
        )
        x += wide
    drawn.append(f'<text class="n" x="{x + 5:.1f}" y="{at + 12}">{1000 * _length(line):,.0f} ms</text>')
    return "".join(drawn)


def _legend() -> str:
    """Return the names of the parts beside their colours."""
    drawn, x = [], 8.0
    for part, colour in zip(PARTS, COLOURS, strict=True):
        drawn.append(f'<rect x="{x:.0f}" y="10" width="11" height="11" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 15:.0f}" y="20">{part}</text>')
        x += 34 + 6.2 * len(part)
    return "".join(drawn)
