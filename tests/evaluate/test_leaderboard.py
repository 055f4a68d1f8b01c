"""The leaderboard puts the parts together: order of the models, counts, notes."""

import json

import pytest

from graft.errors import DataError, Notice, UsageError
from graft.evaluate.judgements import Judgement
from graft.evaluate.leaderboard import leaderboard


def league(judge=""):
    """a beats b on 8 of 9 prompts, b beats c on 7, a beats c on 6, in both orders; one verdict is missing."""
    said = []
    for one, two, wins in (("a", "b", 8), ("b", "c", 7), ("a", "c", 6)):
        for prompt in range(9):
            won = prompt < wins
            more = {"judge": judge, "characters": (5, 3), "scores": (8, 4) if won else (4, 8)}
            said.append(Judgement(str(prompt), one, two, "1" if won else "2", **more))
            more["scores"] = more["scores"][::-1]
            said.append(Judgement(str(prompt), two, one, "2" if won else "1", **more))
    return [*said, Judgement("0", "a", "c", None, judge=judge)]


@pytest.mark.parametrize("by", ["bradley_terry", "elo"])
def test_the_best_comes_first_with_its_games_points_and_interval(by):
    board = leaderboard(league(), by)
    assert [place.model for place in board.places] == ["a", "b", "c"]
    assert [place.games for place in board.places] == [18, 18, 18]
    assert [place.won.value for place in board.places] == pytest.approx([14 / 18, 8 / 18, 5 / 18])
    assert all(place.rating.low < place.rating.value < place.rating.high for place in board.places)
    assert sum(place.rating.value for place in board.places) == pytest.approx(3000)
    assert board.points == [[0, 8, 6], [1, 0, 7], [3, 2, 0]] and board.played[0] == [0, 9, 9]
    assert (board.judgements, board.unread, board.prompts) == (55, 1, 9)
    assert board.order.first.value == 0.5 and board.order.consistent.value == 1.0
    assert board.length.value == pytest.approx(0.5)  # whatever was shown first is longer
    assert json.loads(json.dumps(board.json()))["places"][0]["model"] == "a"


def test_two_orders_are_two_games_where_asked():
    board = leaderboard(league(), averaged=False)
    assert board.places[0].games == 36 and board.played[0][1] == 18


def test_marks_are_shown_relative_to_a_model():
    board = leaderboard(league(), relative_to="b")
    marks = {place.model: place.relative and place.relative.value.value for place in board.places}
    a_marks, b_marks = 8 * 8 + 4, 8 * 4 + 8
    assert marks["a"] == pytest.approx(100 * a_marks / b_marks) and marks["b"] is None
    with pytest.raises(UsageError, match="relative to='z'"):
        leaderboard(league(), relative_to="z")


def test_judges_that_share_no_pair_are_no_reason_to_fail():
    one, two = Judgement("p", "a", "b", "1", judge="x"), Judgement("q", "a", "b", "1", judge="y")
    with pytest.warns(Notice, match="agreement of the judges is not known: 2 judges and 0 pairs"):
        assert leaderboard([one, two]).agreement is None
    assert leaderboard(league("x") + league("y")).agreement.kappa == 1.0


def test_what_is_not_defined_is_null():
    """Both judges always prefer the same class, and rate both models alike."""
    said = [Judgement(p, "a", "b", "tie", judge=judge) for p in "pq" for judge in "xy"]
    facts = leaderboard(said).json()["agreement"]
    assert facts["kappa"] is None and facts["kendall"] == [{"judges": ["x", "y"], "value": None}]
    json.dumps(facts, allow_nan=False)


def test_an_unknown_rating_is_named():
    with pytest.raises(UsageError, match="rating='eloo'"):
        leaderboard(league(), "eloo")
    with pytest.raises(DataError):
        leaderboard([])
