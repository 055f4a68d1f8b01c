"""The parts of result pages: tables, means with deviations, the place of measurement, and SVG pictures."""

import argparse
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import PACKAGES, machines

COLUMNS = 110  # of a line of prose
STYLE = (
    "text{font:11px sans-serif;fill:#444}.t{font-size:13px;fill:#111}.g{stroke:#ddd}"
    ".l{fill:none;stroke:#3465a4;stroke-width:1.6}.d{fill:#c4321f}"
)


def options(description: str | None, folder: Path) -> argparse.Namespace:
    """Return the options of a table script: `raw`, a folder of raw runs or None, and `to`, where the page
    goes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, help="a folder of raw runs, shown instead of the CSV; needs --to")
    parser.add_argument("--to", type=Path, default=folder, help="where the page goes; the benchmark's folder")
    chosen = parser.parse_args()
    if chosen.raw and chosen.to == folder:
        parser.error("--raw without --to would overwrite the page of the committed CSV")
    chosen.to.mkdir(parents=True, exist_ok=True)
    return chosen


def write(path: Path, text: str) -> None:
    """Write a page whose prose is wrapped; tables, commands and quoted lines stay as they are."""
    lines = text.split("\n")
    path.write_text("\n".join(part for line in lines for part in _wrapped(line)), encoding="utf-8")


def _wrapped(line: str) -> list[str]:
    """Return a line as lines of at most COLUMNS columns; those of a list item are indented.

    >>> [len(part) for part in _wrapped("- " + "word " * 25)], _wrapped("- " + "word " * 25)[1][:6]
    ([106, 21], '  word')
    """
    if len(line) <= COLUMNS or line.startswith(("|", "    ", "`")):
        return [line]
    indent = "  " if line.startswith("- ") else ""
    return textwrap.wrap(
        line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def measured_on(runs: Sequence[dict[str, Any]]) -> str:
    """Return the machines, versions and dates of runs as one paragraph."""
    known, dates = machines(), sorted({run["date"] for run in runs})
    places = dict.fromkeys(_place(known[run["machine"]], run["threads"]) for run in runs)
    return f"{'; '.join(places)}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."


def _place(machine: dict[str, Any], threads: int) -> str:
    packages = ", ".join(f"{name} {machine[name]}" for name in PACKAGES)
    thread = "1 thread" if threads == 1 else f"{threads} threads"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {thread} a run; Python {machine['python']}, {packages}"
    )


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean and the standard deviation of values.

    >>> spread([1.0, 2.0]), spread([3.0]), spread([])
    ('1.5 ± 0.7', '3.0', '')
    """
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first line is the header, short lines are filled up."""
    width = len(table[0])
    lines = [f"| {' | '.join([*cells, *[''] * (width - len(cells))])} |" for cells in table]
    return "\n".join([lines[0], "|" + "---|" * width, *lines[1:]]) + "\n"


def picture(width: int, height: int, content: str, style: str = "") -> str:
    """Return an SVG file of this size on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">'
        f'<style>{STYLE}{style}</style><rect width="100%" height="100%" fill="#fff"/>{content}</svg>\n'
    )
