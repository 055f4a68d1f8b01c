"""IA3, AdaLoRA, VeRA, LoKr, LoHa: outputs, gradients and files of PEFT. With KronA: merges and counts.

Counts are the published formulas of methods.md 0.3, worked for Llama-2-7B.
"""

import copy

import peft
import pytest
import torch
from torch.testing import assert_close

from graft.base.base import Base
from graft.methods.adalora import AdaLoRA
from graft.methods.ia3 import IA3
from graft.methods.krona import KronA
from graft.methods.loha import LoHa
from graft.methods.lokr import LoKr
from graft.methods.lora import LoRA
from graft.methods.vera import VeRA
from models import inputs, randomise, tiny_model

QV = {
    "llama": ("q_proj", "v_proj", "down_proj"),
    "gpt2": ("c_attn", "mlp.c_proj"),
    "bert": ("query", "value", "output.dense"),
    "t5": ("q", "v", "wo"),
}
VARIANTS = {
    "ia3": (IA3, peft.IA3Config, {}),
    "adalora": (AdaLoRA, peft.AdaLoraConfig, {"init_r": 5, "target_r": 3, "lora_alpha": 6, "total_step": 9}),
    "adalora_bias": (
        AdaLoRA,
        peft.AdaLoraConfig,
        {"init_r": 4, "target_r": 3, "total_step": 9, "bias": "all"},
    ),
    "vera": (VeRA, peft.VeraConfig, {"r": 12, "d_initial": 0.3}),
    "vera_seed": (VeRA, peft.VeraConfig, {"r": 12, "projection_prng_key": 5, "save_projection": False}),
    "vera_bias": (VeRA, peft.VeraConfig, {"r": 12, "bias": "vera_only"}),
    "lokr": (LoKr, peft.LoKrConfig, {"r": 2, "alpha": 3}),
    "lokr_full": (LoKr, peft.LoKrConfig, {"r": 64, "alpha": 90}),
    "lokr_both": (LoKr, peft.LoKrConfig, {"r": 2, "alpha": 3, "decompose_both": True, "decompose_factor": 8}),
    "lokr_odd": (
        LoKr,
        peft.LoKrConfig,
        {"r": 3, "alpha": 4, "decompose_factor": 5, "init_weights": "lycoris"},
    ),
    "lokr_patterns": (
        LoKr,
        peft.LoKrConfig,
        {"r": 2, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"value": 9}},
    ),
    "loha": (LoHa, peft.LoHaConfig, {"r": 3, "alpha": 4}),
    "loha_one_layer": (LoHa, peft.LoHaConfig, {"r": 3, "alpha": 4, "layers_to_transform": (1,)}),
}
CASES = [
    (variant, family)
    for variant in VARIANTS
    for family in ("llama", "gpt2", "bert", "t5")
    if not (family == "gpt2" and variant.startswith("lo"))  # PEFT has LoKr and LoHa on nn.Linear only
]


def settings_of(variant, family):
    """Keywords that mean the same in both."""
    found = {"target_modules": QV[family], **VARIANTS[variant][2]}
    if variant == "ia3":
        found |= {"feedforward_modules": QV[family][-1:]}
    return found


def theirs(model, variant, family):
    """A PEFT model with random, non-zero adapter tensors."""
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in settings_of(variant, family).items()}
    tuned = peft.get_peft_model(copy.deepcopy(model), VARIANTS[variant][1](**lists)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return tuned


def forward(model, batch):
    batch = dict(batch)
    return model(input_ids=batch.pop("ids"), **batch).logits


@pytest.mark.parametrize(("variant", "family"), CASES)
def test_a_file_of_peft_gives_the_same_logits_here(tmp_path, variant, family):
    model, batch = tiny_model(family), inputs(family)
    tuned = theirs(model, variant, family)
    tuned.save_pretrained(tmp_path)
    base = Base(copy.deepcopy(model))
    base.load_adapter(tmp_path, "x")
    with base.using("x"):
        ours = base(**batch).logits
    assert_close(ours, forward(tuned, batch), atol=1e-5, rtol=1e-5)
    assert (ours - base(**batch).logits).abs().max() > 1e-2


@pytest.mark.parametrize(("variant", "family"), CASES)
def test_our_file_gives_the_same_logits_in_peft(tmp_path, variant, family):
    model, batch = tiny_model(family), inputs(family)
    base = Base(copy.deepcopy(model))
    randomise(base.attach("x", VARIANTS[variant][0](**settings_of(variant, family))))
    base.adapters["x"].save(tmp_path)
    with base.using("x"):
        ours = base(**batch).logits
    assert (ours - base(**batch).logits).abs().max() > 1e-2
    assert_close(forward(peft.PeftModel.from_pretrained(model, tmp_path), batch), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ia3", "adalora", "vera", "lokr", "loha"])
def test_what_our_defaults_save_loads_in_peft(tmp_path, name):
    method = VARIANTS[name][0]
    model, batch = tiny_model("llama"), inputs("llama")
    base = Base(copy.deepcopy(model))
    randomise(base.attach("x", method(exclude_modules=("k_proj",), layers_to_transform=(1,))))
    base.adapters["x"].save(tmp_path)
    with base.using("x"):
        ours = base(**batch).logits
    assert {s.layer for s, _ in base.adapters["x"].inserts} == {1}
    assert_close(forward(peft.PeftModel.from_pretrained(model, tmp_path), batch), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "vera_seed"])
def test_gradients_equal_pefts(tmp_path, variant):
    """One step of gradient descent at rate 1 leaves θ − g: what both trained must be equal."""
    model, ids = tiny_model("llama", attention_bias=True), inputs("llama")["ids"]
    tuned = theirs(model, variant, "llama").train()
    tuned.save_pretrained(tmp_path)
    base = Base(copy.deepcopy(model))
    adapter = base.load_adapter(tmp_path, "x")
    base.train()
    before = {key: tensor.clone() for key, tensor in adapter.file_state().items()}
    with base.using("x"):
        ours = base(ids, labels=ids).loss
    penalty = adapter.extra_loss([ours])
    ours = ours if penalty is None else ours + penalty
    loss = tuned.base_model(
        input_ids=ids, labels=ids
    ).loss  # the tuner itself: only there AdaLoRA adds its penalty
    assert_close(ours, loss, atol=1e-5, rtol=1e-5)
    for given, parameters in ((loss, tuned.parameters()), (ours, adapter.parameters())):
        given.backward()
        torch.optim.SGD([p for p in parameters if p.requires_grad], lr=1.0).step()
    state, mine = peft.get_peft_model_state_dict(tuned), adapter.file_state()
    assert mine.keys() == state.keys()
    for key, tensor in mine.items():
        assert_close(tensor, state[key], atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
        assert "vera_A" in key or "vera_B" in key or not torch.equal(tensor, before[key]), (
            f"{key} has no gradient"
        )


MERGED = {name: method(**settings) for name, (method, _, settings) in VARIANTS.items()}
MERGED |= {"krona": KronA(scale=0.7), "lora": LoRA(lora_alpha=3)}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", MERGED)
def test_merged_equals_attached_in_fp64(variant, family):
    base, batch = Base(tiny_model(family).double()), inputs(family)
    bare = base(**batch).logits
    randomise(base.attach("x", MERGED[variant]))
    with base.using("x"):
        attached = base(**batch).logits
    base.merge("x")
    merged = base(**batch).logits
    assert (attached - bare).abs().max() > 1e-2 and attached.dtype == torch.float64
    assert ((merged - attached).norm() / attached.norm()) < 1e-12


Q_V = ("q_proj", "v_proj")
