"""Plans of models of any size. Oracles: published counts, arithmetic, and real tensors that do the same."""

import gc
import json

import pytest
import torch
from transformers import AutoConfig, BertConfig, LlamaConfig

from graft.errors import UsageError
from graft.methods.full import Full
from graft.methods.lora import LoRA
from graft.methods.prefix import PrefixTuning
from graft.planning import plan as planning
from graft.planning.held import optimizer_bytes
from graft.planning.machine import memory
from graft.planning.plan import Shape, _methods, plan, plan_model
from graft.planning.sketch import (
    Ledger,
    Step,
    peak,
    run_step,
    same_in_every_block,
    shallow,
    sketch,
    unreal,
    weights,
)
from graft.quant import quantise_model
from graft.recipe import read
from graft.stages.stage import find, stage_of
from graft.training.optimizers import build
from graft.training.paging import Pages
from models import CONFIGS, tiny_base, tiny_model

SIZES = {
    "7b": (32, 4096, 11008),
    "13b": (40, 5120, 13824),
    "33b": (60, 6656, 17920),
    "65b": (80, 8192, 22016),
}
ALL = "all-linear"


def llama(size):
    layers, width, inner = SIZES[size]
    return LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=inner,
        num_attention_heads=width // 128, vocab_size=32000, max_position_embeddings=2048,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "parameters", "in_16_bits", "in_nf4"),  # methods.md 0.2 and 0.5: totals; decimal GB
    [
        ("7b", 6_738_415_616, 13.48, 3.87), ("13b", 13_015_864_320, 26.03, 7.20),
        ("33b", 32_528_943_616, 65.06, 17.42), ("65b", 65_285_660_672, 130.57, 34.46),
    ],
)  # fmt: skip
def test_counts_and_footprints_are_those_of_the_published_models(size, parameters, in_16_bits, in_nf4):
    with unreal():
        plain, packed = sketch(llama(size)), sketch(llama(size), quant="nf4")
        assert plain.count() == packed.count() == parameters
        assert weights(plain) / 1e9 == pytest.approx(in_16_bits, abs=0.006)
        assert weights(packed) / 1e9 == pytest.approx(in_nf4, abs=0.01)


