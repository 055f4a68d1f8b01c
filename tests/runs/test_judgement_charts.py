"""The charts of judgements: plotly accepts them, and names are shown as they are."""

import plotly.graph_objects as go
import pytest

from graft.evaluate.agreement import Agreement, Estimate
from graft.evaluate.judgements import Judgement
from graft.evaluate.leaderboard import leaderboard
from graft.runs.judgement_charts import alike, ratings, sways, wins


def board():
    """7 beats <b>, <b> beats 2024-01-01, on two of three prompts each."""
    pairs = (("7", "<b>"), ("<b>", "2024-01-01"))
    return leaderboard([Judgement(p, *pair, "2" if p == "r" else "1") for pair in pairs for p in "pqr"])


def drawn(chart):
    """Return the chart as plotly reads it; it refuses names that it does not know."""
    return go.Figure(chart.traces, chart.layout())


def test_every_model_has_its_rating_between_the_ends_of_its_interval_the_best_on_top():
    figure = drawn(ratings(board()))
    lines, points = figure.data
    places = board().places
    assert [place.model for place in places] == ["7", "<b>", "2024-01-01"]
    assert list(points.x) == [place.rating.value for place in places] and list(points.y) == [0, 1, 2]
    assert list(lines.x[0::3]) == [place.rating.low for place in places]
    assert list(lines.x[1::3]) == [place.rating.high for place in places]
    assert set(lines.x[2::3]) == {None}
    assert figure.layout.yaxis.range == (2.5, -0.5)
    assert figure.layout.yaxis.ticktext == ("7", "&lt;b&gt;", "2024-01-01")


def test_the_heat_map_has_the_shares_of_the_matrix_and_gaps_where_nobody_played():
    figure = drawn(wins(board()))
    (cells,) = figure.data
    third, rest = pytest.approx(1 / 3), pytest.approx(2 / 3)
    assert [list(line) for line in cells.z] == [
        [None, rest, None],
        [third, None, rest],
        [None, third, None],
    ]
    assert cells.text[0] == ["", "67%", ""] and cells.hovertext[0][1] == "66.7% of 3 games"
    assert figure.layout.xaxis.ticktext == figure.layout.yaxis.ticktext


def test_two_judges_that_rank_alike_have_the_same_cell_on_both_sides():
    taus = {("x", "y"): 0.5, ("x", "z"): float("nan"), ("y", "z"): -1.0}
    (cells,) = drawn(alike(Agreement(("x", "y", "z"), 9, 0.5, 0.1, taus, taus))).data
    assert [list(line) for line in cells.z] == [[None, 0.5, None], [0.5, None, -1.0], [None, -1.0, None]]
    assert cells.text[0] == ["", "0.50", ""]


def test_what_sways_a_judge_stands_in_its_row_beside_the_line_of_no_bias():
    share = Estimate(0.6, 0.55, 0.65, 10)
    figure = drawn(sways({"x": share, "y": share}, {"y": share, "z": share}))
    first, longer = (trace for trace in figure.data if trace.mode == "markers")
    assert first.name == "shown first" and list(first.y) == pytest.approx([-0.12, 0.88])
    assert longer.name == "longer" and list(longer.y) == pytest.approx([1.12, 2.12])
    assert longer.text[0] == "longer 60.0% (55.0% … 65.0%)"
    assert figure.layout.yaxis.ticktext == ("x", "y", "z") and figure.layout.shapes[0].x0 == 0.5
