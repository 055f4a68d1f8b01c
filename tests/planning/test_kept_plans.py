"""Facts that are kept: the same plan without tracing, and no plan of something else."""

import json
import subprocess
import sys

import pytest
from transformers import LlamaConfig

from graft.planning import kept
from graft.planning import plan as planning
from graft.planning.machine import resident
from graft.recipe import read
from models import CONFIGS


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    LlamaConfig(**CONFIGS["llama"]).save_pretrained(tmp_path / "model")
    return {
        "model": str(tmp_path / "model"), "dtype": "fp32", "method": {"name": "lora", "r": 4},
        "data": {"max_length": 32}, "output": str(tmp_path / "run"),
    }  # fmt: skip


def test_a_plan_that_is_asked_again_is_the_same_and_traces_nothing(given, monkeypatch):
    first = planning.plan(given)
    monkeypatch.setattr(planning, "trace", None)  # whoever traces now fails
    again = planning.plan(given)
    assert (again.parts, again.trained, again.sites) == (first.parts, first.trained, first.sites)
    assert kept.kept_plan(read(given)).parts == first.parts


def test_a_kept_plan_is_told_without_torch(given):
    planning.plan(given)
    code = (
        "import json, sys\n"
        "from graft.planning.kept import kept_plan\n"
        "from graft.recipe import read\n"
        "print(str(kept_plan(read(json.loads(sys.argv[1])))))\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "trainable" in done.stdout and "peak" in done.stdout


@pytest.mark.parametrize(
    "change",
    [{"data": {"max_length": 33}}, {"quant": "nf4"}, {"method": {"name": "lora", "r": 5}}, {"dtype": "bf16"}],
    ids=["length", "quant", "rank", "dtype"],
)
def test_other_settings_are_not_answered_by_these_facts(given, change):
    planning.plan(given)
    assert kept.load(read(given | change)) is None


def test_settings_that_take_no_memory_are(given):
    planning.plan(given)
    assert kept.load(read(given | {"train": {"lr": 0.5, "seed": 3}, "output": "elsewhere"})) is not None


def test_another_model_in_the_same_folder_is_not_answered_by_these_facts(given, tmp_path):
    planning.plan(given)
    LlamaConfig(**CONFIGS["llama"] | {"num_hidden_layers": 3}).save_pretrained(tmp_path / "model")
    assert kept.load(read(given)) is None


def test_a_damaged_file_is_as_if_there_were_none(given):
    planning.plan(given)
    (file,) = kept.folder().glob("*.json")
    for text in ("", "{}", "[1]", file.read_text()[:200], file.read_text().replace("tensors", "sensors")):
        file.write_text(text)
        assert kept.load(read(given)) is None


def test_what_fits_is_asked_anew(given, monkeypatch):
    first = planning.plan(given | {"train": {"gradient_checkpointing": False}})
    monkeypatch.setattr(kept, "main_memory", lambda now: now + 1)
    again = kept.kept_plan(read(given | {"train": {"gradient_checkpointing": False}}))
    assert first.fits and not again.fits and again.micro_batch == 0


def test_where_a_kept_run_does_not_fit_and_could_be_smaller_it_is_traced(given, monkeypatch):
    planning.plan(given)  # gradient_checkpointing is auto
    monkeypatch.setattr(kept, "main_memory", lambda now: now + 1)
    assert kept.kept_plan(read(given)) is None


def test_this_process_has_memory():
    assert resident() > 20 * 2**20
