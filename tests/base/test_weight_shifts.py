"""What adapters add to weights of routers and experts: mixed rows, merging, and leaving no trace."""

import copy

import pytest
import torch
from mixtures import EXPERTS, MIXTURES, REGISTERED
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import AdapterError
from graft.methods.lora import LoRA
from graft.quant import quantise_model
from models import inputs, randomise, tiny_model


def base_of(family, scheme=None):
    model = tiny_model(family, **MIXTURES[family])
    return Base(quantise_model(model, scheme) if scheme else model)


def adapted(family, scheme=None, names=("a",)):
    base = base_of(family, scheme)
    router = {
        "mixtral": ("mlp.gate.weight",),
        "deepseek_v3": ("mlp.gate.weight",),
        "gpt_oss": ("router.weight",),
    }
    for seed, name in enumerate(names):
        method = LoRA(
            r=2 + seed, target_modules=("o_proj",), target_parameters=(*EXPERTS, *router.get(family, ()))
        )
        randomise(base.attach(name, method), seed=seed, scale=0.1)
    return base


@pytest.mark.parametrize("scheme", [None, "nf4"])
@pytest.mark.parametrize("family", REGISTERED)
def test_mixed_rows_equal_separate_runs(family, scheme):
    base, ids = adapted(family, scheme, ("a", "b")), inputs("llama", rows=5)["ids"]
    names = ["b", None, "a", "b", None]
    mixed = base(ids, adapters=names).logits
    for row, name in enumerate(names):
        alone = base(ids[row : row + 1], adapters=[name]).logits
        assert_close(mixed[row], alone[0], atol=1e-5, rtol=1e-5)


def test_experts_that_do_not_say_whose_tokens_they_get_refuse_a_mixed_batch():
    base = base_of("jetmoe")
    randomise(base.attach("a", LoRA(target_modules=(), target_parameters=("mlp.output_linear.weight",))))
    with pytest.raises(AdapterError, match=r"mlp\.output_linear\.weight"):
        base(inputs("llama")["ids"], adapters=["a", None, "a"])
    assert base(inputs("llama")["ids"], adapters=["a"] * 3).logits.isfinite().all()


@pytest.mark.parametrize("family", MIXTURES)
def test_detach_leaves_no_trace(family):
    base, ids = base_of(family), inputs("llama")["ids"]
    before, keys = base(ids).logits, list(base.model.state_dict())
    implementation = base.model.get_experts_implementation()
    names = ("input_linear.weight",) if family == "jetmoe" else EXPERTS
    randomise(base.attach("x", LoRA(target_modules=(), target_parameters=names)))
    assert torch.equal(base(ids).logits, before)
    with base.using("x"):
        assert not torch.equal(base(ids).logits, before)
    base.detach("x")
    assert torch.equal(base(ids).logits, before)
    assert list(base.model.state_dict()) == keys
    assert base.model.get_experts_implementation() == implementation
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.model.modules())


@pytest.mark.parametrize("scheme", [None, "nf4"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_merged_answers_as_adapted_and_unmerged_as_before_bit_for_bit(family, scheme):
    base, ids = adapted(family, scheme), inputs("llama")["ids"]
    before, keys = base(ids).logits, list(base.model.state_dict())
    with base.using("a"):
        wanted = base(ids).logits
    done = base.merge("a")
    assert_close(base(ids).logits, wanted, atol=1e-5, rtol=1e-5)
    assert any(name.endswith("down_proj") for name in done.dequantised) == (scheme is not None)
    base.unmerge("a")
    assert torch.equal(base(ids).logits, before)
    assert sorted(base.model.state_dict()) == sorted(keys)


def test_a_merge_may_pack_experts_again():
    base, ids = adapted("mixtral", "nf4"), inputs("llama")["ids"]
    before = base(ids).logits
    done = base.merge("a", repack=True)
    assert "model.layers.0.mlp.experts.down_proj" in done.repacked and not done.dequantised
    assert not torch.equal(base(ids).logits, before)
    base.unmerge("a")
    assert torch.equal(base(ids).logits, before)


@pytest.mark.parametrize("scheme", [None, "nf4"])
def test_recomputed_blocks_give_the_same_gradients(scheme):
    base, ids = adapted("gpt_oss", scheme, ("a", "b")), inputs("llama")["ids"]
    base.train()
    gradients = []
    for on in (False, True):
        base.checkpointing(on)
        loss = base(ids, adapters=["a", "b", "a"], use_cache=False).logits.square().sum()
        with base.using("b"):  # another adapter is in use when backward recomputes
            loss.backward()
        parameters = [p for name in ("a", "b") for p in base.adapters[name].parameters()]
        gradients.append([p.grad.clone() for p in parameters])
        assert all(gradient.abs().max() > 0 for gradient in gradients[-1])
        for p in parameters:
            p.grad = None
    assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_a_failed_forward_leaves_the_router_its_own_weight():
    base = adapted("mixtral")
    gate = base.model.model.layers[0].mlp.gate
    own = gate.weight
    gate.forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError), base.using("a"):
        base(inputs("llama")["ids"])
    assert gate.weight is own


def test_an_adapter_of_a_packed_base_answers_on_the_plain_one(tmp_path):
    packed = adapted("qwen3_moe", "nf4")
    packed.adapters["a"].save(tmp_path)
    plain = base_of("qwen3_moe")
    plain.load_adapter(tmp_path, "a")
    twin = copy.deepcopy(plain.model)
    assert plain.adapters["a"].fingerprint() == packed.adapters["a"].fingerprint()
    bare = twin(inputs("llama")["ids"]).logits
    with plain.using("a"):
        assert (plain(inputs("llama")["ids"]).logits - bare).abs().max() > 0.01
