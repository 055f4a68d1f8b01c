"""The benchmark for a GPU, on the processor: its rows, its arithmetic of memory, a tiny run, its refusal."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from scripts import BENCHMARKS, imported

RUN = BENCHMARKS / "gpu" / "run.py"
MODULES = ("large", "drawn", "one")


@pytest.fixture(scope="module")
def gpu():
    with imported(("gpu", "common", "speed"), MODULES) as modules:
        yield modules


# GB at 2,048 tokens, counted by hand from the sizes: all activations kept, and with checkpointing.
@pytest.mark.parametrize(
    "name, kept, checkpointed", [("7b", 10.6, 5.2), ("33b", 38.0, 21.3), ("65b", 68, 41), ("70b", 70, 43)]
)
def test_the_least_memory_is_that_of_worked_examples(gpu, name, kept, checkpointed):
    shape = gpu.large.LARGE[name]
    assert gpu.large.least_bytes(shape, 2048, "nf4", False) / 1e9 == pytest.approx(kept, rel=0.02)
    assert gpu.large.least_bytes(shape, 2048, "nf4", True) / 1e9 == pytest.approx(checkpointed, rel=0.02)


def test_weights_in_bf16_take_their_file_instead_of_codes(gpu):
    shape = gpu.large.LARGE["1.1b"]
    more = gpu.large.least_bytes(shape, 256, None, False) - gpu.large.least_bytes(shape, 256, "nf4", False)
    assert more == shape.file_bytes - shape.packed_bytes


def test_65b_can_fit_its_limit(gpu):
    (row,) = gpu.large.chosen(["65b"], trial=False)
    assert row.least_gib < row.limit_gib == 48


def test_counts_of_the_large_shapes_are_those_of_the_published_models(gpu):
    billions = {
        name: (shape.linear + shape.tables + (2 * shape.layers + 1) * shape.d) / 1e9
        for name, shape in gpu.large.LARGE.items()
    }
    assert billions["33b"] == pytest.approx(32.53, abs=0.01)  # LLaMA
    assert billions["65b"] == pytest.approx(65.29, abs=0.01)
    assert billions["70b"] == pytest.approx(68.98, abs=0.01)  # Llama 2


def test_rows_are_chosen_by_group_or_part_of_the_name(gpu):
    names = lambda *words: [row.name for row in gpu.large.chosen(list(words), trial=False)]
    assert names("g4") == ["qlora-33b", "qlora-65b"]
    assert names("65b", "1.1b") == ["lora-1.1b", "qlora-1.1b", "qlora-65b"]
    assert {row.group for row in gpu.large.chosen([], trial=False)} == {"G1", "G2", "G3", "G4"}
    assert {row.shape for row in gpu.large.chosen([], trial=True)} == {"tiny"}
    with pytest.raises(ValueError, match="no row for '13b' among qlora-7b"):
        names("13b")


@pytest.mark.parametrize("limit, found", [(0, 0), (99, 0), (100, 100), (700, 700), (750, 700), (9999, 1600)])
def test_the_longest_row_that_fits_is_found(gpu, limit, found):
    assert gpu.one.longest(lambda length: length <= limit, 100, 1600) == found


def test_a_drawn_model_is_that_of_transformers_with_packed_linears(gpu):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = gpu.large.LARGE["tiny"]
    drawn = [gpu.drawn.base(shape, quant, torch.device("cpu"), 64) for quant in ("nf4", "nf4", None)]
    states = [base.model.state_dict() for base in drawn]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    plain = LlamaForCausalLM(LlamaConfig(**shape.config() | {"max_position_embeddings": 64})).bfloat16()
    plain.load_state_dict(states[2])  # the same names and shapes
    packed = gpu.one.internals.QuantLinear
    count = sum(isinstance(module, packed) for module in drawn[0].model.modules())
    assert count == shape.layers * len(shape.block())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(
            drawn[2].model(ids).logits.float(), plain(ids).logits.float(), atol=0.02
        )  # bf16, whose rounding the kernels do less often


def test_a_tiny_row_is_measured_on_the_processor(gpu):
    (row,) = [row for row in gpu.large.ROWS if row.name == "tiny-checkpointing"]
    found = gpu.one.measure(row, torch.device("cpu"))
    assert found["fits"] and found["tokens"] == 64
    assert found["tokens_per_s"] == pytest.approx(64 / found["seconds"])
    shape = gpu.large.LARGE["tiny"]
    assert found["tflops"] == pytest.approx(found["tokens_per_s"] * shape.flops(64, 16) / 1e12)
    assert found["loss_last"] < found["loss_first"]
    assert found["peak_gib"] > found["least_gib"] == row.least_gib


def test_memory_that_runs_out_is_a_result(gpu, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("memory ran out\nmore")

    monkeypatch.setattr(gpu.one, "train", full)
    rows = {row.name: row for row in gpu.large.ROWS}
    found = gpu.one.measure(rows["tiny"], torch.device("cpu"))
    assert (found["fits"], found["why"]) == (False, "memory ran out")
    assert (
        gpu.one.measure(rows["tiny-longest"], torch.device("cpu"))["why"] == "not even the shortest row fits"
    )


def run(*words):
    return subprocess.run(
        [sys.executable, RUN, *map(str, words)], capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing():
    done = run("G1")
    assert done.returncode == 2 and "need a GPU with CUDA" in done.stdout and not done.stderr


def test_a_row_that_does_not_exist_is_answered_with_those_that_do():
    done = run("--device", "cpu", "13b")
    assert done.returncode == 2 and "tiny-longest" in done.stdout


def test_a_trial_writes_raw_runs_and_their_table(tmp_path):
    done = run("--device", "cpu", "--to", tmp_path, "tiny-longest")
    assert done.returncode == 0, done.stdout + done.stderr
    raw = json.loads((tmp_path / "tiny-longest.json").read_text())
    with (tmp_path / "results.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert raw["tokens"] == 256 and line["tokens"] == "256" and line["fits"] == "True" and line["torch"]
    again = run("--device", "cpu", "--to", tmp_path, "tiny-longest", "--list")
    assert again.stdout.startswith("done")
