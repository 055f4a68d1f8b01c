"""The figures of a page of judgements: ratings, wins, judges that rank alike, and what sways them."""

from collections.abc import Mapping, Sequence
from math import isnan

from graft.evaluate.agreement import Agreement, Estimate
from graft.evaluate.leaderboard import Leaderboard
from graft.evaluate.leaderboard_text import places
from graft.runs.report.figures import heat_table, interval_table

NO_BIAS = 0.5


def ratings(board: Leaderboard) -> str:
    """Return every model's line of the leaderboard, its rating drawn with its 95 % interval."""
    header, rows = places(board)
    spans = [_span(place.rating) for place in board.places]
    ends = min(low for low, _, _ in spans), max(high for _, _, high in spans)
    room = 0.04 * (ends[1] - ends[0]) or 1.0
    scale = (ends[0] - room, ends[1] + room)
    title = f"rating and 95 % interval, {ends[0]:.0f} to {ends[1]:.0f}"
    return interval_table(header, rows, spans, scale, title=title)


def wins(board: Leaderboard) -> str:
    """Return the matrix of the share of the points that the row's model won against the column's."""
    names = [place.model for place in board.places]
    cells = []
    for points, played in zip(board.points, board.played, strict=True):
        line: list[tuple[str, float | None, str]] = []
        for won, count in zip(points, played, strict=True):
            share = won / count if count else None
            told = f"{share:.1%} of {count:,} games" if share is not None else ""
            line.append(("", None, "") if share is None else (f"{share:.0%}", 2 * share - 1, told))
        cells.append(line)
    return heat_table("won against", names, names, cells)


def alike(agreed: Agreement) -> str:
    """Return the matrix of how far each two judges rank the models alike, by Kendall's correlation."""
    judges = agreed.judges
    values = [[_symmetric(agreed.kendall, a, b) for b in judges] for a in judges]
    cells = [[("" if value is None else f"{value:.2f}", value, "") for value in line] for line in values]
    return heat_table("Kendall", judges, judges, cells)


def sways(
    first: Mapping[str, Estimate | None],
    longer: Mapping[str, Estimate | None],
    tables: tuple[Sequence[str], Sequence[Sequence[str]]],
) -> str:
    """Return a table of judges, with what they give to the answer shown first and to the longer one drawn.

    first, longer: by judge.  tables: header and rows of the numbers, in the order of the judges.
    """
    header, rows = tables
    parts = []
    for what, shares, columns in (("shown first", first, (0, 1, 2, 3)), ("longer", longer, (0, 4, 5))):
        if not any(shares.values()):
            continue
        spans = [_span(share) if share else None for share in shares.values()]
        own = [[row[i] for i in columns] for row in rows]
        title = f"points of the answer {what}, 0 to 100 %; dotted: no bias"
        named = [header[i] for i in columns]
        parts.append(interval_table(named, own, spans, (-0.02, 1.02), title=title, middle=NO_BIAS))
    return "".join(parts)


def _span(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.low, estimate.value, estimate.high


def _symmetric(values: Mapping[tuple[str, str], float], a: str, b: str) -> float | None:
    """Return the value of a pair in either order; None on the diagonal and where it is not defined."""
    value = values.get((a, b), values.get((b, a)))
    return None if value is None or isnan(value) else value
