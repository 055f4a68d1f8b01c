"""Agreement equals scipy's and the published example; biases equal counts by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from graft.errors import DataError, UsageError
from graft.evaluate.agreement import (
    agreement,
    fleiss_kappa,
    kendall_tau,
    length_bias,
    mean_over_prompts,
    order_bias,
    relative_scores,
    spearman,
)
from graft.evaluate.judgements import Judgement


@pytest.mark.parametrize("seed", range(6))
def test_rank_correlations_are_scipys(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 9), rng.normal(size=9).round(seed % 3)  # with ties
    assert kendall_tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_equal_values_have_no_rank_correlation():
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1, 2, 3], [5, 5, 5]))


def test_fleiss_kappa_of_the_published_example():
    """Fourteen raters, ten subjects, five classes: κ = 0.210 (Wikipedia, "Fleiss' kappa", worked example)."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(table) == pytest.approx(0.20993, abs=1e-5)


def test_fleiss_kappa_at_its_ends():
    assert fleiss_kappa([[2, 0], [0, 2]]) == 1.0
    assert fleiss_kappa([[1, 1], [1, 1]]) == -1.0
    assert math.isnan(fleiss_kappa([[2, 0], [2, 0]]))
    with pytest.raises(DataError, match=r"items with \[2, 3\] judges"):
        fleiss_kappa([[2, 0], [2, 1]])


def said(judge, verdicts):
    """One judge's judgements of a against b and of b against c, a prompt each, in one order."""
    return [
        Judgement(str(i), *pair, verdict, judge=judge)
        for pair, row in zip((("a", "b"), ("b", "c")), verdicts, strict=True)
        for i, verdict in enumerate(row)
    ]


def test_agreement_counts_the_items_that_every_judge_judged():
    one = said("x", (["1", "1", "1", "2"], ["1", "1", "1", "2"]))
    more = Judgement("9", "a", "c", "1", judge="y")  # x did not judge it
    two = [*said("y", (["1", "1", "2", "2"], ["1", "1", "tie", "2"])), more]
    found = agreement(one + two)
    # 6 of 8 items the same; of 16 verdicts 10 prefer the pair's first model, 1 is a tie, 5 the second.
    chance = (10 / 16) ** 2 + (1 / 16) ** 2 + (5 / 16) ** 2
    assert (found.items, found.same) == (8, 0.75)
    assert found.kappa == pytest.approx((0.75 - chance) / (1 - chance))
    # x: a above b above c; y: a and b equal, c below.
    assert found.kendall == {("x", "y"): pytest.approx(stats.kendalltau([3, 2, 1], [2, 2, 1]).statistic)}
    assert found.spearman == {("x", "y"): pytest.approx(stats.spearmanr([3, 2, 1], [2, 2, 1]).statistic)}


def test_agreement_needs_two_judges_and_common_items():
    with pytest.raises(DataError, match="1 judges"):
        agreement(said("x", (["1"], ["1"])))
    with pytest.raises(DataError, match="2 judges and 0 pairs"):
        agreement([Judgement("p", "a", "b", "1", judge="x"), Judgement("q", "a", "b", "1", judge="y")])


def test_order_bias_counts_only_pairs_that_were_seen_both_ways():
    both = [Judgement("p", "a", "b", "1"), Judgement("p", "b", "a", "1"),
            Judgement("q", "a", "b", "1"), Judgement("q", "b", "a", "2"),
            Judgement("r", "a", "b", "tie"), Judgement("r", "b", "a", "1")]  # fmt: skip
    alone = [Judgement("s", "a", "b", "2"), Judgement("t", "a", "b", "1"), Judgement("t", "b", "a", None)]
    found = order_bias(both + alone)
    assert found.first.value == pytest.approx(4.5 / 6) and found.first.count == 6
    assert (found.wins, found.ties) == (pytest.approx(4 / 6), pytest.approx(1 / 6))
    assert found.consistent.value == pytest.approx(1 / 3) and found.consistent.count == 3
    assert order_bias(alone) is None


def test_a_judge_that_always_takes_the_first_has_an_interval_of_no_width():
    each = [Judgement(p, *pair, "1") for p in "pqr" for pair in (("a", "b"), ("b", "a"))]
    found = order_bias(each)
    assert (found.first.value, found.first.low, found.first.high, found.consistent.value) == (1, 1, 1, 0)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_prompts():
    rng = np.random.default_rng(0)
    values = (rng.random(900) < 0.3).astype(float)
    found = mean_over_prompts([str(i) for i in range(900)], values)
    half = 1.96 * values.std() / 30
    assert found.low == pytest.approx(values.mean() - half, abs=0.004)
    assert found.high == pytest.approx(values.mean() + half, abs=0.004)
    doubled = mean_over_prompts([str(i) for i in range(900)] * 2, np.tile(values, 2))
    assert (doubled.low, doubled.high) == pytest.approx(
        (found.low, found.high)
    )  # no more prompts, no more known


def test_length_bias_is_the_points_of_the_longer_answer():
    told = [
        Judgement("p", "a", "b", "1", characters=(9, 2)),
        Judgement("p", "b", "a", "tie", characters=(2, 9)),
        Judgement("q", "a", "b", "1", characters=(3, 4)),
        Judgement("r", "a", "b", "1", characters=(4, 4)),
        Judgement("r", "a", "b", "1"),
        Judgement("s", "a", "b", None, characters=(4, 5)),
    ]
    found = length_bias(told)
    assert found.value == pytest.approx((1 + 0.5 + 0) / 3) and found.count == 3
    assert length_bias(told[3:5]) is None


def test_scores_relative_to_a_model_are_ratios_of_sums_averaged_over_the_orders():
    marked = [
        Judgement("p", "a", "ref", "1", scores=(9, 6)),
        Judgement("q", "a", "ref", "2", scores=(6, 8)),
        Judgement("p", "ref", "a", "1", scores=(8, 6)),
        Judgement("q", "ref", "b", "1", scores=(10, 5)),
        Judgement("q", "a", "b", "1", scores=(10, 5)),
    ]
    found = relative_scores(marked, "ref")
    assert set(found) == {"a", "b"}
    assert (found["a"].first, found["a"].second) == (pytest.approx(100 * 15 / 14), 75.0)
    assert found["a"].value.value == pytest.approx((100 * 15 / 14 + 75) / 2) and found["a"].value.count == 3
    assert (found["b"].first, found["b"].second, found["b"].value.value) == (None, 50.0, 50.0)
    with pytest.raises(UsageError, match="relative to='reff'"):
        relative_scores(marked, "reff")
