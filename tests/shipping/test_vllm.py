"""Folders for vLLM: they answer under vLLM's rules and in PEFT as they were trained; the rest is refused."""

import copy
import json
import re
import shlex

import pytest
import torch
from peft import PeftModel
from tiny_folder import write_model
from transformers import AutoModelForCausalLM
from vllm_rules import MAX_RANKS, served

from graft.base.base import Base
from graft.errors import UsageError
from graft.methods.houlsby import Houlsby
from graft.methods.ia3 import IA3
from graft.methods.lora import LoRA
from graft.methods.prefix import PrefixTuning
from graft.methods.qa_lora import QALoRA
from graft.methods.task_head import TaskHead
from graft.models.load import load
from graft.shipping.certificate import CERTIFICATE
from graft.shipping.export import export
from graft.shipping.several import export_each
from graft.shipping.verify import verify
from graft.shipping.vllm import command, command_of_sglang
from models import inputs, randomise, tiny_base, tiny_model

KINDS = {
    "plain": LoRA(r=4, target_modules="all-linear"),
    "odd ranks": LoRA(r=12, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 3}),
    "odd alphas": LoRA(r=4, target_modules="all-linear", alpha_pattern={"up_proj": 3, "o_proj": 40}),
    "rslora": LoRA(r=3, use_rslora=True, target_modules="all-linear"),
    "pissa": LoRA(r=2, init_lora_weights="pissa", target_modules="all-linear"),
    "one layer": LoRA(r=2, target_modules=["model.layers.1.mlp.up_proj"]),
    "qalora": QALoRA(r=4, target_modules="all-linear"),
}
REFUSED = {
    "DoRA": LoRA(r=2, use_dora=True),
    "a bias beside B": LoRA(r=2, lora_bias=True),
    "more than a low-rank update": LoRA(r=2, modules_to_save=["lm_head"]),
    "at the table": LoRA(r=2, target_modules=["q_proj", "embed_tokens"]),
    "at the head": LoRA(r=2, target_modules=["q_proj", "lm_head"]),
    "ia3 is more": IA3(),
    "prefix": PrefixTuning(num_virtual_tokens=2),
    "houlsby": Houlsby(),
    "task_head": [LoRA(r=2), TaskHead(labels=["a", "b"])],
    "a rank above 512": LoRA(r=600, target_modules=["q_proj"]),
}


def logits(base, name, family="llama"):
    with torch.no_grad():
        return base(**inputs(family), adapters=[name] * 3).logits


@pytest.mark.parametrize("kind", KINDS)
def test_what_vllm_computes_is_what_was_trained(kind, tmp_path):
    base = tiny_base()
    randomise(base.attach("sql", KINDS[kind]))
    adapted, bare = logits(base, "sql"), logits(base, None)
    folder = export(base, tmp_path / "out", to="vllm")
    rank = int(re.search(r"--max-lora-rank (\d+)", (folder / "README.md").read_text())[1])
    theirs = served(base.model, folder, rank)(inputs("llama")["ids"]).logits
    torch.testing.assert_close(theirs, adapted, atol=1e-4, rtol=1e-4)  # the oracle adds B A to the weights
    assert (adapted - bare).abs().max() > 1e-2
    assert json.loads((folder / CERTIFICATE).read_text())["logits"]["max"] < 1e-5
    assert list(base.adapters) == ["sql"] and torch.equal(logits(base, "sql"), adapted)
