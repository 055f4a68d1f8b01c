"""The plain path has the same settings as the engine: both write the same, token by token."""

from collections import deque

import families
import pytest
import torch

from graft.base.base import Base
from graft.errors import UsageError
from graft.generate.generate import evaluating, write
from graft.generate.plain import write_plainly
from graft.generate.request import Request
from graft.generate.sampling import Sampling
from graft.methods.ladder import Ladder
from models import randomise, tiny_base

HOWS = [
    Sampling(max_new_tokens=9, logprobs=2),
    Sampling(max_new_tokens=6, do_sample=True, temperature=1.4, top_p=0.9, seed=3),
    Sampling(max_new_tokens=9, repetition_penalty=1.6, frequency_penalty=0.5),
    Sampling(max_new_tokens=9, do_sample=True, min_p=0.02, seed=4, logit_bias={5: -100}, min_new_tokens=8),
]


def requests(size):
    chance = torch.Generator().manual_seed(1)
    return [
        Request(
            torch.randint(4, size, (5 + 3 * row,), generator=chance).tolist(),
            how=how,
            ends=frozenset([7, 8, 9, 11]),
            index=row,
        )
        for row, how in enumerate(HOWS)
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_plain_path_writes_what_the_engine_writes(family):
    base = tiny_base(family)
    ours, theirs = requests(base.vocabulary), requests(base.vocabulary)
    with torch.no_grad(), evaluating(base):
        deque(write(base, ours), maxlen=0)
        assert sum(write_plainly(base, theirs, batch_size=4)) == 4
    assert [r.tokens for r in ours] == [r.tokens for r in theirs]
    torch.testing.assert_close(
        torch.tensor(ours[0].logprobs), torch.tensor(theirs[0].logprobs), atol=1e-5, rtol=0
    )
    assert [list(top) for top in ours[0].top_logprobs] == [list(top) for top in theirs[0].top_logprobs]


def test_a_side_network_that_keeps_a_cache_of_its_own_is_written_plainly_beside_others():
    base = tiny_base("llama")
    randomise(base.attach("side", Ladder(reduction_factor=2)), scale=0.1)
    assert not base.in_slots("side") and base.in_slots(None)
    how = Sampling(max_new_tokens=6)
    together = [
        Request(list(range(5 + row, 15)), name, how) for row, name in enumerate(["side", None, "side"])
    ]
    with torch.no_grad(), evaluating(base):
        assert list(write(base, together)) == [1, 3]  # the bare row, then the two others at once
        for request in together:
            ids = torch.tensor([request.prompt + request.tokens[:-1]])
            logits = base(ids, adapters=[request.adapter], use_cache=False).logits[0, -6:]
            assert request.tokens == logits.argmax(1).tolist()


@pytest.mark.parametrize("name", ["mamba", "rwkv", "t5"])
def test_models_without_slots_have_all_settings(name):
    base = Base(families.build(name))
    together = requests(200)
    with torch.no_grad(), evaluating(base):
        deque(write(base, together), maxlen=0)
        for request, alone in zip(together, requests(200), strict=True):
            deque(write(base, [alone]), maxlen=0)
            assert alone.tokens == request.tokens
            assert alone.completion.finish_reason == request.completion.finish_reason
            assert len(request.tokens) <= request.how.max_new_tokens
    assert len(together[3].tokens) >= 8 and 5 not in together[3].tokens
    assert len(together[0].completion.top_logprobs) == len(together[0].tokens)


def test_the_limit_of_the_cache_holds_for_a_batch():
    base, sizes = Base(families.build("mamba")), []
    real = base.model.generate

    def noted(input_ids, **how):
        sizes.append(tuple(input_ids.shape))
        return real(input_ids=input_ids, **how)

    def written(limit):
        asked = [Request([5, 6, 7, 8], how=Sampling(max_new_tokens=6)) for _ in range(5)]
        with torch.no_grad(), evaluating(base):
            deque(write(base, asked, max_cache_tokens=limit), maxlen=0)
        return [request.tokens for request in asked]

    written(None)  # a model is tried once
    base.model.generate = noted
    assert written(None) == written(25)
    assert sizes == [(5, 4), (2, 4), (2, 4), (1, 4)]
    with pytest.raises(UsageError, match="max_cache_tokens"):
        written(9)
