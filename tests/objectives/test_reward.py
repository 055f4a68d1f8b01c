"""Bradley-Terry against TRL and by hand; calibration and length bias against numpy and scipy."""

import math

import numpy
import pytest
import torch
import trl_oracle
from scipy import stats
from torch.testing import assert_close

from graft.objectives import reward

PAIRS = 40


@pytest.fixture
def rewards():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2 * PAIRS, generator=generator, dtype=torch.float64).requires_grad_()


def test_golden_values():
    chosen, rejected = torch.tensor([1.2, 0.4], dtype=torch.float64)
    assert float(reward.bradley_terry(chosen, rejected)) == pytest.approx(0.3711007, abs=5e-8)
    assert float(reward.bradley_terry(chosen, rejected, 0.5)) == pytest.approx(0.5543552, abs=5e-8)
    assert float(reward.centring(chosen, rejected)) == pytest.approx(2.56)


@pytest.mark.parametrize("centring", [None, 0.05])
@pytest.mark.parametrize("with_margin", [False, True])
def test_loss_gradient_and_metrics_are_those_of_trl(rewards, centring, with_margin):
    pytest.importorskip("trl")
    chosen, rejected = rewards.chunk(2)
    margin = torch.linspace(-1, 2, PAIRS, dtype=torch.float64) if with_margin else None
    wanted, metrics = trl_oracle.reward(chosen, rejected, margin, centring=centring)
    found = reward.bradley_terry(chosen, rejected, 0.0 if margin is None else margin)
    found = (found + (centring or 0.0) * reward.centring(chosen, rejected)).mean()
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    (one,), (other,) = (torch.autograd.grad(loss, rewards, retain_graph=True) for loss in (found, wanted))
    assert_close(one, other, rtol=1e-12, atol=1e-12)
    better, worse = torch.arange(2 * PAIRS).chunk(2)
    sums = reward.reward_sums(rewards, torch.ones(2 * PAIRS), better, worse)
    assert float(sums["correct"]) / PAIRS == pytest.approx(metrics["accuracy"], rel=1e-6)
    assert float(sums["margin"]) / PAIRS == pytest.approx(metrics["margin"], rel=1e-6)


def test_calibration_is_numpys_histogram_of_the_probabilities(rewards):
    better, worse = torch.arange(2 * PAIRS).chunk(2)
    sums = reward.reward_sums(rewards, torch.ones(2 * PAIRS), better, worse)
    difference = (rewards[better] - rewards[worse]).detach().numpy()
    sure = 1 / (1 + numpy.exp(-numpy.abs(difference)))
    edges = numpy.linspace(0.5, 1, reward.BINS + 1)
    counts, _ = numpy.histogram(sure, edges)
    right, _ = numpy.histogram(sure, edges, weights=(difference > 0).astype(float))
    summed, _ = numpy.histogram(sure, edges, weights=sure)
    table = sums["calibration"].numpy()
    assert table[:, 0].tolist() == counts.tolist() and table[:, 1].tolist() == right.tolist()
    numpy.testing.assert_allclose(table[:, 2], summed, rtol=1e-12)
    error = sum(abs(r - s) for r, s in zip(right, summed, strict=True)) / PAIRS
    assert reward.calibration_error(table.tolist()) == pytest.approx(error)


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated():
    generator = torch.Generator().manual_seed(3)
    margin = 2 * torch.randn(20_000, generator=generator)
    wins = torch.rand(len(margin), generator=generator) < torch.sigmoid(margin)
    signed = torch.where(wins, margin, -margin)  # better minus worse
    rewards = torch.cat([signed, torch.zeros_like(signed)])
    better, worse = torch.arange(2 * len(margin)).chunk(2)

    def error(scale):
        table = reward.reward_sums(scale * rewards, torch.ones(len(rewards)), better, worse)["calibration"]
        return reward.calibration_error(table.tolist())

    # Some 2,000 pairs a bin: the share of right ones has a standard error of about 0.01.
    assert error(1) < 0.015 < 0.1 < error(5)


def test_length_bias_is_pearsons_correlation_of_pairs_taken_both_ways(rewards):
    lengths = torch.arange(2 * PAIRS) * 7 % 23
    better, worse = torch.arange(2 * PAIRS).chunk(2)
    sums = reward.reward_sums(rewards, lengths, better, worse)
    difference = (rewards[better] - rewards[worse]).detach().numpy()
    longer = (lengths[better] - lengths[worse]).numpy()
    both = stats.pearsonr([*difference, *-difference], [*longer, *-longer]).statistic
    assert reward.length_bias({k: v for k, v in sums.items()}) == pytest.approx(both)


def test_answers_of_one_length_have_no_length_bias(rewards):
    better, worse = torch.arange(2 * PAIRS).chunk(2)
    assert reward.length_bias(reward.reward_sums(rewards, torch.full((2 * PAIRS,), 3), better, worse)) == 0.0


def test_a_reward_that_is_the_length_has_a_length_bias_of_one():
    lengths = torch.tensor([9, 4, 8, 3])  # the better ones are longer by the same 5 tokens
    sums = reward.reward_sums(lengths.double(), lengths, torch.tensor([0, 2]), torch.tensor([1, 3]))
    assert reward.length_bias(sums) == pytest.approx(1.0) and math.isclose(float(sums["margin"]), 10)
