"""What pages of results are made of: tables, means with deviations, where and with what; and SVG pictures."""

import statistics
from collections.abc import Sequence
from typing import Any

STYLE = (
    "text{font:11px sans-serif;fill:#444}.t{font-size:13px;fill:#111}.g{stroke:#ddd}"
    ".l{fill:none;stroke:#3465a4;stroke-width:1.6}.d{fill:#c4321f}"
)


def measured_on(runs: Sequence[dict[str, Any]]) -> str:
    """Machine, versions and dates of runs, as one paragraph."""
    machine, dates = runs[0]["machine"], sorted({run["machine"]["date"] for run in runs})
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    place = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread a run, two runs at a time"
    )
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{place}; Python {machine['python']}, {packages}; {when}."


def spread(values: Sequence[float], digits: int = 1) -> str:
    """
    >>> spread([1.0, 2.0]), spread([3.0]), spread([])
    ('1.5 ± 0.7', '3.0', '')
    """
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first as header; short ones are filled up."""
    width = len(table[0])
    lines = [f"| {' | '.join([*cells, *[''] * (width - len(cells))])} |" for cells in table]
    return "\n".join([lines[0], "|" + "---|" * width, *lines[1:]]) + "\n"


def picture(width: int, height: int, content: str, style: str = "") -> str:
    """An SVG file of this size on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{STYLE}{style}</style><rect width="100%" height="100%" fill="#fff"/>{content}</svg>\n'
    )
