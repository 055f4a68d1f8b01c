"""What `graft plan` prints: memory, time, and what else fits. The base is a folder without weights."""

import json

import pytest
from transformers import LlamaConfig

from graft.cli import call
from graft.planning import plan, usual
from models import CONFIGS


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))  # no speeds are known there
    monkeypatch.setattr(plan, "_rates", lambda dtype: None)  # nor by an earlier test
    monkeypatch.chdir(tmp_path)
    LlamaConfig(**CONFIGS["llama"]).save_pretrained(tmp_path / "model")
    return ["plan", "--model", "model", "dtype=fp32", "data.max_length=32", "train.max_steps=10"]


def test_a_machine_that_was_not_measured_is_told_how(words, capsys):
    assert call(words) == 0
    out = capsys.readouterr().out
    assert "time     not measured: `graft doctor --bench`" in out
    assert "train.micro_batch_size=" in out and "data.max_length=" in out and "such adapters" in out


def test_the_second_answer_is_the_first_one(words, capsys):
    shown = []
    for _ in range(2):
        assert call([*words, "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    free = {"available", "process", "micro_batch", "longest", "adapters", "peaks"}
    assert {k: v for k, v in shown[0].items() if k not in free} == {
        k: v for k, v in shown[1].items() if k not in free
    }


def test_the_largest_usual_model_is_named_if_it_is_asked_for(words, capsys, monkeypatch):
    monkeypatch.setattr(usual, "largest_model", lambda recipe: "7B (Llama 2)")
    assert call([*words, "--fit"]) == 0
    assert "model    7B (Llama 2)" in capsys.readouterr().out
    assert call([*words, "--fit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_model"] == "7B (Llama 2)"
