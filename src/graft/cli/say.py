"""Print: results on stdout, everything else on stderr; tables and JSON."""

import contextlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from graft.cli.wait import columns, is_terminal, making_room, over

BOLD, RED, GREEN = "1", "1;31", "32"  # of `paint`
UNREAD = 141  # the exit code of programs that SIGPIPE ends
LABEL = re.compile(r"(?!next )[a-z]+ +(?=\S)")  # in front of a line; what is next is a command to be copied

noted: set[str] = set()  # notes of this command line


def talk(text: str) -> None:
    """Print a line for the reader, on stderr. Work goes on where nobody can read it."""
    with making_room(), contextlib.suppress(OSError):  # a pipe whose reader went away, a log on a full disk
        if sys.stderr is not None:  # None: closed before we began
            print(folded(text), file=sys.stderr, flush=True)


def folded(text: str) -> str:
    """Return text whose labelled lines break between words, under their beginning, where a terminal ends."""
    if not is_terminal():
        return text
    width = columns()
    return "\n".join(_folded(line, width) if len(line) > width else line for line in text.split("\n"))


def _folded(line: str, width: int) -> str:
    label = LABEL.match(line)
    if label is None or not 8 <= label.end() <= 9 or "\033" in line:
        return line
    said, place = line[label.end() :], label.end()
    pieces = textwrap.wrap(said, max(width - place, 1), break_long_words=False, break_on_hyphens=False)
    return label.group() + f"\n{' ' * place}".join(pieces)


def paint(text: str, colour: str, *, stream: Any = None) -> str:
    """Return text in a colour, if the stream (by default stderr) is a terminal and NO_COLOR is not set.

    colour: the numbers of an SGR sequence.
    """
    plain = os.environ.get("NO_COLOR") or not is_terminal(stream)
    return text if plain else f"\033[{colour}m{text}\033[0m"


def print_markup(text: str, *, stream: Any = None) -> None:
    """Print a line with rich's colour marks, by default on stderr; for terminals only."""
    from rich.console import Console  # late: it takes an eighth of a second, and only colours need it

    with making_room(), contextlib.suppress(OSError):  # a terminal that is gone
        Console(file=stream or sys.stderr, soft_wrap=True, highlight=False).print(text)


def show(text: str, end: str = "\n") -> None:
    """Print a line of the answer, on stdout. Exits with UNREAD if its reader went away."""
    try:
        with making_room(answer=True):
            print(text, end=end, flush=True)
    except BrokenPipeError:
        raise SystemExit(UNREAD) from None
    except OSError as error:
        error.filename = "standard output"
        raise


def finish() -> None:
    """Print what is left of both streams; drop it where that fails, as Python would fail at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show_json(facts: Any) -> None:
    """Print the answer for a program, on stdout."""
    show(json.dumps(facts, indent=2, ensure_ascii=False, default=str))


def note(text: str) -> None:
    """Print something that the user must know, on stderr, once however often it is found."""
    if text not in noted:
        noted.add(text)
        talk(f"note    {text}")


def after(command: str) -> None:
    """Print what to do next: the last line of every command."""
    over()
    talk(f"next    {command}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, gap: int = 3) -> str:
    """Return aligned columns under their names; the last column is not padded."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    return "\n".join((" " * gap).join(row).rstrip() for row in padded)


def score_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Return scores in columns, one metric a line; "-" if a column does not have it."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    cells = [
        (name, *(f"{column[name]:.4g}" if name in column else "-" for column in columns.values()))
        for name in names
    ]
    return table(("metric", *columns), cells)


def painted_verdict(text: str, *, stream: Any = None) -> str:
    """Return whether a run fits, in red where it does not."""
    return paint(text, RED, stream=stream) if text.startswith("DOES NOT FIT") else text


def model_of(recipe: Any) -> str:
    """Return the name of the model of a recipe or a chain, for what is said while it is loaded."""
    recipe = next(iter(recipe.recipes.values())) if hasattr(recipe, "recipes") else recipe
    return str(recipe.model) if isinstance(recipe.model, str) else "a fresh model"
