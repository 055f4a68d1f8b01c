"""LoRA against PEFT: equal weights give equal outputs, gradients and training; files load both ways."""

import copy

import peft
import pytest
import torch
from torch.testing import assert_close

from graft.base.base import Base
from graft.methods.lora import LoRA
from models import inputs, randomise, tiny_model

QV = {
    "llama": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "bert": ("query", "value"),
    "t5": ("q", "v"),
    "gpt_neox": ("query_key_value",),
}
VARIANTS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "biases": {"r": 4, "lora_alpha": 8, "bias": "all"},
    "own_biases": {"r": 4, "lora_alpha": 8, "bias": "lora_only"},
    "lora_bias": {"r": 4, "lora_alpha": 8, "lora_bias": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2, "c_attn": 2},
        "alpha_pattern": {"v_proj": 32, "c_attn": 32},
    },
    "one_layer": {"r": 4, "lora_alpha": 8, "layers_to_transform": (1,)},
}


def theirs(model, folder, targets, settings, seed=0):
    """A PEFT model with random, non-zero adapter tensors, saved into `folder`."""
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    config = peft.LoraConfig(target_modules=list(targets) if isinstance(targets, tuple) else targets, **lists)
    tuned = peft.get_peft_model(copy.deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    tuned.save_pretrained(folder)
    return tuned


def forward(model, batch):
    batch = dict(batch)
    return model(input_ids=batch.pop("ids"), **batch).logits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_file_of_peft_gives_the_same_logits_here(tmp_path, family, variant):
    model, batch = tiny_model(family), inputs(family)
    tuned = theirs(model, tmp_path, QV[family], VARIANTS[variant])
    base = Base(copy.deepcopy(model))
    base.load_adapter(tmp_path, "x")
    with base.using("x"):
        ours = base(**batch).logits
    assert_close(ours, forward(tuned, batch), atol=1e-5, rtol=1e-5)
    assert (ours - base(**batch).logits).abs().max() > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_our_file_gives_the_same_logits_in_peft(tmp_path, family, variant):
    model, batch = tiny_model(family), inputs(family)
    base = Base(copy.deepcopy(model))
    randomise(base.attach("x", LoRA(target_modules=QV[family], **VARIANTS[variant])))
    base.adapters["x"].save(tmp_path)
    with base.using("x"):
        ours = base(**batch).logits
    assert_close(forward(peft.PeftModel.from_pretrained(model, tmp_path), batch), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["t5", "gpt_neox"])
def test_all_linear_means_the_same_layers_as_in_peft(tmp_path, family):
    model, batch = tiny_model(family), inputs(family)
    tuned = theirs(model, tmp_path, "all-linear", {"r": 2})
    base = Base(copy.deepcopy(model))
    base.load_adapter(tmp_path, "x")
    again = base.attach("y", LoRA(r=2))
    assert {s.name for s, _ in again.inserts} == {s.name for s, _ in base.adapters["x"].inserts}
    with base.using("x"):
        assert_close(base(**batch).logits, forward(tuned, batch), atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ("embed_tokens", "q_proj")},
        {"target_modules": ("q_proj",), "modules_to_save": ("lm_head",)},
    ],
)
def test_embeddings_and_fully_trained_modules_travel_both_ways(tmp_path, settings):
    model, batch = tiny_model("llama"), inputs("llama")
    targets = settings["target_modules"]
    tuned = theirs(
        model,
        tmp_path / "theirs",
        targets,
        {"r": 4, **{k: v for k, v in settings.items() if k != "target_modules"}},
    )
    base = Base(copy.deepcopy(model))
    base.load_adapter(tmp_path / "theirs", "x")
    with base.using("x"):
        ours = base(**batch).logits
    assert_close(ours, forward(tuned, batch), atol=1e-5, rtol=1e-5)
    base.adapters["x"].save(tmp_path / "ours")
    assert_close(
        forward(peft.PeftModel.from_pretrained(model, tmp_path / "ours"), batch), ours, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora", "own_biases"])
def test_gradients_and_twenty_training_steps_equal_pefts(tmp_path, variant):
    model, batch = tiny_model("llama", attention_bias=True), inputs("llama")
    tuned = theirs(model, tmp_path, QV["llama"], VARIANTS[variant]).train()
    base = Base(copy.deepcopy(model))
    adapter = base.load_adapter(tmp_path, "x")
    base.train()
    ids = batch["ids"]
    optimizers = [
        # A large eps: steps of gradients that are rounding alone are none.
        torch.optim.AdamW([p for p in ps if p.requires_grad], lr=1e-2, weight_decay=0.0, eps=1e-5)
        for ps in (tuned.parameters(), adapter.parameters())
    ]
    for _ in range(20):
        losses = [tuned(input_ids=ids, labels=ids).loss]
        with base.using("x"):
            losses.append(base(ids, labels=ids).loss)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
    state = peft.get_peft_model_state_dict(tuned)
    mine = adapter.file_state()
    assert mine.keys() == state.keys()
    for key, tensor in mine.items():
        assert_close(tensor, state[key], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_that_rewrite_the_base_elsewhere_equal_peft_without_rewriting_it(tmp_path, init):
    model, batch = tiny_model("llama"), inputs("llama")
    base = Base(copy.deepcopy(model))
    adapter = base.attach("x", LoRA(r=4, lora_alpha=8, target_modules=QV["llama"], init_lora_weights=init))
    with base.using("x"):
        assert_close(base(**batch).logits, forward(model, batch), atol=1e-5, rtol=1e-5)
    tuned = peft.get_peft_model(
        copy.deepcopy(model),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(QV["llama"]), init_lora_weights=init),
    )
    own = dict(adapter.named_parameters())
    reference = {k.replace(".default", ""): p for k, p in tuned.named_parameters() if p.requires_grad}
    for site, insert in adapter.inserts:  # singular vectors are known up to their sign: compare the products
        A, B = (reference[f"base_model.model.{site.name}.lora_{f}.weight"] for f in "AB")
        assert_close(insert.B @ insert.A, B @ A, atol=1e-4, rtol=1e-4)
    assert len(own) == len(reference)
    randomise(adapter)
    adapter.save(tmp_path)
    with base.using("x"):
        trained = base(**batch).logits
    assert_close(
        forward(peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path), batch),
        trained,
        atol=1e-4,
        rtol=1e-4,
    )


