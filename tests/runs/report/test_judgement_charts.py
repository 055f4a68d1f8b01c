"""The figures of judgements have the numbers of the leaderboard, and names are shown as they are."""

import re

import pytest

from graft.evaluate.agreement import Agreement, Estimate
from graft.evaluate.judgements import Judgement
from graft.evaluate.leaderboard import leaderboard
from graft.runs.report.judgement_charts import alike, ratings, sways, wins


def board():
    """7 beats <b>, <b> beats 2024-01-01, on two of three prompts each."""
    pairs = (("7", "<b>"), ("<b>", "2024-01-01"))
    return leaderboard([Judgement(p, *pair, "2" if p == "r" else "1") for pair in pairs for p in "pqr"])


def cells(html, element="td"):
    """Return the cells of each row, without marks."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(rf"<{element}[^>]*>([^<]*)", row) for row in rows]


def numbers(html, name):
    """Return the values of a style's property, in per cent."""
    return [float(value) for value in re.findall(rf"--{name}:([-\d.]+)%", html)]


def test_every_model_has_its_rating_in_the_middle_of_its_interval_the_best_on_top():
    drawn, places = ratings(board()), board().places
    assert [row[1] for row in cells(drawn)[1:]] == ["7", "&lt;b&gt;", "2024-01-01"]
    low = min(place.rating.low for place in places)
    high = max(place.rating.high for place in places)
    room = 0.04 * (high - low)
    start, whole = low - room, high - low + 2 * room

    def shares(values):
        return pytest.approx([100 * value / whole for value in values], abs=0.01)

    assert numbers(drawn, "at") == shares([place.rating.value - start for place in places])
    assert numbers(drawn, "from") == shares([place.rating.low - start for place in places])
    assert numbers(drawn, "wide") == shares([place.rating.high - place.rating.low for place in places])


def test_the_matrix_has_the_shares_of_the_points_and_gaps_where_nobody_played():
    drawn = wins(board())
    assert cells(drawn)[1:] == [["", "67%", ""], ["33%", "", "67%"], ["", "33%", ""]]
    assert (
        'title="66.7% of 3 games"' in drawn and drawn.count('class="up"') == drawn.count('class="down"') == 2
    )
    assert numbers(drawn, "heat") == [20] * 4, "a third above or below one half, of 60 per cent"


def test_two_judges_that_rank_alike_have_the_same_cell_on_both_sides():
    taus = {("x", "y"): 0.5, ("x", "z"): float("nan"), ("y", "z"): -1.0}
    drawn = alike(Agreement(("x", "y", "z"), 9, 0.5, 0.1, taus, taus))
    assert cells(drawn)[1:] == [["", "0.50", ""], ["0.50", "", "-1.00"], ["", "-1.00", ""]]


def test_what_sways_a_judge_stands_in_its_row_beside_the_line_of_no_bias():
    share = Estimate(0.6, 0.55, 0.65, 10)
    rows = [["x", "60%", "", "", "", ""], ["y", "60%", "", "", "60%", ""]]
    drawn = sways({"x": share, "y": share}, {"x": None, "y": share}, (["judge", *"abcde"], rows))
    first, longer = drawn.split("<table>")[1:]
    half = 100 * (0.5 + 0.02) / 1.04
    assert numbers(first, "at") == pytest.approx([half, 100 * 0.62 / 1.04] * 2, abs=0.01)
    assert longer.count('class="dot"') == 1 and longer.count('class="half"') == 2
    assert "longer" not in sways({"x": share}, {"x": None}, (["judge", *"abcde"], rows[:1]))
