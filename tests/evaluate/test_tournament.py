"""Ratings equal those computed by hand and by scipy, and intervals contain what they should."""

import numpy as np
import pytest
from scipy.optimize import minimize

from graft.errors import DataError, UsageError
from graft.evaluate.tournament import RIDGE, SCALE, Games, bradley_terry, elo, elo_over_prompts, strengths

SMALL = Games.of(
    [
        ("p", "a", "b", 1.0),
        ("p", "b", "c", 0.5),
        ("q", "a", "c", 1.0),
        ("q", "c", "b", 1.0),
        ("r", "b", "a", 0.75),
    ]
)


def league(strength, prompts, seed, *, both=0.5, ties=0.3):
    """Games of every pair on every prompt, twice; the expected score is exactly Bradley-Terry's.

    both: how often the second game of a pair repeats the first, so that games of a prompt are alike.
    """
    rng = np.random.default_rng(seed)
    rows = []
    names = [f"m{i}" for i in range(len(strength))]
    for i in range(len(strength)):
        for j in range(i + 1, len(strength)):
            p = 1 / (1 + np.exp((strength[j] - strength[i]) / SCALE))
            tie = 2 * ties * min(p, 1 - p)
            draws = rng.choice([1.0, 0.5, 0.0], p=[p - tie / 2, tie, 1 - p - tie / 2], size=(prompts, 2))
            repeat = rng.random(prompts) < both
            draws[repeat, 1] = draws[repeat, 0]
            rows += [(str(q), names[i], names[j], s) for q in range(prompts) for s in draws[q]]
    return Games.of(rows)


def test_one_game_moves_both_ratings_as_the_specification_says():
    games = Games.of([("p", "a", "b", 1.0)])
    assert elo(games, orders=1, start=1000).rating == pytest.approx([1016, 984])
    # R_A = 1000, R_B = 1050: E = .42854, so a win gives A 18.2868 points and leaves B 1031.71318.
    gain = 32 * (1 - 1 / (1 + np.exp(50 / SCALE)))
    assert gain == pytest.approx(18.2868, abs=1e-4) and 1050 - gain == pytest.approx(1031.71318, abs=1e-4)


def by_hand(games, order, k=32):
    """Elo, one game after the other, in plain Python."""
    ratings = [1000.0] * len(games.models)
    for n in order:
        a, b = games.a[n], games.b[n]
        expected = 1 / (1 + 10 ** ((ratings[b] - ratings[a]) / 400))
        ratings[a] += k * (games.score[n] - expected)
        ratings[b] -= k * (games.score[n] - expected)
    return ratings


def test_elo_is_the_mean_over_orders_of_the_rule_played_in_plain_python():
    from itertools import permutations

    every = np.array([by_hand(SMALL, order) for order in permutations(range(5))])
    ours = elo(SMALL, orders=40_000)
    assert ours.rating == pytest.approx(every.mean(0), abs=0.3)  # sd of 12 points over 40,000 orders
    assert ours.low == pytest.approx(np.percentile(every, 2.5, axis=0), abs=0.5)
    assert ours.high == pytest.approx(np.percentile(every, 97.5, axis=0), abs=0.5)


def test_bradley_terry_is_the_maximum_that_scipy_finds():
    games = league([1100, 1000, 980, 900], prompts=30, seed=1)
    pairs = np.array([games.a, games.b])

    def loss(theta):
        x = theta[pairs[0]] - theta[pairs[1]]
        terms = games.score * np.logaddexp(0, -x) + (1 - games.score) * np.logaddexp(0, x)
        return terms.sum() + RIDGE / 2 * (theta**2).sum()

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    assert bradley_terry(games, resamples=1).rating == pytest.approx(
        1000 + SCALE * (best - best.mean()), abs=1e-3
    )


def test_two_models_have_the_rating_of_the_odds():
    games = Games.of([("p", "a", "b", s) for s in (1, 1, 1, 0)])
    gap = 400 * np.log10(3)  # three wins to one
    assert bradley_terry(games, resamples=1).rating == pytest.approx(
        [1000 + gap / 2, 1000 - gap / 2], abs=1e-3
    )


def test_all_ties_give_every_model_1000():
    games = Games.of([("p", a, b, 0.5) for a, b in ("ab", "bc", "ca")])
    for ratings in (
        elo(games, orders=50),
        elo_over_prompts(games, resamples=5),
        bradley_terry(games, resamples=5),
    ):
        for values in (ratings.rating, ratings.low, ratings.high):
            assert values == pytest.approx([1000] * 3, abs=1e-9)


