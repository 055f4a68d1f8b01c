"""What the terminal says: talk on stderr, data on stdout, tables, JSON, numbers for people."""

import json
import sys
from collections.abc import Sequence
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
