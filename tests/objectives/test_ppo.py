"""PPO against loops in double precision, a whole update by hand, and problems whose answer is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from graft.objectives import ppo
from graft.objectives.policy import clipped_policy, divergence, live_tokens

LENGTHS = torch.tensor([4, 1, 6, 3])
LIVE = live_tokens(LENGTHS)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(table):
    """The live tokens of every answer, as lists of numbers."""
    return [row[:length] for row, length in zip(table.tolist(), LENGTHS.tolist(), strict=True)]


def spoilt(table):
    """The same answers with NaN behind their ends."""
    return torch.where(LIVE, table, math.nan)


def naive_advantages(rewards, values, gamma, lam):
    """GAE of one answer, as the sum of its definition."""
    values = [*values, 0.0]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def test_golden_values_of_the_advantages():
    rewards = torch.tensor([[-0.1, 0.05, -0.02, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.2, 0.3, 0.1, 0.6]], dtype=torch.float64)
    found, returns = ppo.advantages(rewards, values, torch.ones(1, 4).bool(), gamma=1.0, lam=0.95)
    assert found[0].tolist() == pytest.approx([0.63365, 0.667, 0.86, 0.4], abs=1e-12)
    assert returns[0].tolist() == pytest.approx([0.83365, 0.967, 0.96, 1.0], abs=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0), (0.5, 1.0)])
def test_advantages_and_returns_are_those_of_the_definition(gamma, lam):
    rewards, values = drawn(4, 6), drawn(4, 6, seed=1)
    found, returns = ppo.advantages(spoilt(rewards), spoilt(values), LIVE, gamma, lam)
    assert not found[~LIVE].any() and not returns[~LIVE].any()
    for one, back, r, v in zip(rows(found), rows(returns), rows(rewards), rows(values), strict=True):
        wanted = naive_advantages(r, v, gamma, lam)
        assert one == pytest.approx(wanted, abs=1e-12)
        assert back == pytest.approx([a + b for a, b in zip(wanted, v, strict=True)], abs=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.floats(0, 1))
def test_without_trust_in_the_value_returns_are_the_discounted_rewards(rewards, gamma):
    table = torch.tensor([rewards], dtype=torch.float64)
    _, returns = ppo.advantages(table, drawn(*table.shape), torch.ones_like(table).bool(), gamma, lam=1.0)
    left = [sum(gamma**i * r for i, r in enumerate(rewards[t:])) for t in range(len(rewards))]
    assert returns[0].tolist() == pytest.approx(left, abs=1e-9)


def test_the_score_is_added_at_the_last_token_only():
    scores, kl = drawn(4), drawn(4, 6, seed=1)
    found = ppo.token_rewards(scores, spoilt(kl), LIVE, beta=0.3)
    assert not found[~LIVE].any()
    for one, score, k in zip(rows(found), scores.tolist(), rows(kl), strict=True):
        wanted = [-0.3 * x for x in k]
        wanted[-1] += score
        assert one == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("shift", [True, False])
def test_whitening_is_that_of_a_loop(shift):
    x = 3 * drawn(4, 6) + 5
    found = ppo.whitened(spoilt(x), LIVE, shift=shift)
    flat = [number for row in rows(x) for number in row]
    mean = sum(flat) / len(flat)
    variance = sum((number - mean) ** 2 for number in flat) / (len(flat) - 1)
    wanted = [(n - mean) / math.sqrt(variance + 1e-8) + (0 if shift else mean) for n in flat]
    assert [number for row in rows(found) for number in row] == pytest.approx(wanted, abs=1e-12)
    assert not found[~LIVE].any()


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20).filter(lambda x: max(x) - min(x) > 0.1))
def test_what_is_whitened_has_mean_0_and_deviation_1(numbers):
    x = torch.tensor([numbers], dtype=torch.float64)
    found = ppo.whitened(x, torch.ones_like(x).bool())
    assert float(found.mean()) == pytest.approx(0, abs=1e-9)
    assert float(found.std()) == pytest.approx(1, abs=1e-4)  # 1e-8 is added to the variance


def test_one_token_alone_is_whitened_to_0():
    x = torch.tensor([[4.0, math.nan]])
    assert ppo.whitened(x, torch.tensor([[True, False]])).tolist() == [[0, 0]]
    assert ppo.whitened(x, torch.tensor([[True, False]]), shift=False).tolist() == [[4, 0]]


def test_losses_and_gradients_of_the_value_are_those_of_a_loop():
    values, old, returns = drawn(30).requires_grad_(), drawn(30, seed=1), drawn(30, seed=2)
    losses, clipped = ppo.clipped_value(values, old, returns, clip=0.4)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert 3 < clipped.sum() < 27
    for i, (v, o, r) in enumerate(zip(values.tolist(), old.tolist(), returns.tolist(), strict=True)):
        near = min(max(v, o - 0.4), o + 0.4)
        free, bounded = (v - r) ** 2, (near - r) ** 2
        assert float(losses[i].detach()) == pytest.approx(0.5 * max(free, bounded), abs=1e-12)
        assert bool(clipped[i]) is (bounded > free)
        assert float(gradient[i]) == pytest.approx(0.0 if bounded > free else v - r, abs=1e-12)


@pytest.mark.parametrize(
    ("kl", "wanted"),
    [
        (6.0, 0.2),
        (6.6, 0.2 * (1 + 0.1 * 0.0256)),
        (60.0, 0.2 * (1 + 0.2 * 0.0256)),  # errors count as a fifth at most
        (0.0, 0.2 * (1 - 0.2 * 0.0256)),
    ],
)
def test_the_weight_of_the_kl_follows_its_error(kl, wanted):
    assert ppo.adapted(0.2, kl, target=6.0, episodes=256, horizon=10_000) == pytest.approx(wanted, rel=1e-12)


def test_explained_variance_by_hand_and_where_there_is_none():
    returns, values = drawn(4, 6), drawn(4, 6, seed=1)
    r, v = ([n for row in rows(table) for n in row] for table in (returns, values))

    def variance(numbers):
        mean = sum(numbers) / len(numbers)
        return sum((n - mean) ** 2 for n in numbers) / len(numbers)

    wanted = 1 - variance([a - b for a, b in zip(r, v, strict=True)]) / variance(r)
    assert ppo.explained_variance(spoilt(values), spoilt(returns), LIVE) == pytest.approx(wanted)
    assert ppo.explained_variance(returns, returns, LIVE) == 1.0
    assert ppo.explained_variance(torch.zeros(4, 6), returns, LIVE) == pytest.approx(0.0, abs=1e-12)
    constant = (0.1 + 0.2 * values.float()) - 0.2 * values.float()  # 0.1, but for rounding
    assert constant.std() > 0 and ppo.explained_variance(values, constant, LIVE) == 0.0
    one = torch.zeros(4, 6).bool()
    one[0, 0] = True
    assert ppo.explained_variance(values, returns, one) == 0.0


# A whole update: a policy softmax(x W) and a value x·w on given features, both trained by Adam.

WIDTH, WORDS = 3, 5
BETA, GAMMA, LAM, EPSILON, VALUE_CLIP, VALUE_WEIGHT = 0.1, 0.98, 0.9, 0.15, 0.2, 0.5
LR, DECAY_1, DECAY_2, ADAM_EPSILON = 0.15, 0.9, 0.999, 1e-5
EPOCHS = [[[2, 0], [3, 1]], [[1, 2], [0, 3]]]  # of minibatches of answers


def problem():
    """Start weights, and features, actions, the reference's log-probabilities and scores of four answers."""
    actions = torch.randint(WORDS, (4, 6), generator=torch.Generator().manual_seed(9))
    reference = torch.log_softmax(drawn(4, 6, WORDS, seed=3), dim=-1)
    reference = reference.gather(2, actions[..., None])[..., 0]
    start = torch.cat([drawn(WIDTH, WORDS, seed=5), drawn(WIDTH, 1, seed=6)], dim=1)
    return start, drawn(4, 6, WIDTH, seed=7), actions, reference, drawn(4, seed=8)


