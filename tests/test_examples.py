"""The examples run as they stand; and what they show holds on a tiny encoder in a handful of steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from graft.base.base import Base
from graft.data.train_tokenizer import train_bpe
from graft.evaluate import answers
from graft.seedling import writing

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def two_specialists(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import two_specialists

    return two_specialists


def test_two_specialists_share_one_tiny_encoder(two_specialists, tmp_path):
    tokenizer = train_bpe(writing.documents(50, 0), 400, max_length=64)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=80, **shape)
    base = Base(BertModel(config), tokenizer, "tiny")
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    scores = {
        rows: two_specialists.teach(base, rows, pool, str(tmp_path), max_steps=3)
        for rows, pool in (("shelves", "mean"), ("entities", "none"))
    }
    assert all(set(found) == {"majority", "after"} for found in scores.values())
    assert scores["entities"]["majority"]["f1"] == 0 < scores["entities"]["majority"]["accuracy"]
    assert two_specialists.same_after_a_swap(base, "shelves", "entities")
    assert all(torch.equal(value, before[key]) for key, value in base.model.state_dict().items())
    topic, marked = answers(base, two_specialists.TEXTS, ["shelves", "entities"])
    assert topic in two_specialists.classes("shelves") and "forty euros" in marked.replace("]", "")


@pytest.mark.slow
def test_the_example_of_two_specialists_runs(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / "two_specialists.py", "--output", tmp_path / "runs"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    scores = {tuple(line.split()[:2]): float(line.split()[-1]) for line in said if " f1 " in line}
    assert scores["shelves", "after"] > 0.9 > 0.1 > scores["shelves", "majority"]
    assert scores["entities", "after"] > 0.8 > 0.1 > scores["entities", "majority"]
    assert any("[PRICE forty euros]" in line for line in said) and said[-1].endswith(": equal")
