"""PEFT's files of experts that were linears: PEFT's own answers, and weights changed by hand."""

import copy

import peft
import pytest
import torch
from mixtures import MIXTURES
from peft_oracle import logits
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import AdapterError
from graft.formats import peft as files
from models import inputs, tiny_model

# family: (block, gate, up, down, targets, width of an expert)
OLD = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2", 48),
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj", 16),
    "olmoe": ("mlp", "gate_proj", "up_proj", "down_proj", 16),
}


def write_old(folder, family, **settings):
    """Write a file as PEFT did before experts were stacked; return its tensors."""
    block, gate, up, down, wide = OLD[family]
    generator = torch.Generator().manual_seed(0)
    sizes = {"self_attn.q_proj": (32, 32), f"{block}.gate": (4, 32)}
    for e in range(4):
        sizes |= {f"{block}.experts.{e}.{name}": (wide, 32) for name in (gate, up)}
        sizes[f"{block}.experts.{e}.{down}"] = (32, wide)
    tensors = {}
    for layer in range(2):
        for name, (rows, columns) in sizes.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(3, columns, generator=generator) * 0.2
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 3, generator=generator) * 0.2
    targets = ["q_proj", "gate", gate, up, down]
    config = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 6,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
    }
    files.write(folder, config | settings, tensors, {})
    return tensors


@pytest.mark.parametrize("family", OLD)
def test_an_old_file_answers_as_in_peft(tmp_path, family):
    model = tiny_model(family, **MIXTURES[family])
    write_old(tmp_path / "old", family)
    base = Base(copy.deepcopy(model))
    adapter = base.load_adapter(tmp_path / "old", "x")
    with base.using("x"):
        ours = base(**inputs("llama")).logits
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "old").eval()
    assert_close(ours, logits(theirs), atol=1e-5, rtol=1e-5)
    assert (ours - logits(model)).abs().max() > 0.05
    adapter.save(tmp_path / "new")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "new").eval()
    assert_close(logits(theirs), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_old_file_changes_the_weights_that_it_changed(tmp_path, rslora):
    model = tiny_model("mixtral", **MIXTURES["mixtral"])
    tensors = write_old(tmp_path, "mixtral", use_rslora=rslora, lora_dropout=0.1)
    base = Base(copy.deepcopy(model))
    base.load_adapter(tmp_path, "x")
    scale = 6 / 3**0.5 if rslora else 2
    parameters = dict(model.named_parameters())

    def update(layer, name):
        stem = f"base_model.model.model.layers.{layer}.{name}"
        return scale * tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]

    with torch.no_grad():
        for layer in range(2):
            stem = f"model.layers.{layer}"
            parameters[f"{stem}.self_attn.q_proj.weight"] += update(layer, "self_attn.q_proj")
            parameters[f"{stem}.mlp.gate.weight"] += update(layer, "block_sparse_moe.gate")
            for e in range(4):
                w1, w3, w2 = (update(layer, f"block_sparse_moe.experts.{e}.{w}") for w in ("w1", "w3", "w2"))
                parameters[f"{stem}.mlp.experts.gate_up_proj"][e] += torch.cat([w1, w3])
                parameters[f"{stem}.mlp.experts.down_proj"][e] += w2
    with base.using("x"):
        assert_close(base(**inputs("llama")).logits, logits(model), atol=1e-5, rtol=1e-5)


def test_an_expert_without_one_of_its_parts_is_named(tmp_path):
    tensors = write_old(tmp_path, "olmoe")
    lost = "base_model.model.model.layers.1.mlp.experts.2.up_proj.lora_A.weight"
    config, _, _ = files.read(tmp_path)
    files.write(tmp_path, config, {key: t for key, t in tensors.items() if key != lost}, {})
    base = Base(tiny_model("olmoe", **MIXTURES["olmoe"]))
    with pytest.raises(AdapterError, match=r"layers\.1\.mlp\.experts\.gate_up_proj: expert 2 lacks a part"):
        base.load_adapter(tmp_path, "x")