def test_a_recipe_for_tagged_words_plans_a_class_for_every_token(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    of = lambda rows: read({"stage": "classify", "method": {"name": "lora", "r": 2}, "data": {"train": rows}})
    (_, tagger), (_, classifier) = (_methods(of(f"seedling:{rows}")) for rows in ("entities", "shelves"))
    assert (tagger.num_labels, tagger.every_token) == (20, True)
    assert (classifier.num_labels, classifier.every_token) == (8, False)
    words, texts = (plan(of(f"seedling:{rows}")) for rows in ("entities", "shelves"))
    assert words.parts["step"] > texts.parts["step"] > 0  # logits of every token, not of a row


def test_bert_base_has_its_published_count():
    with unreal():
        assert sketch(BertConfig(), task="encoder").count() == 109_482_240


@pytest.mark.parametrize(
    ("method", "trained"),  # the LoRA rows of methods.md 0.3, worked for 7B
    [
        (LoRA(r=8, target_modules=("q_proj", "v_proj")), 4_194_304),
        (LoRA(r=16, target_modules=ALL), 39_976_960),
        (LoRA(r=64, target_modules=ALL), 159_907_840),
        (LoRA(r=16, target_modules=ALL, use_dora=True), 39_976_960 + 1_359_872),
        (LoRA(r=8, target_modules=("q_proj", "v_proj"), use_dora=True), 4_194_304 + 262_144),
        (Full(), 6_738_415_616),
    ],
    ids=["qv r8", "all r16", "all r64", "dora all", "dora qv", "full"],
)
def test_trained_parameters_of_a_7b_are_those_of_the_papers(method, trained):
    with unreal():
        assert sketch(llama("7b")).attach("plan", method).count() == trained


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8", "int4", "int3", "int2", "int8g"])
def test_bytes_of_a_packed_base_are_those_of_the_real_one(scheme):
    real = quantise_model(
        tiny_model("llama", hidden_size=96, intermediate_size=160).to(torch.bfloat16), scheme
    )
    stored = sum(p.numel() * p.element_size() for p in real.parameters()) + 4 * sum(
        b.numel() for b in real.buffers()
    )
    with unreal():
        assert weights(sketch(real.config, quant=scheme)) == stored


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert", "t5"])
@pytest.mark.parametrize("training", [True, False])
def test_a_sketched_step_holds_what_a_real_one_holds(family, training):
    methods, step = [LoRA(r=4, target_modules=ALL)], Step(rows=2, length=24)
    base = tiny_base(family)
    adapter = base.attach("plan", methods)
    known = [*base.model.parameters(), *base.model.buffers(), *adapter.checkpoint_state().values()]
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
        known.append(parameter.grad)
    base.probe()
    base.unpackable(step.length)  # both are tried once, before the first step
    base.train(training)
    gc.collect()
    with base.using("plan"), torch.set_grad_enabled(training), Ledger(known) as ledger:
        run_step(base, adapter, step, training)
    predicted, _ = peak(
        base.model.config, methods, step, training=training, uniform=True, dtype=torch.float32
    )
    assert predicted == pytest.approx(
        ledger.peak, rel=0.02
    )  # masks that transformers leaves out for real values


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_deep_model_is_its_first_blocks_carried_on(checkpointing):
    deep = AutoConfig.for_model("llama", **CONFIGS["llama"] | {"num_hidden_layers": 9})
    step, methods = Step(2, 32, checkpointing), [LoRA(r=4, target_modules=ALL)]
    whole = peak(deep, methods, step, uniform=False)
    assert peak(deep, methods, step, uniform=True) == pytest.approx(whole, rel=0.01)
    assert shallow(deep, 2).num_hidden_layers == 2


def test_only_adapters_that_treat_blocks_alike_are_carried_on():
    config = AutoConfig.for_model("llama", **CONFIGS["llama"])
    with unreal():
        for method, expected in (
            (LoRA(r=2), True),
            (LoRA(r=2, layers_to_transform=(1,)), False),
            (Full(), True),
        ):
            base = sketch(config)
            base.attach("plan", method)
            assert same_in_every_block(base) is expected


def test_checkpointing_and_small_batches_hold_less():
    config, methods = (
        AutoConfig.for_model("llama", **CONFIGS["llama"] | {"num_hidden_layers": 6}),
        [LoRA(r=4, target_modules=ALL)],
    )
    whole, _ = peak(config, methods, Step(4, 64), uniform=True)
    assert peak(config, methods, Step(4, 64, checkpointing=True), uniform=True)[0] < 0.6 * whole
    assert peak(config, methods, Step(2, 64), uniform=True)[0] < 0.7 * whole


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimizer_bytes_are_those_of_the_real_optimizer(kind, dtype):
    named = {
        name: torch.nn.Parameter(torch.zeros(n, dtype=dtype))
        for name, n in (("a", 5000), ("b", 100), ("c", 4096))
    }
    real = build(kind, named, [{"params": list(named.values()), "lr": 1.0, "weight_decay": 0.0}], Pages())
    padding = real.states.resident_bytes - optimizer_bytes(kind, list(named.values()))
    assert 0 <= padding < 64 * len(real.tensors())  # each state begins at a multiple of 64 bytes


def test_the_parts_of_a_plan_add_up_and_the_batch_it_names_fits():
    config = AutoConfig.for_model("llama", **CONFIGS["llama"])
    methods = [LoRA(r=4, target_modules=ALL)]
    found = plan_model(config, methods, Shape(rows=2, length=32, eval_rows=2))
    held = found.parts
    assert (
        held["adapter"] == held["gradients"] == 4 * found.trained and held["optimizer"] == 8 * found.trained
    )
    assert found.peaks["train"] == found.process + sum(held.values())
    assert found.fits and found.micro_batch > 1000  # a toy on this machine
    more = plan_model(config, methods, Shape(rows=64, length=32, eval_rows=2))
    row = (more.parts["step"] - held["step"]) / 62
    room = found.available - found.peaks["train"] + held["step"]
    assert found.micro_batch * row == pytest.approx(room, rel=0.1)


@pytest.mark.parametrize("kind", ["sdpa", "eager", "native_sdpa"])
def test_a_base_whose_attention_has_inserts_is_planned_like_one_without(kind):
    base, shape = tiny_base(), Shape(rows=2, length=32)
    base.model.set_attn_implementation(kind)
    prefix = PrefixTuning(num_virtual_tokens=2)
    bare = plan_model(base.model.config, [prefix], shape)
    base.attach("prefix", prefix)
    assert base.model.config._attn_implementation == f"graft_{kind}"
    assert plan_model(base.model.config, [prefix], shape).parts == bare.parts
    assert base.model.config._attn_implementation == f"graft_{kind}"


def test_levers_are_keys_of_a_recipe_and_save_what_they_say():
    config = llama("7b")
    methods = [LoRA(r=16, target_modules=ALL)]
    found = plan_model(config, methods, Shape(rows=4, length=512))
    assert len(found.levers) == 3
    for lever in found.levers:
        read({"method": {"name": "lora", "r": 16}}, [lever.change])  # refuses a key that it does not know
    halved = plan_model(config, methods, Shape(rows=2, length=512))
    saved = next(lever.saves for lever in found.levers if lever.change == "train.micro_batch_size=2")
    assert found.parts["step"] - halved.parts["step"] == pytest.approx(saved, rel=0.05)


def test_a_recipe_is_planned_without_its_weights(tmp_path):
    llama("7b").save_pretrained(tmp_path / "model")
    settings = {
        "model": str(tmp_path / "model"),
        "quant": "nf4",
        "method": {"name": "lora", "r": 16, "target_modules": ALL},
    }
    found = plan(
        settings
        | {
            "train": {"gradient_checkpointing": True, "optimizer": "paged_adamw_8bit"},
            "data": {"max_length": 512},
        }
    )
    assert (found.parameters, found.trained, found.sites) == (6_738_415_616, 39_976_960, 224)
    assert found.parts["optimizer"] == 0  # paged, nothing kept resident
    assert json.loads(json.dumps(found.facts()))["fits"] is found.fits
    assert "6,738,415,616 parameters" in str(found) and "39,976,960 trainable" in str(found)
    assert all("checkpointing" not in lever.change and "quant" not in lever.change for lever in found.levers)


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_values_that_are_trained_beside_a_policy_are_planned(tmp_path, value):
    LlamaConfig(**CONFIGS["llama"]).save_pretrained(tmp_path / "model")
    settings = {
        "model": str(tmp_path / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 4, "target_modules": ALL},
        "data": {"max_length": 32},
    }
    stage = {"name": "ppo", "rewards": "shop:price_last", "max_new_tokens": 8, "value": value}
    alone, both = plan(settings), plan(settings | {"stage": stage})
    # A head on the states, alone or on an adapter like the policy's.
    beside = CONFIGS["llama"]["hidden_size"] + (alone.trained if value == "adapter" else 0)
    assert both.trained - alone.trained == beside
    assert both.parts["optimizer"] - alone.parts["optimizer"] == 8 * beside
    assert both.parts["step"] > 0


def test_answers_to_one_prompt_are_planned_together():
    config = AutoConfig.for_model("llama", **CONFIGS["llama"])
    methods = [LoRA(r=4, target_modules=ALL)]

    def step(group):
        stage = find("ppo")(rewards="shop:price_last", group=group, max_new_tokens=64)
        return peak(config, methods, Step(1, 128, stage=stage), uniform=True)[0]

    # 64 tokens of a prompt and 64 of each answer: 128, or 320. Attention's part grows with their square.
    assert 0.8 * 320 / 128 < step(4) / step(1) < (320 / 128) ** 2


@pytest.mark.parametrize("word", ["grpo", "rloo", "best_of_n", "online_dpo", "online_ipo"])
def test_stages_that_write_their_own_answers_are_planned_without_values(word):
    config = AutoConfig.for_model("llama", **CONFIGS["llama"])
    stage = stage_of(read({"stage": word}))
    tensors, _ = peak(config, [LoRA(r=4, target_modules=ALL)], Step(1, 160, stage=stage), uniform=True)
    # More than the states of the answers that are learnt, which leave the last block, and their gradient.
    assert tensors > 2 * 4 * 64 * 128 * stage.learnt


def test_activations_are_computed_again_only_if_the_run_fits_no_other_way(monkeypatch):
    config = LlamaConfig(
        num_hidden_layers=6, hidden_size=128, intermediate_size=256, num_attention_heads=2, vocab_size=64
    )
    machine = [1 << 40]
    monkeypatch.setattr(planning, "memory", lambda: (machine[0], "cpu", 0))

    def planned():
        shape = Shape(rows=4, length=512, eval_rows=1)
        return plan_model(config, [LoRA(r=4, target_modules=ALL)], shape, may_recompute=True)

    roomy = planned()
    assert not roomy.checkpointing and "computed again" not in str(roomy)
    machine[0] = max(roomy.peaks.values()) - 1
    tight = planned()
    assert tight.checkpointing and tight.fits and "computed again" in str(tight)


def test_a_fresh_model_is_planned_with_the_vocabulary_it_will_have():
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4}
    config = {"model_type": "llama", **sizes}
    model = {"config": config, "tokenizer": {"train": "bpe", "vocab_size": 500}}
    found = plan(
        {"model": model, "stage": "pretrain", "method": {"name": "full"}, "data": {"max_length": 64}}
    )
    per_block = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert found.parameters == found.trained == 2 * per_block + 2 * 500 * 64 + 64


def test_misspelt_settings_are_refused_before_anything_is_built():
    with pytest.raises(UsageError, match="lora_alpha"):
        plan({"model": "seedling", "method": {"name": "lora", "lora_alhpa": 3}})


def test_memory_of_the_machine_is_what_the_process_can_have():
    available, device, now = memory()
    assert device == "cuda" or available > now > 50 * 2**20
