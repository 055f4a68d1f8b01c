"""The benchmark of speed: its arithmetic of shapes, its random models, ratios, parts of a step, refusals."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
from scripts import BENCHMARKS, imported

MODULES = ("shapes", "weights", "grid", "harness", "facts", "parts", "picture", "link")


@pytest.fixture(scope="module")
def speed():
    with imported(("speed", "common"), MODULES) as modules:
        yield modules


def test_counts_of_weights_are_those_of_transformers_and_peft(speed, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaConfig

    for shape in (speed.shapes.SHAPES["tiny"], speed.shapes.SHAPES["15m"]):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config()))
        assert sum(p.numel() for p in model.parameters()) * 2 == shape.file_bytes
        linears = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
        assert sum(m.weight.numel() for m in linears) == shape.linear
    folder = speed.weights.model(speed.shapes.SHAPES["tiny"], tmp_path)
    adapter = speed.weights.adapter(speed.shapes.SHAPES["tiny"], tmp_path)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), adapter, is_trainable=True
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == speed.shapes.SHAPES["tiny"].lora(speed.weights.RANK)


def test_operations_of_a_step_are_those_that_torch_counts(speed):
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape, length = speed.shapes.SHAPES["tiny"], 32
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config()), attn_implementation="eager")
    ids = speed.weights.rows(shape, length, 1)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids, use_cache=False).loss.backward()
    # A token of eager attention costs 4·t·d in each layer, and twice that backward: nothing behind the mask
    # is left out, and nothing is computed again. The formula counts 3.5 times half of it.
    attention = length * shape.layers * shape.d * length * (12 - 7)
    assert counter.get_total_flops() == length * shape.flops(length, 0, full=True) + attention


def test_the_bound_on_memory_is_that_of_a_worked_example(speed):
    """7B, T=512: 3.87 GB of weights, 0.64 of adapter and optimizer, 1.53 of activations."""
    assert speed.shapes.SHAPES["7b"].training_bytes(512, 16) / 1e9 == pytest.approx(6.03, abs=0.01)


def test_a_random_model_is_read_by_safetensors_and_is_the_same_each_time(speed, tmp_path):
    from safetensors.torch import load_file

    shape = speed.shapes.SHAPES["tiny"]
    folders = [speed.weights.model(shape, tmp_path / name) for name in ("a", "b")]
    files = [folder / "model.safetensors" for folder in folders]
    assert files[0].read_bytes() == files[1].read_bytes()
    tensors = load_file(files[0])
    assert {name: tuple(t.shape) for name, t in tensors.items()} == dict(speed.weights.tensors(shape))
    table = tensors["model.embed_tokens.weight"].float()
    assert table.std().item() == pytest.approx(speed.weights.STD, rel=0.02)


def test_the_gguf_holds_the_same_weights(speed, tmp_path):
    """Read by transformers, which undoes the order of rotary rows by itself."""
    from safetensors.torch import load_file
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    shape = speed.shapes.SHAPES["tiny"]
    file = speed.weights.gguf(shape, tmp_path)
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM, LlamaConfig

        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config()))
    read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    for name, weight in load_file(tmp_path / "tiny" / "model.safetensors").items():
        error = (read[name].float() - weight.float()).abs().max().item()
        assert error <= 0.125 * weight.float().abs().max().item() + 1e-6, name


def test_a_side_with_less_work_in_a_unit_has_a_smaller_rate(speed):
    whole, low, high = speed.facts.ratios([[2.0], [4.0]], [[1.0], [1.0]], work=8.0)
    assert (whole, low, high) == (8 / 3, 2.0, 4.0)


def raw_run(speed, others):
    """A row of two sides with two quiet rounds wanted, as the harness records it."""
    row = speed.grid.Row(
        "qlora-15m-128", "", "train", "15m", {"graft": {}, "shipped": {}},
        {"length": 128, "method": "lora", "quant": "nf4"}, rounds=2,
    )  # fmt: skip
    ready = {"trained": 7, "warm": [10.0], "work": 128, "variant": "fp32"}
    turns = {"graft": {"seconds": [1.0], "results": [9.0]}, "shipped": {"seconds": [3.0], "results": [9.1]}}
    limits = {"flops": 100e9, "bandwidth": 20e9}
    return row, {
        "reference": {"loss": 10.01},
        "rounds": [{"others": cores, "limits": limits, "turns": turns} for cores in others],
        "ready": {"graft": ready, "shipped": ready},
        "ended": {"graft": {"peak_mib": 50.0}, "shipped": {"peak_mib": 60.0}},
    }  # fmt: skip


def test_a_quiet_row_has_ratios_and_a_share_of_the_machine(speed):
    sides = speed.facts.of_row(*raw_run(speed, [0.1, 0.2, 0.9]))
    assert sides["shipped"]["ratio"] == 3.0 and "ratio" not in sides["graft"]
    flops = speed.shapes.SHAPES["15m"].flops(128, 16)
    assert sides["graft"]["share"] == pytest.approx(128 * flops / 100e9)
    assert sides["graft"]["same"] == 1 and sides["graft"]["others"] == 0.2


def test_a_row_measured_beside_other_work_has_no_speeds(speed):
    sides = speed.facts.of_row(*raw_run(speed, [0.1, 0.8, 0.9]))
    for facts in sides.values():
        assert facts["refused"] == 1 and facts["others"] == 0.9
        assert not {"seconds", "per_s", "ratio", "share"} & set(facts)
        assert facts["peak_mib"] > 0 and facts["loss_last"] > 0  # these do not depend on the load


@pytest.mark.parametrize("change", ["loss", "count"])
def test_other_work_than_the_peers_is_noticed(speed, change):
    row, raw = raw_run(speed, [0.1, 0.1])
    if change == "loss":
        raw["reference"]["loss"] = 10.1
    else:
        raw["ready"]["shipped"] = raw["ready"]["shipped"] | {"trained": 8}
    assert speed.facts.of_row(row, raw)["graft"]["same"] == 0


def test_load_of_other_processes_is_seen_and_our_own_is_not(speed, monkeypatch):
    now = iter([(0.0, 10.0, 5.0), (2.0, 13.0, 7.0)])
    monkeypatch.setattr(speed.harness.Others, "_now", lambda self: next(now))
    assert speed.harness.Others().cores() == 0.5  # 3 s of processor in 2 s, of which 2 are our own


def test_the_parts_of_a_profile_are_the_whole_step(speed):
    x = torch.randn(8, 24, requires_grad=True)
    table, A, w = torch.randn(100, 24), torch.randn(16, 24), torch.randn(24, 24)
    with speed.parts.profiler() as profile:
        h = torch.nn.functional.linear(x, w) + torch.nn.functional.linear(x, A) @ torch.randn(16, 24)
        torch.nn.functional.cross_entropy(h @ table.T, torch.zeros(8, dtype=torch.long)).backward()
    events = list(profile.events())
    spent = speed.parts.split(events, 10.0, vocabulary=100, rank=16)
    assert list(spent) == list(speed.parts.PARTS)
    assert sum(spent.values()) == pytest.approx(10.0)
    for part in ("products", "head and loss", "adapter"):
        assert spent[part] > 0, part
    assert spent["attention"] == spent["optimizer"] == 0
    found = {speed.parts.part_of(event, 100, 16) for event in events if event.name == "aten::log_softmax"}
    assert found == {"head and loss"}


def test_what_runs_inside_the_optimizers_step_belongs_to_it(speed):
    p = torch.nn.Parameter(torch.randn(16, 100))
    p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW([p], foreach=False)
    with speed.parts.profiler() as profile:
        optimizer.step()
    inside = [event for event in profile.events() if event.name == "aten::addcdiv_"]
    assert inside and {speed.parts.part_of(event, 100, 16) for event in inside} == {"optimizer"}


def test_every_row_has_sides_that_exist_and_work_of_its_kind(speed):
    for row in speed.grid.ROWS.values():
        assert set(row.goals) <= {*row.sides, speed.grid.BEFORE}, row.name
        assert row.kind == "demo" or row.shape in speed.shapes.SHAPES, row.name
        quick = row.quick()
        assert quick.turn * quick.rounds <= 2, row.name


def test_the_picture_has_a_bar_for_each_side_and_a_piece_for_each_part(speed):
    lines = [
        {
            "row": "qlora-15m-128",
            "cpu": "Zen",
            "side": side,
            **dict.fromkeys(speed.parts.PARTS, seconds),
        }
        for side, seconds in (("graft", 0.1), ("shipped", 0.2))
    ]
    unmeasured = {"row": "qlora-160m-128", "cpu": "Zen", "side": "graft"}
    root = ElementTree.fromstring(speed.picture.svg([*lines, unmeasured]))
    pieces = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if len(rect)]
    assert len(pieces) == 2 * len(speed.parts.PARTS)
    assert sum(float(rect.get("width")) for rect in pieces) == pytest.approx(1.5 * speed.picture.WIDTH, abs=2)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "QLoRA 15M, T=128, Zen" in texts and "QLoRA 160M, T=128, Zen" not in texts


@pytest.mark.slow
def test_a_row_runs_from_weights_to_ratios(tmp_path):
    """The whole chain, on a model of 0.2 M weights; speeds may be refused on a busy machine."""
    words = [
        sys.executable,
        BENCHMARKS / "speed" / "run.py",
        "--quick",
        "--again",
        "--threads",
        "1",
        "--weights",
        tmp_path,
    ]
    done = subprocess.run([*words, "qlora-tiny-32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    raw = BENCHMARKS.parent / "runs" / "bench" / "speed" / "trial" / "qlora-tiny-32.json"
    sides = json.loads(raw.read_text(encoding="utf-8"))["sides"]
    assert list(sides) == ["graft", "shipped", "tuned"]
    assert all(facts["same"] == 1 for facts in sides.values())
