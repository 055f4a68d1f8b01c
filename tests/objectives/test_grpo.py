"""Losses and advantages of groups of answers against TRL's own, against numbers by hand, at their edges."""

import statistics

import pytest
import torch
import trl_oracle
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from graft.errors import UsageError
from graft.objectives import grpo
from graft.objectives.policy import answer_sums, divergence, flattened, live_tokens, policy_sums

LENGTHS = torch.tensor([3, 1, 6, 2, 4, 4])
LIVE = live_tokens(LENGTHS)
LONGEST = 8  # no answer is so long
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}  # weights of tokens are of single precision


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answers():
    """Log-probabilities (A, T) of six answers: by the policy, with a gradient, the old one, the reference."""
    old = -2 - drawn(6, 6).abs()
    new = (old + 0.3 * drawn(6, 6, seed=1)).requires_grad_()
    return new, old, old + 0.4 * drawn(6, 6, seed=2)


def of_a_step(kind, losses, lengths=LENGTHS):
    """The loss of a step as the trainer makes it of token losses: summed, then divided by what is counted."""
    count = len(lengths) if grpo.counted(kind) == "answers" else int(lengths.sum())
    return (losses * grpo.token_weights(kind, lengths, LONGEST)).sum() / count


@pytest.mark.parametrize("kind", grpo.COUNTED)
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("high", [0.2, 0.28])
def test_losses_gradients_and_metrics_are_those_of_trl(kind, beta, high):
    pytest.importorskip("trl")
    tables, gains = answers(), drawn(6, seed=3)
    wanted, metrics = trl_oracle.grpo(
        kind, *tables, gains, LIVE, low=0.2, high=high, beta=beta, longest=LONGEST
    )
    new, old, reference = (flattened(table, LENGTHS) for table in tables)
    losses, clipped = grpo.token_losses(
        new, old, reference if beta else None, gains.repeat_interleave(LENGTHS), 0.2, high, beta
    )
    found = of_a_step(kind, losses)
    assert_close(found, wanted, **TOLERANCE)
    (one,), (two,) = torch.autograd.grad(found, tables[0]), torch.autograd.grad(wanted, tables[0])
    assert_close(one, two, **TOLERANCE)
    assert 2 < clipped.sum() < 18
    assert float(clipped.double().mean()) == pytest.approx(metrics["clip_ratio/region_mean"])
    if beta:
        assert float(divergence(new, reference, "k3").detach().mean()) == pytest.approx(metrics["kl"])


def test_losses_gradients_and_metrics_of_whole_answers_are_those_of_trl():
    pytest.importorskip("trl")
    tables, gains = answers()[:2], drawn(6, seed=3)
    wanted, metrics = trl_oracle.rloo(*tables, gains, LIVE, low=0.2, high=0.28)
    new, old = (flattened(table, LENGTHS) for table in tables)
    losses, clipped = grpo.answer_losses(new, old, LENGTHS, gains, 0.2, 0.28)
    assert_close(losses.mean(), wanted, rtol=1e-12, atol=1e-12)
    (one,), (two,) = torch.autograd.grad(losses.mean(), tables[0]), torch.autograd.grad(wanted, tables[0])
    assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert 0 < clipped.sum() < 6
    sums = policy_sums(answer_sums(new, LENGTHS), answer_sums(old, LENGTHS), clipped)
    assert float(sums["clipped"]) / sums["actions"] == pytest.approx(metrics["clip_ratio/region_mean"])


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_of_groups_are_those_of_trl(scale):
    pytest.importorskip("trl")
    rewards = torch.cat([drawn(3), torch.full((3,), 0.5)])
    wanted, metrics = trl_oracle.advantages("grpo", rewards, 3, scale="group" if scale else "none")
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    found = grpo.group_advantages(rewards, group, scale=scale)
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert grpo.without_variance(rewards, group) == metrics["frac_reward_zero_std"] == 0.5


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_advantages_over_the_other_answers_are_those_of_trl(beta):
    pytest.importorskip("trl")
    rewards, (_, old, reference) = drawn(6, seed=4), answers()
    wanted, _ = trl_oracle.advantages("rloo", rewards, 3, old=old, reference=reference, mask=LIVE, beta=beta)
    kl = divergence(flattened(old, LENGTHS), flattened(reference, LENGTHS), "k1")
    penalised = rewards - beta * answer_sums(kl, LENGTHS)
    found = grpo.leave_one_out(penalised, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_golden_values_of_a_group():
    rewards, group = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64), torch.zeros(4).long()
    found = grpo.group_advantages(rewards, group, scale=True)
    assert found.tolist() == pytest.approx([0.8658754, -0.8658754, -0.8658754, 0.8658754], abs=5e-8)
    assert grpo.group_advantages(rewards, group, scale=False).tolist() == [0.5, -0.5, -0.5, 0.5]
    assert grpo.leave_one_out(rewards, group).tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


