"""What tracing costs, and what it finds. Right values: real steps, the decoder's own memory, arithmetic."""

import gc

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from graft.base.native_decoder import NativeDecoder
from graft.kernels import measure, native
from graft.kernels.decoder import FIXED
from graft.methods.full import Full
from graft.methods.lora import LoRA
from graft.planning import held as holding
from graft.planning import sketch as sketching
from graft.planning import trace as tracing
from graft.planning.held import held_by, packed_weights
from graft.planning.ledger import Ledger
from graft.planning.sketch import Step, Traced, attached, run_step, sketch, stored, unreal, weights
from graft.planning.trace import Shape, trace, writing
from graft.quant import Scheme, quantise_model
from graft.recipe import read
from graft.stages.sft import SFT
from graft.stages.stage import find, stage_of
from models import CONFIGS, tiny_model

ALL = "all-linear"
PLAIN = {"quant": "none", "group_size": 0, "dtype": torch.float32, "task": None}


def deep(blocks):
    return AutoConfig.for_model("llama", **CONFIGS["llama"] | {"num_hidden_layers": blocks})


def test_a_plan_of_80_blocks_traces_as_many_blocks_as_one_of_8(monkeypatch):
    built, attach = [], sketching.attached

    def counted(base, *rest):
        built.append(base.model.config.num_hidden_layers)
        return attach(base, *rest)

    monkeypatch.setattr(sketching, "attached", counted)
    monkeypatch.setattr(holding, "attached", counted)
    counts = []
    for blocks in (8, 80):
        built.clear()
        trace(deep(blocks), [LoRA(r=4, target_modules=ALL)], Shape(1, 64, 1), PLAIN)
        counts.append(list(built))
    assert counts[0] == counts[1] and max(counts[1]) <= 4 and len(counts[1]) <= 5


def test_a_plan_runs_at_most_six_steps_on_two_sketches(monkeypatch):
    made, init = [], Traced.__init__

    def remembered(self, *args, **keywords):
        init(self, *args, **keywords)
        made.append(self)

    monkeypatch.setattr(Traced, "__init__", remembered)
    trace(deep(32), [LoRA(r=4, target_modules=ALL)], Shape(1, 64, 1), PLAIN)
    assert len(made) == 1 and made[0].steps <= 12


@pytest.mark.parametrize(
    "method", [LoRA(r=4, target_modules=ALL), Full(), LoRA(r=4, layers_to_transform=(5,))]
)
def test_what_a_deep_run_holds_is_what_all_of_its_blocks_hold(method):
    config = deep(9)
    found = held_by(config, [method], SFT, "adamw", 0, PLAIN)
    with unreal():
        base = sketch(config)
        adapter = attached(base, [method], SFT)
        assert found.trained == adapter.count()
        assert found.sites == len({site.name for site, _ in adapter.inserts})
        assert found.parts["gradients"] == 2 * stored(adapter.parameters()) if method.in_place else True
        assert found.parameters == base.count()


@pytest.mark.parametrize("quant", ["nf4", "int8", "int4"])
def test_packed_weights_are_counted_without_packing(quant):
    config = AutoConfig.for_model("llama", **CONFIGS["llama"] | {"hidden_size": 96})
    with unreal():
        assert packed_weights(sketch(config), quant, 0) == weights(sketch(config, quant=quant))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_sketched_step_on_packed_weights_holds_what_a_real_one_holds(dtype, checkpointing):
    from graft.base.base import Base

    model = quantise_model(tiny_model("llama").to(dtype), "nf4")
    base = Base(model)
    step, methods = Step(2, 24, checkpointing), [LoRA(r=4, target_modules=ALL)]
    adapter = attached(base, methods, SFT)
    known = [*base.model.parameters(), *base.model.buffers(), *adapter.checkpoint_state().values()]
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
        known.append(parameter.grad)
    base.probe()
    base.unpackable(step.length)
    base.train(True)
    base.checkpointing(checkpointing)
    gc.collect()
    with base.using("plan"), Ledger(known) as ledger:
        run_step(base, adapter, step, True)
    loading = {"quant": "nf4", "group_size": 0, "dtype": dtype, "task": None}
    found = Traced(base.model.config, methods, SFT, uniform=True, **loading).cost(step)
    assert found.tensors == pytest.approx(ledger.peak, rel=0.03)


