"""LN tuning: exact on every kind of norm. Oracles: PEFT, the norms' own modules, a model trained itself."""

import copy

import peft
import pytest
import torch
from peft_oracle import assert_files_travel_both_ways, assert_gradients_agree
from torch.testing import assert_close
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from graft.core.site import Site
from graft.errors import SiteError
from graft.methods.ln_tuning import Gain, LNTuning
from models import CONFIGS, inputs, randomise, tiny_base, tiny_model

TARGETS = {
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gemma": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "bert": ["LayerNorm"],
    "t5": ["layer_norm", "final_layer_norm"],
}
NORMS = {
    "llama": LlamaRMSNorm,
    "gemma": GemmaRMSNorm,
    "cohere": CohereLayerNorm,
    "torch_ln": torch.nn.LayerNorm,
    "torch_rms": torch.nn.RMSNorm,
    "no_bias": lambda width: torch.nn.LayerNorm(width, bias=False),
}


@pytest.mark.parametrize("family", TARGETS)
def test_files_travel_both_ways(family, tmp_path):
    config = peft.LNTuningConfig(target_modules=TARGETS[family])
    assert_files_travel_both_ways(tiny_model(family), config, tmp_path, family)


def test_gradients_and_training_equal_pefts(tmp_path):
    assert_gradients_agree(
        tiny_model("llama"), peft.LNTuningConfig(target_modules=TARGETS["llama"]), tmp_path
    )


def seat(kind):
    """A model of one norm with random parameters, and the insert there."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"norm": NORMS[kind](16)})
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape))
    return model.norm, Gain(Site("norm", "norm", model))


@pytest.mark.parametrize("kind", NORMS)
def test_every_kind_of_norm_is_tuned_as_if_its_own_tensors_were(kind):
    norm, insert = seat(kind)
    x, tuned = torch.randn(3, 5, 16), copy.deepcopy(norm)
    state = list(norm.state_dict())
    assert torch.equal(insert(x, norm(x)), norm(x))
    with torch.no_grad():
        for p, q in zip(tuned.parameters(), insert.parameters(), strict=True):
            p.add_(change := torch.randn(16))
            q.add_(change)
    assert_close(insert(x, norm(x)), tuned(x), atol=2e-6, rtol=1e-5)
    weight, bias = insert.merge(norm.weight.detach(), getattr(norm, "bias", None))
    assert_close(weight, tuned.weight.detach())
    assert_close(bias, tuned.bias.detach()) if bias is not None else None
    assert list(norm.state_dict()) == state and not norm._non_persistent_buffers_set, (
        "the base's norm was touched"
    )


def test_by_hand():
    _, insert = seat("llama")
    with torch.no_grad():
        insert.weight.add_(0.5)
    x, y = torch.tensor([3.0, 4.0] * 8), torch.full((16,), 10.0)  # mean square 12.5
    assert_close(insert(x, y), torch.tensor([10 + 1.5 / 12.5**0.5, 10 + 2 / 12.5**0.5] * 8))


def test_a_step_smaller_than_a_16_bit_gain_can_show_counts():
    norm, insert = seat("llama")
    norm.bfloat16()
    x = torch.randn(3, 5, 16).bfloat16()
    with torch.no_grad():
        insert.origin.copy_(norm.weight)
        insert.weight.copy_(norm.weight.float() + 1e-3)
    rounded = (norm.weight.float() + 1e-3).bfloat16()
    assert (rounded == norm.weight).any()
    wanted = 1e-3 * x.float() / x.float().pow(2).mean(-1, True).sqrt()
    assert_close(insert(x, torch.zeros_like(x)).float(), wanted, atol=1e-5, rtol=2e-2)


def test_all_norms_are_the_default_and_their_names_are_pefts():
    base = tiny_base("qwen3")
    names = {site.name for site, _ in base.attach("x", LNTuning()).inserts}
    assert names == {name for name, m in base.model.named_modules() if "norm" in type(m).__name__.lower()}
    assert {name.split(".")[-1] for name in names} >= {"q_norm", "k_norm", "input_layernorm", "norm"}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_merged_model_answers_as_the_tuned_one(family):
    base, batch = tiny_base(family), inputs(family)
    before = base(**batch).logits
    randomise(base.attach("x", LNTuning()))
    with base.using("x"):
        attached = base(**batch).logits
    assert (attached - before).abs().max() > 1e-2
    base.merge("x")
    assert_close(base(**batch).logits, attached, atol=1e-4, rtol=1e-4)
    base.unmerge("x")
    assert torch.equal(base(**batch).logits, before)


def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path):
    base, again, batch = tiny_base("bert"), tiny_base("bert"), inputs("bert")
    adapter = base.attach("x", LNTuning(layers_to_transform=(1,)))
    randomise(adapter)
    adapter.save(tmp_path)
    loaded = again.load_adapter(tmp_path, "x")
    assert loaded.methods[0].layers_to_transform == (1,) and len(loaded.inserts) == 2
    with base.using("x"), again.using("x"):
        assert torch.equal(again(**batch).logits, base(**batch).logits)


def test_a_norm_of_two_inputs_is_named():
    model = torch.nn.ModuleDict({"gated": Qwen3NextRMSNormGated(16)})
    with pytest.raises(SiteError, match="takes hidden_states, gate"):
        LNTuning().build(Site("gated", "norm", model))
