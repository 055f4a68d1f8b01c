"""AttentionFusion against softmax by hand over states that plain hooks caught."""

import pytest
import torch
from torch.testing import assert_close

from graft.methods.attention_fusion import AttentionFusion
from graft.methods.task_head import TaskHead
from models import inputs, randomise, tiny_base

FAMILIES = ("llama", "gpt2", "opt", "gemma2", "bert", "t5")


def last_blocks(base):
    blocks = [site for site in base.sites if site.kind == "block"]
    return [site.module for site in blocks[-base.model.config.num_hidden_layers :]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_state_becomes_the_weighted_sum_of_all(family):
    base, keywords = tiny_base(family), inputs(family)
    states, handles = [], []
    first = lambda value: value[0] if isinstance(value, tuple) else value
    for block in last_blocks(base):
        handles.append(block.register_forward_pre_hook(lambda m, args: states.append(args[0])))
    handles.append(
        last_blocks(base)[-1].register_forward_hook(lambda m, args, out: states.append(first(out)))
    )
    before = base(**keywords).logits
    for handle in handles:
        handle.remove()
    q, b = torch.randn(64), torch.randn(3)
    scores = []
    for state, shift in zip(states, b, strict=True):
        normal = (state - state.mean(-1, keepdim=True)) / (
            state.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        scores.append((normal * q).sum(-1) / 8 + shift)
    weights = torch.stack(scores).softmax(0)
    fused = sum(w[..., None] * state for w, state in zip(weights, states, strict=True))
    put = lambda m, args, out: (fused, *out[1:]) if isinstance(out, tuple) else fused
    handle = last_blocks(base)[-1].register_forward_hook(put)
    wanted = base(**keywords).logits
    handle.remove()
    adapter = base.attach("x", AttentionFusion())
    with torch.no_grad():
        adapter.inserts[-1][1].q.copy_(q)
        adapter.inserts[-1][1].b.copy_(b)
    with base.using("x"):
        ours = base(**keywords).logits
    assert_close(ours, wanted, atol=2e-5, rtol=1e-4)
    assert (ours - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_strong_last_bias_is_the_base(family):
    base, keywords = tiny_base(family), inputs(family)
    before = base(**keywords).logits
    base.attach("x", AttentionFusion(last_bias=40.0))
    base.attach("y", AttentionFusion())
    with base.using("x"):
        assert_close(base(**keywords).logits, before, atol=1e-6, rtol=1e-6)
    with base.using("y"):
        assert 1e-3 < (base(**keywords).logits - before).norm() / before.norm() < 0.5


def test_backward_runs_in_no_block_of_the_base():
    base, keywords = tiny_base("llama"), inputs("llama")
    adapter = base.attach("x", [AttentionFusion(), TaskHead(num_labels=3)])
    base.probe()  # before a call counts
    outputs = []
    for site in base.sites:
        if site.kind == "linear":
            site.module.register_forward_hook(lambda m, args, out: outputs.append(out.requires_grad))
    base.train()
    with base.using("x"):
        base(**keywords)[0].square().sum().backward()
    assert len(outputs) == 14 and not any(outputs)
    assert all(p.grad.abs().max() > 0 for p in adapter.parameters())


def test_generation_with_a_cache_equals_generation_without():
    base, ids = tiny_base("llama"), inputs("llama")["ids"]
    randomise(base.attach("x", AttentionFusion()))
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad(), base.routed(["x"] * 3):
        out = [base.model.generate(ids, use_cache=cache, **how) for cache in (True, False)]
    assert torch.equal(*out)
