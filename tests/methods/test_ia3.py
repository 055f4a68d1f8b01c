"""IA3: where it goes by itself, and that it may share a site with other methods."""

import pytest
import torch
from torch.testing import assert_close

from graft.base.base import Base
from graft.methods.ia3 import IA3, ScaledInput
from graft.methods.lora import LoRA
from graft.quant import quantise_model
from models import inputs, randomise, tiny_base, tiny_model

# Family: last parts of the names whose output, and whose input, is scaled (the paper's places, by hand).
PLACES = {
    "llama": ({"k_proj", "v_proj"}, {"down_proj"}),
    "qwen3": ({"k_proj", "v_proj"}, {"down_proj"}),
    "opt": ({"k_proj", "v_proj"}, {"fc2"}),
    "phi3": ({"qkv_proj"}, {"down_proj"}),
    "gpt2": ({"attn.c_attn"}, {"mlp.c_proj"}),
    "gpt_neox": ({"query_key_value"}, {"dense_4h_to_h"}),
    "bert": ({"key", "value"}, {"0.output.dense", "1.output.dense"}),
    "t5": ({"k", "v"}, {"wo"}),
}


@pytest.mark.parametrize("family", PLACES)
def test_keys_values_and_the_second_matrix_are_found_by_their_names(family):
    inserts = tiny_base(family).attach("x", IA3()).inserts
    outputs, inner = PLACES[family]
    for site, insert in inserts:
        wanted = inner if isinstance(insert, ScaledInput) else outputs
        assert any(site.name.endswith("." + part) for part in wanted), site.name
    attentions = 6 if family == "t5" else 2  # two blocks; T5: encoder, decoder, and across
    networks = 4 if family == "t5" else 2
    fused = len(outputs) == 1
    assert len(inserts) == attentions * (1 if fused else 2) + networks


def test_nothing_pulls_the_vectors_to_zero():
    groups = tiny_base().attach("x", IA3()).param_groups(1e-3)
    assert [group["weight_decay"] for group in groups] == [0.0]


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0)], ids=["ia3-lora", "lora-ia3", "ia3-lora-ia3"])
def test_merging_with_another_method_at_the_same_site_keeps_the_answer_in_any_order(order):
    base, batch = Base(tiny_model("llama").double()), inputs("llama")
    methods = (IA3, lambda: LoRA(r=3))
    randomise(base.attach("x", [methods[i]() for i in order]))
    with base.using("x"):
        attached = base(**batch).logits
    base.merge("x")
    assert_close(base(**batch).logits, attached, atol=0, rtol=1e-9)


def test_rows_with_and_without_a_scaled_input_share_a_batch_on_packed_weights():
    base, batch = Base(quantise_model(tiny_model("llama"), "nf4")), inputs("llama", rows=3)
    for seed, name in enumerate(("a", "b")):
        randomise(base.attach(name, IA3(target_modules=("down_proj",))), seed)
    mixed = base(**batch, adapters=["b", None, "a"]).logits
    for row, name in enumerate(("b", None, "a")):
        with base.using(name):
            assert_close(mixed[row], base(batch["ids"][row : row + 1]).logits[0], atol=1e-5, rtol=1e-4)
    assert (mixed - base(**batch).logits).abs().amax((1, 2))[[0, 2]].min() > 1e-2


def test_a_small_step_is_not_lost_in_bf16():
    insert = ScaledInput(4)
    with torch.no_grad():
        insert.l.add_(0.002)  # below bf16's step of 1/128 at 1
    x = torch.full((1, 4), 255.0, dtype=torch.bfloat16)
    assert torch.equal(insert.enter(x), torch.full_like(x, 256.0))
