"""Which classes were taken for which: a matrix where it fits on a page, else the most frequent mistakes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from graft.runs.report.figures import heat_table
from graft.runs.report.html import table

MOST = 20  # classes that a matrix shows
NARROW = 10  # letters of a name that stands over a column
MISTAKES = 20  # that a list shows


def confusion(counts: Sequence[Sequence[Any]]) -> str:
    """Return the counts as HTML.  counts: (true class, predicted class, rows)."""
    found: Counter[tuple[str, str]] = Counter()
    for true, predicted, count in counts:
        found[str(true), str(predicted)] += int(count)
    names = sorted({name for pair in found for name in pair})
    heading = "<h3>Which classes were taken for which</h3>"
    return heading + (_matrix(found, names) if len(names) <= MOST else _mistakes(found))


def _matrix(found: Counter[tuple[str, str]], names: Sequence[str]) -> str:
    """Return a row for each true class, coloured by the share of its rows: right ones and wrong ones."""
    of = {true: sum(found[true, name] for name in names) for true in names}

    def cell(true: str, predicted: str) -> tuple[str, float | None, str]:
        count = found[true, predicted]
        if not count:
            return "·", None, ""
        share = count / of[true]
        told = f"{count:,} of {of[true]:,} rows of {true} were taken for {predicted} ({share:.1%})"
        return f"{count:,}", share if true == predicted else -share, told

    cells = [[cell(a, b) for b in names] for a in names]
    if max(map(len, names)) <= NARROW:
        return heat_table("is ↓  taken for →", names, names, cells)
    numbers = [str(number) for number in range(1, len(names) + 1)]
    rows = [f"{number}  {name}" for number, name in zip(numbers, names, strict=True)]
    return heat_table("is ↓  taken for number →", rows, numbers, cells)


def _mistakes(found: Counter[tuple[str, str]]) -> str:
    wrong = [(true, said, count) for (true, said), count in found.most_common() if true != said]
    right = sum(count for (true, said), count in found.items() if true == said)
    rows = [(true, said, f"{count:,}") for true, said, count in wrong[:MISTAKES]]
    title = f"<p>{right:,} of {sum(found.values()):,} rows are right. The most frequent mistakes:</p>"
    return title + table(rows, ("is", "taken for", "rows"), numbers=(2,))
