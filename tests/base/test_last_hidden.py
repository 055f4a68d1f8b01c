"""Logits from what enters the head are the model's own, whatever the model does behind it."""

import warnings

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from graft.base.base import Base
from graft.data.batches import Batch
from graft.errors import ModelError, Notice
from graft.methods.bitfit import BitFit
from graft.methods.lora import LoRA
from graft.methods.task_head import TaskHead
from graft.objectives.lm import language_modelling
from models import inputs, randomise, tiny_model

LLAMA = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
# What a config makes its model do behind the head, with another number than its default.
BEHIND = {
    "falcon_h1": LLAMA | MAMBA | {"mamba_d_ssm": 64, "mamba_chunk_size": 16, "lm_head_multiplier": 0.3},
    "hyperclovax": LLAMA | {"logits_scaling": 1.7},
    "granite": LLAMA | {"logits_scaling": 3.0},
    "cohere": LLAMA | {"logit_scale": 0.4},
    "gemma2": LLAMA | {"head_dim": 16, "final_logit_softcapping": 0.5},
    "recurrent_gemma": LLAMA | {"num_hidden_layers": 3, "lru_width": 64, "logits_soft_cap": 0.4},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 2, "num_hidden_layers": 2,
              "chunk_size": 16, "vocab_size": 96, "output_logit_soft_cap": 0.3},
}  # fmt: skip


def with_bias(family):
    """A tiny encoder-decoder of BART's kin with a final_logits_bias that is not zero."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 96, "pad_token_id": 0,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
             "decoder_ffn_dim": 64, "max_position_embeddings": 64}  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(family, **sizes))
    model.final_logits_bias.normal_()
    return model.eval()


class Sharpened(LlamaForCausalLM):
    """A family that came out yesterday: nothing in its config tells what it does to the logits."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = torch.tanh(output.logits) * 1.5 + 0.25
        return output


