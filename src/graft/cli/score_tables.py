"""Scores of several runs as a table with means over seeds; their answers beside or below each other."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graft.cli.say import table

if TYPE_CHECKING:
    from graft.runs.table import Comparison

GAP = "   "
NARROWEST, WIDEST = 44, 72  # characters of a column of answers; below the least they stand below each other


def terminal_width() -> int:
    """Return the columns of the terminal; where there is none, enough for two columns of answers."""
    return shutil.get_terminal_size((118, 24)).columns


def comparison_text(found: "Comparison") -> str:
    """Return the scores of runs as a table, one run a line, and below it the means over seeds."""
    from graft.runs.table import SEED, cell, short

    titles = short(found.columns)
    rows = [
        [line.name, *(cell(line.settings.get(key)) for key in titles), *_scores(line.after, found.metrics)]
        for line in found.lines
    ]
    first = next((line.before for line in found.lines if line.before), {})
    if first and not any("before training differ" in text for text in found.warnings):
        rows.insert(0, ["before training", *("" for _ in titles), *_scores(first, found.metrics)])
    parts = [table(("run", *titles.values(), *found.metrics), rows)]
    if line := _scored_on(found):
        parts[0] += f"\n{line}"
    if groups := found.repeated:
        own = [key for key in titles if key != SEED]
        means = [
            [
                *(cell(group.settings.get(key)) for key in own),
                str(group.n),
                *(spread(group.mean, group.deviation, name) for name in found.metrics),
            ]
            for group in groups
        ]
        head = table((*(titles[key] for key in own), "seeds", *found.metrics), means)
        parts.append(f"mean ± standard deviation over seeds\n{head}")
    return "\n\n".join(parts)


def _scored_on(found: "Comparison") -> str | None:
    """Return the line that says on which rows all runs were scored; None if they differ."""
    rows = {(line.rows, line.scored) for line in found.lines}
    if len(rows) != 1 or (count := next(iter(rows))[1]) is None:
        return None
    return f"scored on {count:,} held-out rows, the same for all"


def spread(mean: Mapping[str, float], deviation: Mapping[str, float], name: str) -> str:
    """Return a mean with its deviation.

    >>> spread({"loss": 1.23456}, {"loss": 0.0123}, "loss")
    '1.235 ± 0.012'
    """
    if name not in mean:
        return "-"
    return f"{mean[name]:.4g} ± {deviation[name]:.2g}" if name in deviation else f"{mean[name]:.4g}"


def _scores(scores: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{scores[name]:.4g}" if name in scores else "-" for name in names]


def side_by_side(answers: Mapping[str, str], width: int) -> str:
    """Return two named texts in columns; more of them, or in a narrow terminal, below each other."""
    column = min(WIDEST, (width - len(GAP)) // 2)
    if len(answers) != 2 or column < NARROWEST:
        lines = []
        for name, text in answers.items():
            lines += [f"{name}:", *(f"  {line}" for line in _wrapped(text, max(20, width - 2)))]
        return "\n".join(lines)
    columns = [
        [name if len(name) <= column else f"…{name[1 - column :]}", "-" * column, *_wrapped(text, column)]
        for name, text in answers.items()
    ]
    height = max(map(len, columns))
    rows = zip(*(lines + [""] * (height - len(lines)) for lines in columns), strict=True)
    return "\n".join(f"{left:<{column}}{GAP}{right}".rstrip() for left, right in rows)


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines of this width; its own line breaks stay."""
    lines = [part for line in text.strip().splitlines() for part in textwrap.wrap(line, width)]
    return lines or ["(nothing)"]
