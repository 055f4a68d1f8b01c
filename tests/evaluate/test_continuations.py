"""Log-likelihoods of continuations equal a naive sum, however they are put together and cut."""

import pytest
import torch
from torch.testing import assert_close

import graft
from graft.evaluate.continuations import loglikelihoods
from models import randomise, tiny_base

LIMIT = 64  # positions of the tiny models


def ids(count, seed):
    return torch.randint(4, 90, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def pairs(limit):
    """Several answers to one context, one twice; contexts alone; wholes that just fit, and too long ones."""
    context = ids(20, 1)
    return [
        *((context, ids(count, count)) for count in (1, 1, 3, 7)),
        (ids(5, 2), ids(9, 3)),
        (ids(1, 4), ids(1, 5)),
        *((ids(limit, 6), ids(count, 7)) for count in (1, 2)),
        *((ids(limit - 10, 8), ids(11, seed)) for seed in (9, 10)),
        (ids(90, 11), ids(limit, 12)),
    ]


def naive(base, adapter, context, continuation, limit):
    """Return the sum of log-probabilities, token by token in double precision, and whether all are greedy."""
    whole = (context + continuation)[-(limit + 1) :]
    logits = base(torch.tensor([whole[:-1]]), adapters=[adapter]).logits[0].double()
    total, greedy = 0.0, True
    for t, token in enumerate(continuation):
        at = len(whole) - 1 - len(continuation) + t
        total += float(logits[at, token] - logits[at].exp().sum().log())
        greedy = greedy and int(logits[at].argmax()) == token
    return total, greedy


METHODS = {
    "bare": None,
    "lora": graft.LoRA(r=4),
    "prompt": graft.PromptTuning(num_virtual_tokens=5),
}


@pytest.mark.filterwarnings("ignore::graft.errors.Notice")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2"])
def test_values_are_those_of_a_naive_sum(family, method):
    base = tiny_base(family)
    name = None
    if METHODS[method] is not None:
        name = "x"
        randomise(base.attach("x", METHODS[method]))
    limit = LIMIT - base.positions([name])
    given = pairs(limit)
    wanted = [naive(base, name, *pair, limit) for pair in given]
    for batch_size in (1, 3, 20):
        told = []
        with base.using(name):
            found = loglikelihoods(
                base,
                *zip(*given, strict=True),
                limit=limit,
                batch_size=batch_size,
                progress=lambda *numbers, told=told: told.append(numbers),
            )
        assert_close([value for value, _ in found], [value for value, _ in wanted], atol=1e-4, rtol=1e-5)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
        assert told[-1] == (len(given), len(given))


def test_the_likeliest_tokens_are_greedy():
    base = tiny_base("llama")
    context = ids(6, 1)
    best = int(base(torch.tensor([context])).logits[0, -1].argmax())
    then = int(base(torch.tensor([[*context, best]])).logits[0, -1].argmax())
    worse = (then + 1) % 90
    answers = [[best], [best, then], [best, worse], [worse]]
    found = loglikelihoods(base, [context] * 4, answers, limit=LIMIT)
    assert [greedy for _, greedy in found] == [True, True, False, worse == best]


def test_nothing_is_asked_of_nothing():
    assert loglikelihoods(tiny_base("llama"), [], [], limit=LIMIT) == []
