"""What the terminal says: talk on stderr, data on stdout, tables, JSON, numbers for people."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def talk(text: str) -> None:
    """A line for the reader, on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_markup(text: str, *, stream: Any = None) -> None:
    """A line with rich's colour marks, on stderr unless told otherwise; for terminals only."""
    from rich.console import Console  # only where there are colours: an eighth of a second

    Console(file=stream or sys.stderr, soft_wrap=True, highlight=False).print(text)


def show(text: str) -> None:
    """A line of the answer, on stdout."""
    print(text, flush=True)


def show_json(facts: Any) -> None:
    """The answer for a program, on stdout."""
    print(json.dumps(facts, indent=2, ensure_ascii=False, default=str), flush=True)


def after(command: str) -> None:
    """What to do next, the last line of every command."""
    talk(f"next    {command}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under their names; the last column is not padded."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(text)


def score_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Scores in columns, one metric a line; "-" where a column has none."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    cells = [
        (name, *(f"{column[name]:.4g}" if name in column else "-" for column in columns.values()))
        for name in names
    ]
    return table(("metric", *columns), cells)


def size(count: float) -> str:
    """Bytes for people: 512 B, 4.2 MB, 1.3 GiB."""
    for unit, step in (("GiB", 2**30), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count:.0f} B"


def size_of(folder: Path) -> str:
    """All files of a folder together, as `size` says it."""
    return size(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def number(count: float) -> str:
    """A count for people: 950, 11.3 k, 1.24 M, 7.0 B."""
    for unit, step in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= step:
            return f"{count / step:.2f} {unit}" if count < 10 * step else f"{count / step:.1f} {unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Time for people: 12 s, 4 min, 2 h 05 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
