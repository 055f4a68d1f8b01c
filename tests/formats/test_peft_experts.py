"""Targets that PEFT takes for experts: its own table, its answers with what is left, and the refusal."""

import copy

import peft
import pytest
from peft.utils.transformers_weight_conversion import _MOE_TARGET_MODULE_MAPPING, _convert_peft_config_moe
from peft_oracle import logits
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import Notice, UsageError
from graft.formats.peft_experts import REPLACED, taken_for_experts
from graft.methods.lora import LoRA
from graft.shipping.export import export
from models import inputs, randomise, tiny_model

DEEPSEEK = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2,
    "vocab_size": 96, "max_position_embeddings": 64, "num_experts_per_tok": 2, "n_routed_experts": 4,
    "moe_intermediate_size": 16, "intermediate_size": 48, "first_k_dense_replace": 1, "kv_lora_rank": 16,
    "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 2,
    "topk_group": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
ATTENTION = ("q_a_proj", "kv_b_proj", "o_proj")


def adapted(targets, **settings):
    base = Base(tiny_model("deepseek_v3", **DEEPSEEK))
    randomise(base.attach("x", LoRA(r=2, target_modules=targets, **settings)))
    return base


def test_the_names_are_those_of_peft():
    theirs = {family: set(names) for family, names in _MOE_TARGET_MODULE_MAPPING.items()}
    assert {family: set(names) for family, names in REPLACED.items()} == theirs


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_next", "mixtral", "jamba", "qwen2_moe", "llama"])
def test_what_is_said_to_be_lost_is_what_peft_takes_out_of_the_targets(family):
    targets = ["q_proj", "x.mlp.gate_proj", "x.mlp.up_proj", "down_proj", "w1", "w2", "w3", "gate", "router"]
    config = peft.LoraConfig(target_modules=targets)
    model = type("Model", (), {"config": type("Config", (), {"model_type": family})})()
    _convert_peft_config_moe(config, model)
    assert set(taken_for_experts(family, targets)) == set(targets) - set(config.target_modules)


@pytest.mark.parametrize("targets", [("q_a_proj", "mlp.down_proj"), r".*(q_a|shared_experts.up)_proj"])
def test_an_export_that_peft_would_misread_is_refused_and_saving_says_it(tmp_path, targets):
    base = adapted(targets, use_dora=True)  # PEFT has no DoRA on weights, which would be named instead
    with pytest.raises(UsageError, match="_proj"):
        export(base, tmp_path / "out", "peft")
    with pytest.warns(Notice, match="takes .*_proj for experts"):
        base.adapters["x"].save(tmp_path / "saved")
    base.load_adapter(tmp_path / "saved", "again")
    batch = inputs("llama")
    with base.using("x"):
        wanted = base(**batch).logits
    with base.using("again"):
        assert_close(base(**batch).logits, wanted)


@pytest.mark.parametrize("targets", [ATTENTION, ("o_proj", "mlp.down_proj", "shared_experts.up_proj")])
def test_other_adapters_answer_in_peft_as_here(tmp_path, targets):
    base = adapted(targets)
    with base.using("x"):
        wanted = base(**inputs("llama")).logits
    export(base, tmp_path / "out", "peft")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "out").eval()
    assert_close(logits(theirs), wanted, atol=1e-5, rtol=1e-5)