class Skipping(LlamaForCausalLM):
    """Adds what does not pass through the head."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.logits = output.logits + self.model.embed_tokens(input_ids).sum(-1, keepdim=True).cos() * 3
        return output


def own_class(cls):
    torch.manual_seed(0)
    return cls(AutoConfig.for_model("llama", **LLAMA)).eval()


def models():
    return [
        *((family, lambda f=family: tiny_model(f, **BEHIND[f])) for family in BEHIND),
        *((family, lambda f=family: with_bias(f)) for family in ("bart", "marian", "mbart")),
        ("sharpened", lambda: own_class(Sharpened)),
    ]


@pytest.mark.parametrize(("name", "build"), models(), ids=[name for name, _ in models()])
def test_logits_and_loss_are_the_models_own(name, build):
    model = build()
    base = Base(model)
    ids = inputs("llama")["ids"]
    extra = {"decoder_input_ids": ids[:, :5]} if base.family == "seq2seq" else {}
    with torch.no_grad():
        own = model(ids, **extra, use_cache=False).logits
        head = model.get_output_embeddings()(base.hidden(ids, **extra))
        assert (head - own).abs().max() > 1e-2 * own.abs().max()  # the head alone is not enough
        assert_close(base.logits(base.hidden(ids, **extra)), own, atol=1e-6, rtol=1e-6)
        labels = extra.get("decoder_input_ids", ids).clone()
        labels[0, :2] = -100
        wanted = labels if extra else labels[:, 1:]
        logits = own if extra else own[:, :-1]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
        loss, _ = language_modelling(base, Batch({"input_ids": ids, **extra}, labels, 1, []))
    assert_close(loss, expected, rtol=1e-5, atol=0)
    assert not base._head.whole


def test_a_model_without_anything_behind_its_head_uses_the_head_alone():
    base = Base(tiny_model("llama"))
    base.probe()
    calls = []
    base.model.register_forward_pre_hook(lambda *_: calls.append(1))
    base.logits(torch.randn(1, 3, 64))
    assert not calls


def test_logits_that_do_not_follow_from_the_head_come_from_the_models_own_forward():
    base = Base(own_class(Skipping))
    ids = inputs("llama")["ids"]
    with pytest.warns(Notice, match="Skipping do not follow from what enters its head"):
        base.probe()
    with warnings.catch_warnings():  # it is said once
        warnings.simplefilter("error", Notice)
        loss, _ = language_modelling(base, Batch({"input_ids": ids}, ids, 1, []))
    own = base.model(ids).logits
    expected = torch.nn.functional.cross_entropy(
        own[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
    )
    assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("way", ["lora", "in place"])
def test_adapters_act_on_what_is_behind_the_head_and_get_its_gradient(way):
    if way == "lora":
        base, method = Base(own_class(Sharpened)), LoRA(r=2, target_modules=["lm_head", "q_proj"])
    else:
        base, method = Base(tiny_model("cohere", **BEHIND["cohere"], attention_bias=True)), BitFit()
    adapter = base.attach("a", method)
    randomise(adapter)
    ids = inputs("llama")["ids"]
    rows = ["a", None, "a"] if way == "lora" else ["a", "a", "a"]
    ours = base.logits(base.hidden(ids, adapters=rows), adapters=rows)
    assert_close(ours, base(ids, adapters=rows).logits, atol=1e-6, rtol=1e-6)
    sums = [logits.cos().sum() for logits in (ours, base(ids, adapters=rows).logits)]
    ours, own = (torch.autograd.grad(total, adapter.parameters()) for total in sums)
    for one, other in zip(ours, own, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_probe_leaves_the_model_as_it_was():
    base = Base(tiny_model("gemma2", **BEHIND["gemma2"]).train())
    base.train()

    def state():
        return {
            name: (m.training, vars(m).get("forward"), len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in base.model.named_modules()
        }

    before = state()
    base.logits(base.hidden(inputs("llama")["ids"]))
    assert state() == before


def test_a_model_that_cannot_run_is_refused_with_its_own_words():
    model = tiny_model("llama")

    def broken(*args, **kwargs):
        raise ValueError("only on Tuesdays.\nand more")

    model.model.layers[0].mlp.forward = broken
    with pytest.raises(
        ModelError, match=r"LlamaForCausalLM fails on a few tokens \(ValueError: only on Tuesdays\)"
    ):
        Base(model).probe()


def test_a_task_head_is_refused_where_no_state_enters_the_language_head():
    base = Base(own_class(Skipping))
    base.attach("a", TaskHead(num_labels=2))
    with pytest.warns(Notice), pytest.raises(ModelError, match="no state of Skipping enters its head"):
        base(inputs("llama")["ids"], adapters=["a"] * 3)


class Diffusing(LlamaForCausalLM):
    """A causal class by its name, whose tokens all see each other."""

    def forward(self, input_ids, **kwargs):
        rows, length = input_ids.shape
        everything = torch.ones(rows, 1, length, length, dtype=torch.bool)
        return super().forward(input_ids, **kwargs | {"attention_mask": everything})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_the_next_token_has_no_loss_for_it(dtype):
    ids = inputs("llama")["ids"]
    base = Base(own_class(Diffusing).to(dtype))
    with pytest.raises(ModelError, match="Diffusing reads the tokens that it should predict"):
        language_modelling(base, Batch({"input_ids": ids}, ids, 1, []))
    assert not Base(own_class(Sharpened).to(dtype)).looks_ahead


@pytest.mark.parametrize(("family", "settings"), [("xlm", {"emb_dim": 64}), ("flaubert", {"emb_dim": 64})])
def test_one_class_for_both_is_what_its_config_says(family, settings):
    sizes = {"n_layers": 1, "n_heads": 4, "n_words": 96, "vocab_size": 96, "max_position_embeddings": 64}
    config = AutoConfig.for_model(family, **sizes, **settings)
    cls = getattr(transformers, f"{type(config).__name__.removesuffix('Config')}WithLMHeadModel")
    assert Base(cls(config)).family == "masked"
    config.causal = True
    base = Base(cls(config))
    assert base.family == "causal" and not base.looks_ahead
