"""graft rank: the leaderboard of files of judgements, with intervals and what sways the judges."""

import csv
import io
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.cli.say import after, show, show_json, table
from graft.errors import UsageError

if TYPE_CHECKING:
    from graft.evaluate.agreement import Estimate
    from graft.evaluate.leaderboard import Leaderboard


def add_to(app: typer.Typer) -> None:
    app.command("rank", help="Rank models by judgements of their answers.")(rank)


def rank(
    judgements: Annotated[list[str], typer.Argument(help="Files that graft judge wrote, or of their form.")],
    by: Annotated[str, typer.Option(help="bradley_terry, or elo over 10,000 orders.")] = "bradley_terry",
    separate: Annotated[
        bool, typer.Option("--separate", help="Count the two orders of a pair as two games.")
    ] = False,
    relative_to: Annotated[
        str | None, typer.Option(help="Show marks in per cent of those of this model.")
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Show who won how much against whom.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Decides the orders and the drawn prompts.")] = 0,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Also write the leaderboard to this file.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    from graft.evaluate.judgements import read_judgements  # torch costs seconds
    from graft.evaluate.leaderboard import leaderboard

    read = [one for path in judgements for one in read_judgements(path)]
    board = leaderboard(read, by, averaged=not separate, relative_to=relative_to, seed=seed)
    if csv_file is not None:
        _write(csv_file, _csv(board))
    if json:
        show_json(board.json())
    else:
        show(_places(board))
        if matrix:
            show(f"\n{_matrix(board)}")
        show("")
        for line in facts(board):
            show(line)
    after(
        f"graft rank {' '.join(judgements)} --matrix"
        if not matrix
        else "graft judge A.jsonl B.jsonl --by JUDGE"
    )


def _places(board: "Leaderboard") -> str:
    """Return the leaderboard as a table."""
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
        row = [str(number), place.model, f"{place.rating.value:.0f}", _interval(place.rating, ".0f")]
        row += [f"{place.games:,}", f"{place.won.value:.1%}", _interval(place.won, ".1%")]
        if relative:
            marks = place.relative.value if place.relative else None
            row += [f"{marks.value:.1f}", _interval(marks, ".1f")] if marks else ["", ""]
        rows.append(row)
    return table(header, rows)


def _interval(estimate: "Estimate", form: str) -> str:
    return f"{estimate.low:{form}} … {estimate.high:{form}}"


def _matrix(board: "Leaderboard") -> str:
    """Return the share of the points that the row's model won against the column's."""
    names = [place.model for place in board.places]
    rows = [
        [name, *(f"{won / count:.1%}" if count else "-" for won, count in zip(*line, strict=True))]
        for name, *line in zip(names, board.points, board.played, strict=True)
    ]
    return table(["won against", *names], rows)


def facts(board: "Leaderboard") -> list[str]:
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
            f"({_interval(first, '.1%')}); {same.value:.1%} of pairs have the same verdict in both orders"
        )
    if board.length is not None:
        longer = board.length
        lines.append(
            f"length  the longer answer gets {longer.value:.1%} of the points ({_interval(longer, '.1%')})"
        )
    if board.agreement is not None:
        agreed = board.agreement
        lines.append(
            f"agree   {len(agreed.judges)} judges say the same of {agreed.same:.1%} of {agreed.items:,} "
            f"pairs, Fleiss' kappa {_number(agreed.kappa)}"
        )
        for pair, tau in agreed.kendall.items():
            rho = agreed.spearman[pair]
            lines.append(
                f"        {pair[0]} and {pair[1]} rank alike: Kendall {_number(tau)}, Spearman {_number(rho)}"
            )
    return lines


def _number(value: float) -> str:
    return "not defined" if isnan(value) else f"{value:.2f}"


def _csv(board: "Leaderboard") -> str:
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
        values = [place.rating.value, place.rating.low, place.rating.high, place.games]
        values += [place.won.value, place.won.low, place.won.high]
        values += [marks.value, marks.low, marks.high] if marks else ["", "", ""]
        writer.writerow([number, place.model, *(f"{v:.6g}" if isinstance(v, float) else v for v in values)])
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    """Write a file. Raises UsageError if its folder is missing."""
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"{path} cannot be written", "a file in a folder that exists", "check the path")
    path.write_text(text, encoding="utf-8")
