"""A leaderboard in words: its tables, what one must know about the judgements, and CSV."""

import csv
import io
from math import isnan

from graft.evaluate.agreement import Estimate
from graft.evaluate.leaderboard import Leaderboard


def places(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Return the leaderboard as the header and the rows of a table."""
    relative = any(place.relative for place in board.places)
    header = [
        "",
        "model",
        "rating",
        "95 %",
        "games",
        "won",
        "95 %",
        *(["marks, %", "95 %"] if relative else []),
    ]
    rows = []
    for number, place in enumerate(board.places, 1):
        row = [str(number), place.model, f"{place.rating.value:.0f}", interval(place.rating, ".0f")]
        row += [f"{place.games:,}", f"{place.won.value:.1%}", interval(place.won, ".1%")]
        if relative:
            marks = place.relative.value if place.relative else None
            row += [f"{marks.value:.1f}", interval(marks, ".1f")] if marks else ["", ""]
        rows.append(row)
    return header, rows


def interval(estimate: Estimate, form: str) -> str:
    """Return the ends of an interval.  form: of its numbers, as format() has it."""
    return f"{estimate.low:{form}} … {estimate.high:{form}}"


def matrix(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Return the shares of the points that the row's model won against the column's, as header and rows."""
    names = [place.model for place in board.places]
    rows = [
        [name, *(f"{won / count:.1%}" if count else "-" for won, count in zip(*line, strict=True))]
        for name, *line in zip(names, board.points, board.played, strict=True)
    ]
    return ["won against", *names], rows


def facts(board: Leaderboard) -> list[str]:
    """Return what one must know about the judgements, a line each."""
    share = board.unread / board.judgements
    lines = [
        f"judged  {board.judgements:,} times, {board.prompts:,} prompts; "
        f"{board.unread:,} without a verdict ({share:.1%}), which count nowhere"
    ]
    if board.order is not None:
        first, same = board.order.first, board.order.consistent
        lines.append(
            f"order   the answer that is shown first gets {first.value:.1%} of the points "
            f"({interval(first, '.1%')}); {same.value:.1%} of pairs have the same verdict in both orders"
        )
    if board.length is not None:
        longer = board.length
        lines.append(
            f"length  the longer answer gets {longer.value:.1%} of the points ({interval(longer, '.1%')})"
        )
    if board.agreement is not None:
        agreed = board.agreement
        lines.append(
            f"agree   {len(agreed.judges)} judges say the same of {agreed.same:.1%} of {agreed.items:,} "
            f"pairs, Fleiss' kappa {number(agreed.kappa)}"
        )
        for pair, tau in agreed.kendall.items():
            rho = agreed.spearman[pair]
            lines.append(
                f"        {pair[0]} and {pair[1]} rank alike: Kendall {number(tau)}, Spearman {number(rho)}"
            )
    return lines


def number(value: float) -> str:
    """Return a correlation or a kappa with two digits."""
    return "not defined" if isnan(value) else f"{value:.2f}"


def csv_text(board: Leaderboard) -> str:
    """Return the leaderboard as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = (
        "rating",
        "low",
        "high",
        "games",
        "won",
        "won_low",
        "won_high",
        "marks",
        "marks_low",
        "marks_high",
    )
    writer.writerow(("place", "model", *names))
    for number, place in enumerate(board.places, 1):
        marks = place.relative.value if place.relative else None
        values: list[float | str] = [
            place.rating.value,
            place.rating.low,
            place.rating.high,
            place.games,
        ]
        values += [place.won.value, place.won.low, place.won.high]
        values += [marks.value, marks.low, marks.high] if marks else ["", "", ""]
        writer.writerow([number, place.model, *(f"{v:.6g}" if isinstance(v, float) else v for v in values)])
    return text.getvalue()
