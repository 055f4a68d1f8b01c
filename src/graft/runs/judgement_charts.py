"""The charts of a page of judgements: ratings, wins, judges that rank alike, and what sways them."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isnan
from typing import Any

from graft.evaluate.agreement import Agreement, Estimate
from graft.evaluate.leaderboard import Leaderboard
from graft.evaluate.leaderboard_text import interval
from graft.runs.charts import Chart

ROW_REM = 2.2  # height of a row of a chart
AROUND_REM = 8  # height of what stands around the rows
COLOURS = ("#1f77b4", "#ff7f0e")
SHARES = {"zmin": 0, "zmax": 1, "colorbar": {"tickformat": ".0%"}}
TAUS = {"zmin": -1, "zmax": 1}


def ratings(board: Leaderboard) -> Chart:
    """Return the chart of every model's rating with its 95 % interval, the best on top."""
    names = [place.model for place in board.places]
    traces = _intervals(
        [place.rating for place in board.places], range(len(names)), ("rating", ".0f", COLOURS[0])
    )
    return Chart(
        "Ratings", traces, "rating, with its 95 % interval", more=_rows(names), height_rem=_height(names)
    )


def wins(board: Leaderboard) -> Chart:
    """Return the heat map of the share of the points that the row's model won against the column's."""
    names = [place.model for place in board.places]
    shares = [
        [won / count if count else None for won, count in zip(*line, strict=True)]
        for line in zip(board.points, board.played, strict=True)
    ]
    told = [
        [
            f"{share:.1%} of {count:,} games" if share is not None else ""
            for share, count in zip(*line, strict=True)
        ]
        for line in zip(shares, board.played, strict=True)
    ]
    return _heat_map("Points won by the row's model against the column's", names, shares, ".0%", told, SHARES)


def alike(agreed: Agreement) -> Chart:
    """Return the heat map of how far each two judges rank the models alike, by Kendall's correlation."""
    judges = agreed.judges
    values = [[_symmetric(agreed.kendall, a, b) for b in judges] for a in judges]
    told = [["" for _ in judges] for _ in judges]
    return _heat_map("How far two judges rank alike (Kendall)", judges, values, ".2f", told, TAUS)


def sways(first: Mapping[str, Estimate], longer: Mapping[str, Estimate]) -> Chart:
    """Return the chart of the points that go to the answer shown first, and to the longer one, by judge."""
    names = list(dict.fromkeys([*first, *longer]))
    traces = list[dict[str, Any]]()
    for what, shares, shift in (("shown first", first, -0.12), ("longer", longer, 0.12)):
        if shares:
            places = [names.index(name) + shift for name in shares]
            traces += _intervals([*shares.values()], places, (what, ".1%", COLOURS[shift > 0]))
    even = {"type": "line", "x0": 0.5, "x1": 0.5, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot"}}
    more = _rows(names) | {"shapes": [even], "showlegend": True}
    title = {"text": "points of the answer; half is no bias"}
    more["xaxis"] = {"title": title, "tickformat": ".0%", "range": [-0.02, 1.02]}  # the ends, in full
    return Chart("What sways the judges", traces, more=more, height_rem=_height(names))


def _intervals(
    estimates: Sequence[Estimate], y: Sequence[float], told_as: tuple[str, str, str]
) -> list[dict[str, Any]]:
    """Return the traces of intervals and of values.

    y: the height of each.  told_as: what they are, the form of their numbers, their colour.
    """
    name, form, colour = told_as
    told = [f"{name} {one.value:{form}} ({interval(one, form)})" for one in estimates]
    lines = {
        "x": [end for one in estimates for end in (one.low, one.high, None)],
        "y": [end for place in y for end in (place, place, None)],
        "mode": "lines", "line": {"color": colour}, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    points = {
        "x": [one.value for one in estimates], "y": list(y), "text": told, "hoverinfo": "text", "name": name,
        "mode": "markers", "marker": {"color": colour, "size": 9},
    }  # fmt: skip
    return [lines, points]


def _heat_map(
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float | None]],
    form: str,
    hover: Sequence[Sequence[str]],
    scale: Mapping[str, Any],
) -> Chart:
    """Return a heat map of names against names.  form: of the numbers in its cells; scale: of its colours."""
    cells = [["" if value is None else f"{value:{form}}" for value in line] for line in values]
    trace = {
        "type": "heatmap", "z": values, "text": cells, "texttemplate": "%{text}", "hovertext": hover,
        "hoverinfo": "text", "colorscale": "RdBu", "reversescale": True, "xgap": 1, "ygap": 1, **scale,
    }  # fmt: skip
    more = _rows(names) | {"xaxis": _axis(names) | {"side": "top"}}
    return Chart(title, [trace], more=more, height_rem=_height(names))


def _rows(names: Sequence[str]) -> dict[str, Any]:
    """Return what of a layout gives each name a row, the first on top."""
    return {"yaxis": _axis(names) | {"range": [len(names) - 0.5, -0.5]}}


def _axis(names: Sequence[str]) -> dict[str, Any]:
    """Return an axis of names. At numbers, because plotly takes names such as 7 or 2024-01 for values."""
    told = [escape(name) for name in names]  # plotly reads marks such as <b> in names
    return {"tickvals": list(range(len(names))), "ticktext": told, "automargin": True, "zeroline": False}


def _height(names: Sequence[str]) -> float:
    return AROUND_REM + ROW_REM * len(names)


def _symmetric(values: Mapping[tuple[str, str], float], a: str, b: str) -> float | None:
    """Return the value of a pair in either order; None on the diagonal and where it is not defined."""
    value = values.get((a, b), values.get((b, a)))
    return None if value is None or isnan(value) else value