def test_the_products_of_a_step_are_those_of_its_layers():
    config, rows, length, r = deep(5), 2, 32, 4
    found = Traced(config, [LoRA(r=r, target_modules=ALL)], SFT, uniform=True, **PLAIN).cost(
        Step(rows, length)
    )
    with unreal():
        shapes = [
            tuple(module.weight.shape)
            for name, module in sketch(config).model.named_modules()
            if isinstance(module, torch.nn.Linear) and "layers" in name
        ]
    head = config.vocab_size * config.hidden_size
    linears, adapters = sum(n * m for n, m in shapes), sum(r * (n + m) for n, m in shapes)
    # Forward and the gradient of what enters; of an adapter its own gradient, too. The head once each way.
    expected = rows * length * (2 * linears + 2 * head + 3 * adapters)
    assert found.work.products == pytest.approx(expected, rel=0.1)


def test_speeds_are_measured_outside_of_a_plan_too(monkeypatch):
    seen = []
    monkeypatch.setattr(measure, "_products", lambda effort: iter(()))
    monkeypatch.setattr(measure, "_decoding", lambda effort: seen.append(torch.zeros(1)) or 1.0)
    monkeypatch.setattr(measure, "_reading", lambda effort: 1.0)
    with unreal():
        measure.measured(measure.QUICK)
    assert type(seen[0]) is torch.Tensor


def test_writing_takes_the_memory_of_the_decoders_cache():
    config = LlamaConfig(
        num_hidden_layers=3, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, vocab_size=500,
        intermediate_size=64,
    )  # fmt: skip
    stage = find("grpo")(rewards="shop:price_last", prompts=2, group=3, max_new_tokens=8)
    cache = (
        2 * torch.zeros(3, 6, 2, 31, 16).nbytes
    )  # keys and values: blocks, answers, heads, positions, width
    assert writing(stage, config, 32, torch.float32) == cache + 4 * 4 * 6 * 500
    assert writing(SFT, config, 32, torch.float32) == 0


@pytest.mark.skipif(native.level() not in FIXED, reason="the kernels have no fixed point here")
def test_what_the_decoder_keeps_of_a_base_is_counted_where_texts_are_written():
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=160, num_attention_heads=4, intermediate_size=320, vocab_size=32_000
    )
    model = LlamaForCausalLM(config).bfloat16().float()
    quantise_model(model, Scheme("nf4"))
    decoder = NativeDecoder(model.eval())
    assert decoder.stepper({}) is not None, decoder.reason
    read = decoder._read
    kept = [weight.absmax for layer in read.model.layers for weight in layer.weights]
    kept += [read.model.head, read.rough.codes, read.rough.absmax]
    loading = PLAIN | {"quant": "nf4"}
    silent, writing = (
        trace(config, [LoRA()], Shape(rows=1, length=8, writes=writes), loading, brief=True).beside
        for writes in (False, True)
    )
    assert silent == 0
    assert writing == pytest.approx(sum(tensor.nbytes for tensor in kept), rel=0.02)


def test_adapters_that_pay_lie_beside_the_one_that_is_trained(tmp_path):
    (tmp_path / "judge" / "adapter").mkdir(parents=True)
    (tmp_path / "judge" / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 1000)
    chosen = read({"stage": {"name": "ppo", "rewards": str(tmp_path / "judge"), "max_new_tokens": 8}})
    assert tracing.beside(chosen, stage_of(chosen)) == 1000
    assert tracing.beside(read({}), SFT) == 0


def test_the_steps_of_a_run_follow_from_the_lines_of_its_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n' * 10 + "\n")
    given = {"data": {"train": str(file)}, "train": {"epochs": 3, "batch_size": 4, "micro_batch_size": 2}}
    assert tracing.steps_of(read(given), SFT) == 8  # 30 rows, 4 in each
    assert tracing.steps_of(read(given | {"data": {"train": str(tmp_path / "none.jsonl")}}), SFT) is None
