"""The loss of language models is the same by both ways through the head."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from graft.base.base import Base
from graft.data.batches import Batch
from graft.kernels import native
from graft.methods.full import Full
from graft.methods.lora import LoRA
from graft.objectives.lm import language_modelling, token_logprobs
from models import inputs, randomise, tiny_model

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
         "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 96, "pad_token_id": 0}  # fmt: skip
BEHIND = {
    "gemma2": (SIZES | {"head_dim": 16, "final_logit_softcapping": 0.5}, (1.0, 0.5)),
    "cohere": (SIZES | {"logit_scale": 0.4}, (0.4, 0.0)),
    "granite": (SIZES | {"logits_scaling": 3.0}, (1 / 3, 0.0)),
}


def trained(family="llama", method=None, **settings):
    base = Base(tiny_model(family, **settings))
    adapter = base.attach("a", method or LoRA(r=2, target_modules=["q_proj", "v_proj"]))
    randomise(adapter)
    return base, adapter


def loss_and_gradients(base, adapter):
    ids = inputs("llama")["ids"]
    labels = ids.clone()
    labels[0, :3] = -100
    with base.using("a"):
        loss, sums = language_modelling(base, Batch({"input_ids": ids}, labels, 1, []))
    return loss, float(sums["correct"]), torch.autograd.grad(loss, adapter.parameters())


def both_ways(base, adapter, monkeypatch):
    one = loss_and_gradients(base, adapter)
    with monkeypatch.context() as patch:
        patch.setattr(base, "plain_head", lambda: None)
        other = loss_and_gradients(base, adapter)
    assert_close(one[0], other[0], rtol=1e-5, atol=0)
    assert one[1] == other[1]
    for a, b in zip(one[2], other[2], strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("level", ["reference", *native.levels()])
def test_a_frozen_head_is_used_at_once_with_the_gradients_of_the_general_way(level, monkeypatch):
    base, adapter = trained()
    with native.at_level(level), base.using("a"):
        assert base.plain_head() is not None
        both_ways(base, adapter, monkeypatch)


@pytest.mark.parametrize("family", BEHIND)
def test_a_scale_or_a_soft_cap_behind_the_head_is_known(family, monkeypatch):
    settings, expected = BEHIND[family]
    base, adapter = trained(family, **settings)
    assert base.plain_head()[2:] == expected
    both_ways(base, adapter, monkeypatch)


def test_a_half_precision_model_tells_its_soft_cap_too():
    settings, expected = BEHIND["gemma2"]
    base = Base(tiny_model("gemma2", **settings).bfloat16())
    assert base.plain_head()[2:] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_behind_the_head_is_neither(dtype):
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 96, "pad_token_id": 0,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
             "decoder_ffn_dim": 64, "max_position_embeddings": 64}  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("bart", **sizes)).to(dtype)
    assert Base(model).plain_head() is not None  # zeros
    model.final_logits_bias.normal_()
    assert Base(model).plain_head() is None


def test_an_adapter_at_the_head_keeps_the_head_from_being_plain(monkeypatch):
    base, adapter = trained(method=LoRA(r=2, target_modules=["lm_head", "q_proj"]))
    assert base.plain_head() is None
    loss, _, gradients = loss_and_gradients(base, adapter)
    assert all(g.any() for g in gradients) and loss.isfinite()


def test_a_head_that_is_trained_in_place_is_not_plain_for_its_adapter():
    base, _ = trained(method=Full())
    assert base.plain_head(["a"]) is None
    assert base.plain_head([None]).weight is base.model.lm_head.weight


@pytest.mark.parametrize("change", ["hook", "forward", "class"])
def test_whatever_may_change_a_heads_output_keeps_it_from_being_plain(change):
    base = Base(tiny_model("llama"))
    assert base.plain_head() is not None
    head = base.model.lm_head
    if change == "hook":
        head.register_forward_hook(lambda *_: None)
    elif change == "forward":
        head.forward = lambda states, own=head.forward: own(states)
    else:
        head.__class__ = type("Scaled", (torch.nn.Linear,), {})
    assert base.plain_head() is None


def test_log_probabilities_have_a_gradient_of_their_own_for_each_token():
    base, _ = trained()
    hidden = torch.randn(5, 64, requires_grad=True)
    labels = torch.tensor([3, 1, -100, 7, 0])
    logprobs, _ = token_logprobs(base, hidden, labels)
    full = base.logits(hidden[None])[0].log_softmax(-1)
    expected = full.gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels >= 0)
    weights = torch.tensor([0.3, -1.0, 5.0, 2.0, 0.1])
    one, other = (torch.autograd.grad((values * weights).sum(), hidden)[0] for values in (logprobs, expected))
    assert_close(logprobs, expected, rtol=0, atol=1e-5)
    assert_close(one, other, rtol=0, atol=1e-6)
