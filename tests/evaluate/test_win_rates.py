"""Two models face to face: points, prompts and intervals of each judge."""

import json

import pytest

from graft.evaluate.judgements import Judgement
from graft.evaluate.leaderboard import leaderboard
from graft.evaluate.win_rates import win_rates


def said(prompt, first, second, verdict, judge="x"):
    return Judgement(prompt, first, second, verdict, judge=judge)


def both_orders(prompt, ab, ba, judge="x"):
    return [said(prompt, "a", "b", ab, judge), said(prompt, "b", "a", ba, judge)]


# a wins p; the orders of q cancel; r is a tie; b wins s; of t one order has no verdict, the other says a.
GAMES = [
    *both_orders("p", "1", "2"),
    *both_orders("q", "1", "1"),
    *both_orders("r", "tie", "tie"),
    *both_orders("s", "2", "1"),
    *both_orders("t", None, "2"),
]


def test_each_prompt_counts_once_and_orders_that_cancel_are_a_tie():
    (rate,) = win_rates(GAMES, "a", "b")
    assert (rate.wins, rate.ties, rate.losses, rate.unread) == (2, 2, 1, 1)
    assert rate.won.value == pytest.approx((1 + 0.5 + 0.5 + 0 + 1) / 5) and rate.won.count == 5
    facts = json.loads(json.dumps(rate.json()))
    assert facts["prompts"] == 5 and facts["shares"] == {"wins": 0.4, "ties": 0.4, "losses": 0.2}


def test_seen_from_the_other_model_everything_is_mirrored():
    (rate,), (mirrored,) = win_rates(GAMES, "a", "b"), win_rates(GAMES, "b", "a")
    assert (mirrored.wins, mirrored.losses) == (rate.losses, rate.wins)
    for ours, theirs in ((rate.lost, mirrored.won), (rate.won, mirrored.lost)):
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))
    assert rate.lost.low < rate.lost.value < rate.lost.high


def test_the_leaderboard_of_the_same_judgements_says_the_same():
    (rate,) = win_rates(GAMES, "a", "b")
    places = {place.model: place.won for place in leaderboard(GAMES).places}
    assert rate.won == places["a"]
    assert (rate.lost.low, rate.lost.high) == pytest.approx((places["b"].low, places["b"].high))


def test_judges_stand_apart_and_other_models_do_not_count():
    more = [said("p", "c", "a", "1"), *both_orders("p", "2", "1", "y"), said("p", "b", "c", "1", "z")]
    rates = win_rates([*GAMES, *more], "a", "b")
    assert [(rate.judge, rate.wins, rate.losses) for rate in rates] == [("x", 2, 1), ("y", 0, 1)]


def test_a_judge_that_gave_no_verdict_has_no_win_rate():
    (rate,) = win_rates([said("p", "a", "b", None)], "a", "b")
    assert rate.won is None and rate.lost is None and rate.unread == 1
    assert rate.json()["shares"] == {"wins": None, "ties": None, "losses": None}