@given(st.lists(st.tuples(st.sampled_from([7, 2, 40]), st.floats(-10, 10)), min_size=1, max_size=12))
def test_groups_of_any_size_and_order_are_compared_within_themselves(answers):
    group = torch.tensor([name for name, _ in answers])
    rewards = torch.tensor([reward for _, reward in answers], dtype=torch.float64)
    centred, scaled = (grpo.group_advantages(rewards, group, scale=scale) for scale in (False, True))
    left_out = grpo.leave_one_out(rewards, group)
    for i, (name, reward) in enumerate(answers):
        mine = [r for other, r in answers if other == name]
        others = [r for j, (other, r) in enumerate(answers) if other == name and j != i]
        gap = reward - statistics.fmean(mine)
        deviation = statistics.stdev(mine) if others else 0.0
        assert float(centred[i]) == pytest.approx(gap, abs=1e-9)
        assert float(scaled[i]) == pytest.approx(gap / (deviation + 1e-4), abs=1e-6)
        assert float(left_out[i]) == pytest.approx(
            reward - statistics.fmean(others) if others else 0, abs=1e-9
        )


def test_groups_without_variance_are_counted():
    rewards = torch.tensor([1.0, 2.0, 0.3, 0.3, -5.0, 0.0, 0.0, 7.0])
    group = torch.tensor([4, 4, 0, 0, 9, 2, 2, 4])
    assert grpo.without_variance(rewards, group) == 0.75  # 0, 9 and 2, but not 4
    pair = torch.zeros(2).long()
    assert grpo.without_variance(torch.tensor([0.0, 0.001]), pair) == 0.0
    for rounding in ([1e-8, -1e-8], [90.0, 90.00001]):
        assert grpo.without_variance(torch.tensor(rounding), pair) == 1.0


def test_weights_by_hand():
    lengths = torch.tensor([1, 3])
    third = pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    assert grpo.token_weights("grpo", lengths, 5).tolist() == third
    assert grpo.token_weights("dr_grpo", lengths, 5).tolist() == pytest.approx([0.2] * 4)
    assert grpo.token_weights("dapo", lengths, 5).tolist() == [1] * 4
    assert grpo.token_weights("bnpo", lengths, 5).tolist() == [1] * 4
    with pytest.raises(UsageError, match=r"kind='drgrpo'.*did you mean 'dr_grpo'"):
        grpo.token_weights("drgrpo", lengths, 5)
    with pytest.raises(UsageError, match="kind='gpro'"):
        grpo.counted("gpro")


def test_the_loss_of_a_token_by_hand():
    new = torch.tensor([0.5, 1.25, 2.0]).log()
    losses, clipped = grpo.token_losses(
        new, torch.zeros(3), torch.zeros(3), torch.tensor([-2.0, 1.0, -1.0]), 0.2, 0.3, beta=0.1
    )
    # −min(ρ A, clip(ρ, 0.8, 1.3) A) + 0.1 (1/π + log π − 1)
    wanted = [
        1.6 + 0.1 * (2 - 0.6931472 - 1),
        -1.25 + 0.1 * (0.8 + 0.2231436 - 1),
        2 + 0.1 * (0.5 + 0.6931472 - 1),
    ]
    assert losses.tolist() == pytest.approx(wanted, abs=1e-6)
    assert clipped.tolist() == [True, False, False]