def naive_update(start, features, actions, reference, scores):
    """The same in loops over numbers, with gradients and Adam written out.  Returns (weights, clipped)."""
    weights = [row[:] for row in start.tolist()]  # the last column is the value's
    cells = [(d, k) for d in range(WIDTH) for k in range(WORDS + 1)]
    lengths = LENGTHS.tolist()

    def forward(x):
        logits = [sum(x[d] * weights[d][k] for d in range(WIDTH)) for k in range(WORDS)]
        total = sum(math.exp(logit) for logit in logits)
        chances = [math.exp(logit) / total for logit in logits]
        return chances, sum(x[d] * weights[d][WORDS] for d in range(WIDTH))

    def deviation(numbers):
        mean = sum(numbers) / len(numbers)
        return mean, math.sqrt(sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1) + 1e-8)

    old, old_values, rewards = [], [], []
    for a, length in enumerate(lengths):
        steps = [forward(features[a, t].tolist()) for t in range(length)]
        old.append([math.log(chances[actions[a, t]]) for t, (chances, _) in enumerate(steps)])
        old_values.append([value for _, value in steps])
        rewards.append([-BETA * (p - float(reference[a, t])) for t, p in enumerate(old[a])])
        rewards[a][-1] += float(scores[a])
    mean, scale = deviation([r for row in rewards for r in row])
    rewards = [[(r - mean) / scale + mean for r in row] for row in rewards]
    gains = [naive_advantages(r, v, GAMMA, LAM) for r, v in zip(rewards, old_values, strict=True)]
    returns = [[g + v for g, v in zip(*pair, strict=True)] for pair in zip(gains, old_values, strict=True)]
    mean, scale = deviation([g for row in gains for g in row])
    gains = [[(g - mean) / scale for g in row] for row in gains]

    first, second = dict.fromkeys(cells, 0.0), dict.fromkeys(cells, 0.0)
    clipped = 0
    for step, answers in enumerate((minibatch for epoch in EPOCHS for minibatch in epoch), start=1):
        gradient = dict.fromkeys(cells, 0.0)
        count = sum(lengths[a] for a in answers)
        for a in answers:
            for t in range(lengths[a]):
                x, action, gain = features[a, t].tolist(), int(actions[a, t]), gains[a][t]
                chances, value = forward(x)
                ratio = math.exp(math.log(chances[action]) - old[a][t])
                stopped = gain * ratio > gain * min(max(ratio, 1 - EPSILON), 1 + EPSILON)
                before, goal = old_values[a][t], returns[a][t]
                near = min(max(value, before - VALUE_CLIP), before + VALUE_CLIP)
                held = (near - goal) ** 2 > (value - goal) ** 2
                clipped += stopped + held
                for d in range(WIDTH):
                    for k in range(0 if stopped else WORDS):
                        slope = (k == action) - chances[k]  # of log π with respect to the logit
                        gradient[d, k] += -gain * ratio * slope * x[d] / count
                    gradient[d, WORDS] += 0 if held else VALUE_WEIGHT * (value - goal) * x[d] / count
        for d, k in cells:
            g = gradient[d, k]
            first[d, k] = DECAY_1 * first[d, k] + (1 - DECAY_1) * g
            second[d, k] = DECAY_2 * second[d, k] + (1 - DECAY_2) * g * g
            root = math.sqrt(second[d, k] / (1 - DECAY_2**step))
            weights[d][k] -= LR * first[d, k] / (1 - DECAY_1**step) / (root + ADAM_EPSILON)
    return weights, clipped