def test_dropout_touches_the_input_of_a_only_and_only_in_training():
    base, batch = Base(tiny_model("llama")), inputs("llama")
    randomise(base.attach("x", LoRA(lora_dropout=0.5)))
    with base.using("x"):
        still = base(**batch).logits
        base.train()
        torch.manual_seed(0)
        dropped = base(**batch).logits
        torch.manual_seed(0)
        assert torch.equal(base(**batch).logits, dropped) and not torch.equal(dropped, still)
        base.train(False)
        assert torch.equal(base(**batch).logits, still)


def test_lora_plus_gives_b_its_own_rate():
    adapter = Base(tiny_model("llama")).attach("x", LoRA(loraplus_lr_ratio=16.0))
    slow, fast = adapter.param_groups(1e-4)
    assert (slow["lr"], fast["lr"]) == (1e-4, 16e-4)
    assert {p.shape[1] for p in fast["params"]} == {8} and len(slow["params"]) == len(fast["params"]) == 14


def test_rows_of_four_peft_files_in_one_batch_equal_separate_runs(tmp_path):
    model, batch = tiny_model("llama"), inputs("llama", rows=4)
    base = Base(copy.deepcopy(model))
    wanted = {}
    for seed, variant in enumerate(("plain", "rslora", "dora", "patterns")):
        tuned = theirs(model, tmp_path / variant, QV["llama"], VARIANTS[variant], seed)
        base.load_adapter(tmp_path / variant, variant)
        wanted[variant] = forward(tuned, batch)
    bare, names = base(**batch).logits, list(wanted)
    mixed = base(**batch, adapters=names).logits
    for row, name in enumerate(names):
        assert_close(mixed[row], wanted[name][row], atol=1e-5, rtol=1e-5)
        assert (mixed[row] - bare[row]).abs().max() > 1e-2
        others = [wanted[other][row] for other in names if other != name]
        assert all((mixed[row] - other).abs().max() > 1e-2 for other in others)
