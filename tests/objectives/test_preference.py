"""Losses on pairs and on single answers against TRL's own, against numbers by hand, and at their edges."""

import math

import pytest
import torch
import trl_oracle
from torch.testing import assert_close

from graft.objectives import preference as losses

SIGMOID_KINDS = {"dpo": "sigmoid", "hinge": "hinge", "ipo": "ipo", "robust": "robust"}
PAIRS = 6


@pytest.fixture
def pairs():
    """(chosen, rejected), each with a gradient, their references, and the lengths of all answers."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        return -20 * torch.rand(PAIRS, generator=generator, dtype=torch.float64) - 5

    chosen, rejected = draw().requires_grad_(), draw().requires_grad_()
    lengths = torch.randint(3, 12, (2 * PAIRS,), generator=generator)
    return chosen, rejected, draw(), draw(), lengths


def ours(kind, chosen, rejected, chosen_reference, rejected_reference, lengths, beta, smoothing):
    h = (chosen - chosen_reference) - (rejected - rejected_reference)
    if kind == "dpo":
        return losses.dpo(h, beta, smoothing)
    if kind == "hinge":
        return losses.hinge(h, beta)
    if kind == "robust":
        return losses.robust(h, beta, smoothing)
    one, other = lengths.chunk(2)
    return losses.ipo((chosen - chosen_reference) / one - (rejected - rejected_reference) / other, beta)


@pytest.mark.parametrize(("kind", "smoothing"), [("dpo", 0.0), ("hinge", 0.0), ("ipo", 0.0), ("robust", 0.2)])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_losses_gradients_and_metrics_on_pairs_are_those_of_trl(pairs, kind, smoothing, beta):
    pytest.importorskip("trl")
    chosen, rejected, *rest = pairs
    wanted, metrics = trl_oracle.dpo(SIGMOID_KINDS[kind], *pairs, beta=beta, label_smoothing=smoothing)
    found = ours(kind, *pairs, beta, smoothing).mean()
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, [chosen, rejected]),
        torch.autograd.grad(wanted, [chosen, rejected]),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-12, atol=1e-12)
    logprobs = torch.cat([chosen, rejected])
    rewards = beta * (logprobs - torch.cat(rest[:2]))
    better, worse = torch.arange(2 * PAIRS).chunk(2)
    sums = losses.pair_sums(rewards, logprobs, better, worse)
    named = {
        "correct": "rewards/accuracies", "reward_chosen": "rewards/chosen", "margin": "rewards/margins",
        "reward_rejected": "rewards/rejected", "logp_chosen": "logps/chosen",
        "logp_rejected": "logps/rejected",
    }  # fmt: skip
    for name, theirs in named.items():
        assert float(sums[name]) / PAIRS == pytest.approx(metrics[theirs], rel=1e-6), name


def test_conservative_dpo_is_the_mixture_of_both_orders(pairs):
    chosen, rejected, one, other, _ = pairs
    h = ((chosen - one) - (rejected - other)).detach()
    mixed = 0.8 * losses.dpo(h, 0.3) + 0.2 * losses.dpo(-h, 0.3)
    assert_close(losses.dpo(h, 0.3, 0.2), mixed, rtol=1e-12, atol=1e-12)


def test_the_mean_of_robust_losses_over_flipped_labels_is_dpos_loss_on_the_right_ones():
    h = torch.linspace(-4, 4, 9, dtype=torch.float64)
    expected = 0.7 * losses.robust(h, 0.5, 0.3) + 0.3 * losses.robust(-h, 0.5, 0.3)
    assert_close(expected, losses.dpo(h, 0.5), rtol=1e-12, atol=1e-12)


def test_golden_values():
    h = torch.tensor((-12.0 + 13.0) - (-15.0 + 14.5), dtype=torch.float64)
    assert float(h) == 1.5
    assert float(losses.dpo(h, 0.1)) == pytest.approx(0.6209570, abs=5e-8)
    assert float(losses.ipo(h, 0.1)) == pytest.approx(12.25)
    assert float(losses.hinge(h, 0.1)) == pytest.approx(0.85)
    assert float(losses.dpo(torch.zeros(()), 0.1)) == pytest.approx(math.log(2))


def test_simpo_is_that_of_trl(pairs):
    pytest.importorskip("trl")
    chosen, rejected, _, _, lengths = pairs
    one, other = chosen / lengths[:PAIRS], rejected / lengths[PAIRS:]
    wanted, *_ = trl_oracle.simpo(one, other, beta=2.0, gamma=0.7)
    found = losses.simpo(one, other, 2.0, 0.7)
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(found.sum(), [chosen, rejected], retain_graph=True),
        torch.autograd.grad(wanted.sum(), [chosen, rejected]),
        strict=True,
    ):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_odds_of_orpo_are_those_of_trl(pairs):
    pytest.importorskip("trl")
    chosen, rejected, _, _, lengths = pairs
    one, other = chosen / lengths[:PAIRS], rejected / lengths[PAIRS:]
    subtracted, *_ = trl_oracle.orpo(one, other, beta=0.2)  # in fp32
    assert_close(losses.orpo(one, other, 0.2) + one, -subtracted.double(), rtol=1e-6, atol=1e-6)


def test_orpo_by_hand_and_for_an_answer_that_is_certain():
    chosen, rejected = torch.tensor(math.log(0.5)), torch.tensor(math.log(0.25))
    odds = (0.5 / 0.5) / (0.25 / 0.75)
    wanted = -math.log(0.5) - 0.1 * math.log(1 / (1 + 1 / odds))
    assert float(losses.orpo(chosen, rejected, 0.1)) == pytest.approx(wanted, rel=1e-6)
    certain = torch.zeros(1, requires_grad=True)
    loss = losses.orpo(certain, torch.tensor([-1.0]), 0.1)
    loss.sum().backward()
    assert loss.isfinite().all() and certain.grad.isfinite().all()


@pytest.mark.parametrize("shift", [0.0, -40.0])  # the second: a negative estimate counts as 0
def test_kto_is_that_of_trl(shift):
    pytest.importorskip("trl")
    generator = torch.Generator().manual_seed(1)
    logps, reference, other, other_reference = (
        -30 * torch.rand(7, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    logps.requires_grad_()
    other = other + 8 + shift
    good = torch.tensor([1, 0, 1, 1, 0, 0, 1]).bool()
    settings = {"beta": 0.2, "desirable": 1.3, "undesirable": 0.7}
    wanted, metrics = trl_oracle.kto(logps, reference, other, other_reference, good, **settings)
    z0 = losses.reference_point(other - other_reference)
    found = losses.kto(logps - reference, good, z0, **settings).mean()
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert float(z0) == pytest.approx(metrics["kl"]) and (float(z0) == 0) == (shift < 0)
    (one,), (two,) = torch.autograd.grad(found, logps), torch.autograd.grad(wanted, logps)
    assert_close(one, two, rtol=1e-12, atol=1e-12)
    sums = losses.unpaired_sums(0.2 * (logps - reference), logps, good, 0.2 * z0)
    assert float(sums["reward_good"]) / 4 == pytest.approx(metrics["rewards/chosen"])
    assert float(sums["reward_bad"]) / 3 == pytest.approx(metrics["rewards/rejected"])
    assert float(sums["logp_bad"]) / 3 == pytest.approx(metrics["logps/rejected"])


def test_the_reference_point_gets_no_gradient():
    ratios = torch.tensor([1.0, 3.0], requires_grad=True)
    assert float(losses.reference_point(ratios)) == 2.0 and not losses.reference_point(ratios).requires_grad


def test_an_answer_is_right_on_its_side_of_the_reference_point_only():
    rewards = torch.tensor([0.5, 0.1, 0.1, 0.5])
    good = torch.tensor([True, True, False, False])
    sums = losses.unpaired_sums(rewards, rewards, good, torch.tensor(0.3))
    assert (float(sums["correct"]), float(sums["good"]), sums["tokens"]) == (2.0, 2.0, 4.0)


def test_equal_rewards_are_no_right_pair():
    sums = losses.pair_sums(torch.zeros(2), torch.zeros(2), torch.tensor([0]), torch.tensor([1]))
    assert float(sums["correct"]) == 0.0