def test_a_model_that_won_every_game_has_a_finite_rating_above_the_others():
    points = np.zeros((1, 3, 3))
    points[0, 0, 1:], points[0, 1, 2], points[0, 2, 1] = 50, 20, 5
    ratings = strengths(points)[0]
    assert (
        np.isfinite(ratings).all()
        and ratings[0] > ratings[1] > ratings[2]
        and ratings.mean() == pytest.approx(1000)
    )


def test_known_strengths_are_recovered():
    true = np.array([1200.0, 1050, 1000, 950, 800])
    games = league(true, prompts=1500, seed=3)
    assert bradley_terry(games, resamples=1).rating == pytest.approx(true, abs=12)  # sd of about 4
    assert elo(games, orders=300).rating == pytest.approx(true, abs=25)  # K = 32 leaves a bias of some points


def test_intervals_over_prompts_contain_the_strengths_nearly_always():
    """30 tournaments of 5 models; 200 are in benchmarks/judging."""
    true = np.array([1150.0, 1050, 1000, 950, 850])
    inside = []
    for seed in range(30):
        found = bradley_terry(league(true, prompts=60, seed=seed), resamples=300, seed=seed)
        inside += list((found.low <= true) & (true <= found.high))
    assert 0.88 <= np.mean(inside) <= 0.995


def test_prompts_that_decide_several_games_at_once_widen_the_interval():
    """Every prompt twenty times: the games are twenty times as many, what is known is the same."""
    once = [(str(q), "a", "b", float(q % 3 > 0)) for q in range(60)]
    few, many = bradley_terry(Games.of(once)), bradley_terry(Games.of(once * 20))
    assert many.rating == pytest.approx(few.rating, abs=1e-3)
    assert many.low == pytest.approx(few.low, abs=1e-3) and many.high == pytest.approx(few.high, abs=1e-3)


def test_the_spread_that_few_orders_leave_is_taken_out_of_elos_interval():
    games = league([1080, 1000, 920], prompts=40, seed=5)
    few = elo_over_prompts(games, resamples=600, orders=4)
    many = elo_over_prompts(games, resamples=600, orders=60)
    assert few.high - few.low == pytest.approx(many.high - many.low, rel=0.15)
    exact = bradley_terry(games)  # the same sampling noise, without any order
    assert many.high - many.low == pytest.approx(exact.high - exact.low, rel=0.25)


def test_a_seed_repeats_the_numbers_and_blocks_do_not_change_them(monkeypatch):
    games = league([1050, 1000, 950], prompts=6, seed=2)
    whole = elo(games, orders=40, seed=7), elo_over_prompts(games, resamples=9, orders=3, seed=7)
    monkeypatch.setattr("graft.evaluate.tournament.ENTRIES", 100)
    parts = elo(games, orders=40, seed=7), elo_over_prompts(games, resamples=9, orders=3, seed=7)
    for one, two in zip(whole, parts, strict=True):
        assert np.array_equal(one.rating, two.rating) and np.array_equal(one.low, two.low)
    assert not np.array_equal(whole[0].rating, elo(games, orders=40, seed=8).rating)


def test_the_matrices_count_points_and_games():
    # a beat b and got a quarter from it, so 1.25 of 2; b and c tied and c beat b.
    assert SMALL.points().tolist() == [[0, 1.25, 1], [0.75, 0, 0.5], [0, 1.5, 0]]
    assert SMALL.played().tolist() == [[0, 2, 1], [2, 0, 2], [1, 2, 0]]


@pytest.mark.parametrize(
    "rows", [[], [("p", "a", "a", 1.0)], [("p", "a", "b", 1.5)], [("p", "a", "b", float("nan"))]]
)
def test_what_is_no_game_is_refused(rows):
    with pytest.raises(DataError):
        Games.of(rows)


@pytest.mark.parametrize("rate", [elo, elo_over_prompts, bradley_terry])
def test_models_that_never_met_are_not_compared(rate):
    games = Games.of([("p", "a", "b", 1.0), ("p", "c", "d", 1.0)])
    with pytest.raises(DataError, match="no chain of games leads from a to c, d"):
        rate(games)
    with pytest.raises(UsageError):
        rate(SMALL, **{"orders" if rate is elo else "resamples": 0})