def update(start, features, actions, reference, scores):
    """One update by the functions under test.  Returns the weights."""
    weights = start.clone().requires_grad_()

    def forward():
        outputs = features @ weights
        logprobs = torch.log_softmax(outputs[..., :WORDS], dim=-1)
        return logprobs.gather(2, actions[..., None])[..., 0], outputs[..., WORDS]

    with torch.no_grad():
        old, old_values = (spoilt(table) for table in forward())
        kl = divergence(old, reference, "k1")
        rewards = ppo.whitened(ppo.token_rewards(scores, kl, LIVE, BETA), LIVE, shift=False)
        gains, returns = ppo.advantages(rewards, old_values, LIVE, GAMMA, LAM)
        gains = ppo.whitened(gains, LIVE)
    adam = torch.optim.Adam([weights], lr=LR, betas=(DECAY_1, DECAY_2), eps=ADAM_EPSILON)
    for answers in (minibatch for epoch in EPOCHS for minibatch in epoch):
        new, values = (table[answers][LIVE[answers]] for table in forward())
        parts = (table[answers][LIVE[answers]] for table in (old, gains, old_values, returns))
        before, gain, value_before, goal = parts
        losses, _ = clipped_policy(new, before, gain, EPSILON)
        errors, _ = ppo.clipped_value(values, value_before, goal, VALUE_CLIP)
        adam.zero_grad()
        (losses + VALUE_WEIGHT * errors).mean().backward()
        adam.step()
    return weights.detach()


