"""LoRA where the head is tied to the table: what is trained at one acts at both. Oracle: PEFT."""

import copy
import json

import peft
import pytest
import torch
from bases import base_of
from laws import LAWS
from peft_oracle import logits, tuned
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import Notice, SiteError, UsageError
from graft.methods.lora import LoRA
from models import inputs, randomise, tiny_model

NAMES = {"llama": ("embed_tokens", "q_proj"), "gpt2": ("wte", "c_attn")}


def tied(family="llama"):
    return tiny_model(family, tie_word_embeddings=True)


def settings(family):
    table, linear = NAMES[family]
    return {
        "table": {"target_modules": (linear, table)},
        "head": {"target_modules": (linear, "lm_head")},
        "saved table": {"target_modules": (linear,), "modules_to_save": (table,)},
        "saved head": {"target_modules": (linear,), "modules_to_save": ("lm_head",)},
    }


def of_peft(changes):
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}
    return peft.LoraConfig(r=2, lora_alpha=3, **lists)


@pytest.mark.parametrize("law", [law for law in LAWS if law != "compiled_equals_eager"])
@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("where", ["table", "head", "saved table", "saved head"])
def test_law(where, family, law):
    method = LoRA(r=2, ensure_weight_tying=True, **settings(family)[where])
    reason = LAWS[law](base_of(lambda: tied(family)), method)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("where", ["table", "head", "saved table", "saved head"])
def test_our_file_answers_in_peft_as_here(tmp_path, where, family):
    base = Base(tied(family))
    adapter = base.attach("x", LoRA(r=2, ensure_weight_tying=True, **settings(family)[where]))
    randomise(adapter, scale=0.1)
    adapter.save(tmp_path)
    with base.using("x"):
        ours = base(**inputs(family)).logits
    theirs = peft.PeftModel.from_pretrained(tied(family), tmp_path).eval()
    assert_close(logits(theirs, family), ours, atol=1e-5, rtol=1e-5)
    again = Base(tied(family))
    again.load_adapter(tmp_path, "y")
    with again.using("y"):
        assert_close(again(**inputs(family)).logits, ours, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"modules_to_save": ("embed_tokens",), "ensure_weight_tying": True},
        {"trainable_token_indices": (5, 9, 40)},
        {"trainable_token_indices": {"lm_head": [5, 9]}},
        {"trainable_token_indices": {"lm_head": [5, 9], "embed_tokens": [5, 9]}, "ensure_weight_tying": True},
        {"trainable_token_indices": {"lm_head": [5, 9], "embed_tokens": [7]}},
    ],
)
def test_three_steps_of_training_end_where_pefts_do(tmp_path, changes):
    theirs = tuned(tied(), of_peft({"target_modules": ("q_proj",), **changes}), tmp_path, scale=0.1).train()
    base = Base(tied())
    adapter = base.load_adapter(tmp_path, "x")
    base.train()
    trained = [p for p in theirs.parameters() if p.requires_grad]
    ids = inputs("llama")["ids"]
    optimizers = [torch.optim.SGD(ps, lr=0.05) for ps in (trained, adapter.parameters())]
    for _ in range(3):
        losses = [theirs(input_ids=ids, labels=ids).loss]
        with base.using("x"):
            losses.append(base(ids, labels=ids).loss)
        assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    state, mine = peft.get_peft_model_state_dict(theirs), adapter.file_state()
    assert mine.keys() == state.keys()
    for key, tensor in mine.items():
        assert_close(tensor, state[key], atol=1e-5, rtol=1e-4, msg=key)


def test_pefts_file_of_a_table_it_does_not_know_is_left_untied(tmp_path):
    config = of_peft({"target_modules": ("c_attn", "wte"), "ensure_weight_tying": True})
    wanted = logits(tuned(tied("gpt2"), config, tmp_path, scale=0.1), "gpt2")
    base = Base(tied("gpt2"))
    base.load_adapter(tmp_path, "x")
    with base.using("x"):
        assert_close(base(**inputs("gpt2")).logits, wanted, atol=1e-5, rtol=1e-5)


def test_tying_where_nothing_is_tied_is_said():
    for method in (
        LoRA(ensure_weight_tying=True, modules_to_save=("lm_head",)),
        LoRA(ensure_weight_tying=True),
    ):
        with pytest.warns(Notice, match="ensure_weight_tying has no effect"):
            Base(tiny_model("llama")).attach("x", method)


def test_rows_of_what_is_no_table_and_ids_that_are_none_are_refused():
    base = Base(tied())
    with pytest.raises(SiteError, match=r"names 'q_proj'.*model.embed_tokens, lm_head"):
        base.attach("x", LoRA(trainable_token_indices={"q_proj": [1]}))
    for ids in ((3, 3), (-1,), ("a",)):
        with pytest.raises(UsageError, match="trainable_token_indices"):
            LoRA(trainable_token_indices=ids)
    with pytest.raises(UsageError, match="96"):
        base.attach("x", LoRA(trainable_token_indices=(96,)))


def test_rows_are_not_decayed():
    adapter = Base(tied()).attach("x", LoRA(r=2, target_modules=("q_proj",), trainable_token_indices=(5, 6)))
    groups = adapter.param_groups(1e-3)
    rows = [group for group in groups if any(p.shape == (2, 64) for p in group["params"])]
    found = [
        g.get("weight_decay") for g in groups for p in g["params"] if p.shape == (2, 64) and p[0, 0] != 0
    ]
    assert rows and found[-1] == 0.0
    assert sum(len(group["params"]) for group in groups) == len(adapter.parameters())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_is_taken_out_of_the_weight_before_it_was_packed(tmp_path, init):
    folder = tmp_path / "base"
    model = tiny_model("llama")
    model.save_pretrained(folder)
    config = of_peft({"target_modules": ("q_proj",), "init_lora_weights": init})
    model = tuned(model, config, tmp_path / "adapter", scale=0.1)
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["init_lora_weights"] == init
    import graft

    base = graft.load(folder, quant="nf4", dtype="fp32")
    adapter = base.load_adapter(tmp_path / "adapter", "x")
    for (site, insert), layer in zip(adapter.inserts, model.base_model.model.model.layers, strict=True):
        projection = layer.self_attn.q_proj
        whole = projection.base_layer.weight + projection.get_delta_weight("default")
        before = copy.deepcopy(tiny_model("llama")).get_submodule(site.name).weight
        A, B = insert.factors()
        assert_close(before + insert.scale * B @ A, whole, atol=1e-5, rtol=1e-5)
