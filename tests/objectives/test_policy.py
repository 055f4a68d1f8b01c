"""Ratios, distances and layouts of answers, against loops over their tokens and numbers by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from graft.errors import UsageError
from graft.objectives import policy

LENGTHS = torch.tensor([3, 1, 5, 2])


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_padding_puts_each_answer_into_its_row_and_is_undone():
    flat = torch.arange(1.0, 12.0, requires_grad=True)
    table = policy.padded(flat, LENGTHS, fill=-7.0)
    assert table.tolist() == [
        [1, 2, 3, -7, -7],
        [4, -7, -7, -7, -7],
        [5, 6, 7, 8, 9],
        [10, 11, -7, -7, -7],
    ]
    assert torch.equal(policy.flattened(table, LENGTHS), flat)
    (table * torch.arange(20.0).view(4, 5)).sum().backward()
    assert flat.grad.tolist() == [0, 1, 2, 5, 10, 11, 12, 13, 14, 15, 16]


def test_sums_of_answers_and_their_gradient():
    flat = torch.arange(1.0, 12.0, requires_grad=True)
    sums = policy.answer_sums(flat, LENGTHS)
    assert sums.tolist() == [6, 4, 35, 21]
    (sums * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert flat.grad.tolist() == [1, 1, 1, 2, 3, 3, 3, 3, 3, 4, 4]


def test_golden_values_of_the_divergence():
    logprob = torch.tensor([-1.3], dtype=torch.float64)
    found = {name: float(policy.divergence(logprob, logprob + 0.3, name)) for name in policy.ESTIMATORS}
    assert found["k1"] == pytest.approx(-0.3, abs=1e-12)
    assert found["k2"] == pytest.approx(0.045, abs=1e-12)
    assert found["k3"] == pytest.approx(0.0498588, abs=5e-8)


def test_estimates_have_the_mean_that_they_promise():
    ours, theirs = torch.log_softmax(drawn(2, 6), dim=1)
    exact = float((ours.exp() * (ours - theirs)).sum())
    mean = {
        name: float((ours.exp() * policy.divergence(ours, theirs, name)).sum()) for name in policy.ESTIMATORS
    }
    assert mean["k1"] == pytest.approx(exact, rel=1e-12) and mean["k3"] == pytest.approx(exact, rel=1e-12)
    assert abs(mean["k2"] - exact) > 0.01  # the biased one
    assert (policy.divergence(ours, theirs, "k3") >= 0).all()


def test_an_unknown_estimator_is_named():
    with pytest.raises(UsageError, match=r"estimator='k4'.*k1, k2, k3"):
        policy.divergence(torch.zeros(1), torch.zeros(1), "k4")


@pytest.mark.parametrize("high", [None, 0.28])
def test_losses_gradients_and_clipped_actions_are_those_of_a_loop(high):
    new, old, advantages = drawn(40).requires_grad_(), drawn(40, seed=1), drawn(40, seed=2)
    losses, clipped = policy.clipped_policy(new, old, advantages, 0.2, high)
    (gradient,) = torch.autograd.grad(losses.sum(), new)
    assert 5 < clipped.sum() < 35
    for i, (one, other, a) in enumerate(zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True)):
        ratio = math.exp(one - other)
        bounded = min(max(ratio, 0.8), 1.2 if high is None else 1.28)
        free_wins = -a * ratio >= -a * bounded
        assert float(losses[i].detach()) == pytest.approx(max(-a * ratio, -a * bounded), abs=1e-12)
        assert bool(clipped[i]) is not free_wins
        assert float(gradient[i]) == pytest.approx(-a * ratio if free_wins else 0.0, abs=1e-12)


@given(st.lists(st.floats(-100, 0), min_size=1, max_size=8), st.floats(0.01, 0.9), st.floats(-5, 5))
def test_the_policy_that_wrote_the_answers_is_never_clipped(logprobs, epsilon, advantage):
    new = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    losses, clipped = policy.clipped_policy(
        new, new.detach(), torch.full_like(new, advantage).detach(), epsilon
    )
    assert not clipped.any() and (losses == -advantage).all()
    losses.sum().backward()
    assert_close(new.grad, torch.full_like(new.grad, -advantage), rtol=1e-12, atol=1e-12)  # of REINFORCE


def test_reports_of_micro_batches_add_up_to_that_of_the_batch():
    new, old, advantages = drawn(11), drawn(11, seed=1), drawn(11, seed=2)
    _, clipped = policy.clipped_policy(new, old, advantages, 0.2)
    parts = [policy.policy_sums(new[s], old[s], clipped[s]) for s in (slice(0, 4), slice(4, 11))]
    means = policy.policy_means({name: parts[0][name] + parts[1][name] for name in parts[0]})
    ratios = [math.exp(a - b) for a, b in zip(new.tolist(), old.tolist(), strict=True)]
    assert float(means["ratio"]) == pytest.approx(sum(ratios) / 11)
    assert float(means["approximate_kl"]) == pytest.approx(sum(math.log(r) ** 2 / 2 for r in ratios) / 11)
    assert float(means["clip_fraction"]) == pytest.approx(sum(clipped.tolist()) / 11) and clipped.any()


def test_reports_carry_no_gradient():
    new = torch.zeros(3, requires_grad=True)
    sums = policy.policy_sums(new, torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    assert not any(isinstance(v, torch.Tensor) and v.requires_grad for v in sums.values())
    assert policy.policy_means(sums) == {"ratio": 1.0, "clip_fraction": 0.0, "approximate_kl": 0.0}