def test_a_whole_update_is_the_one_written_out_in_loops():
    wanted, clipped = naive_update(*problem())
    assert 4 < clipped < 40  # of 56 terms
    found = update(*problem())
    assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert (found - problem()[0]).abs().min() > 0.01


def test_a_reward_that_is_always_the_same_teaches_nothing():
    scores, nothing = torch.full((4,), 0.7, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    rewards = ppo.token_rewards(scores, nothing, LIVE, beta=0.1)
    new = drawn(4, 6).requires_grad_()
    for values, lam in ((nothing, 1.0), (torch.full_like(nothing, 0.7), 0.95)):  # not yet learnt, and learnt
        gains, _ = ppo.advantages(rewards, values, LIVE, gamma=1.0, lam=lam)
        losses, _ = clipped_policy(new, new.detach(), ppo.whitened(gains, LIVE), 0.2)
        (gradient,) = torch.autograd.grad(losses[LIVE].sum(), new)
        assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_bandit_is_learnt(beta):
    """Without the KL the best arm wins; with it the optimum is π_ref(a) exp(r(a)/β), divided by its sum."""
    generator = torch.Generator().manual_seed(0)
    payoffs = torch.tensor([0.1, 1.0, 0.5, 0.8])
    reference = torch.log_softmax(torch.tensor([1.0, -1.0, 0.0, 0.5]), dim=0)
    logits = reference.clone().requires_grad_()
    value = torch.zeros(1, requires_grad=True)
    adam = torch.optim.Adam([logits, value], lr=0.1)
    live = torch.ones(1024, 1).bool()
    for iteration in range(120):
        adam.param_groups[0]["lr"] = 0.1 * (1 - iteration / 120)
        with torch.no_grad():
            arms = torch.multinomial(logits.softmax(0), len(live), replacement=True, generator=generator)
            old = torch.log_softmax(logits, 0)[arms][:, None]
            kl = divergence(old, reference[arms][:, None], "k1")
            noise = 0.1 * torch.randn(len(live), generator=generator)
            rewards = ppo.token_rewards(payoffs[arms] + noise, kl, live, beta)
            before = value.expand(len(live), 1).clone()
            gains, returns = ppo.advantages(rewards, before, live, gamma=1.0, lam=0.95)
            gains = ppo.whitened(gains, live)
        for _ in range(4):
            new = torch.log_softmax(logits, 0)[arms][:, None]
            losses, _ = clipped_policy(new, old, gains, 0.2)
            errors, _ = ppo.clipped_value(value.expand(len(live), 1), before, returns, 0.2)
            adam.zero_grad()
            (losses + 0.5 * errors).mean().backward()
            adam.step()
    found = logits.detach().softmax(0)
    if beta:
        optimum = torch.softmax(reference + payoffs / beta, dim=0)
        assert (found - optimum).abs().max() < 0.03
        assert (reference.exp() - optimum).abs().max() > 0.2  # there was something to learn
    else:
        assert found.argmax() == 1 and found[1] > 0.95
