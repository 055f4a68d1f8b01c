"""The examples show what their docstrings say, in a few steps; the slow tests run them as they stand."""

import ast
import importlib
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
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """One folder for the embedded rows, so that they are written once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def example(monkeypatch, tmp_path, rows):
    """Import an example by name, in an empty working folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(rows))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


def test_chat_tune(example):
    with_adapter, without = example("chat_tune").main(steps=2)
    assert with_adapter and without


def test_classify(example, capsys):
    program = example("classify")
    scores = program.main(steps=12)
    assert scores["after"]["accuracy"] > scores["majority"]["accuracy"]
    labels = [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert set(labels) <= set(program.LABELS)


def test_merge_and_export(example, capsys):
    assert (
        example("merge_and_export").main(steps=2) < 1e-3
    )  # logits of the merged fp32 model, sums in another order
    assert "fingerprint" in Path("runs/merge_and_export/model/certificate.json").read_text()


def test_mixed_batch(example, capsys):
    assert example("mixed_batch").main(steps=1) < 1e-4  # only the order of additions may differ
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_own_method(example, capsys):
    first, last = example("own_method").main(steps=12)
    assert last < first
    assert f"{first:.3f}" in capsys.readouterr().out.splitlines()[-1], "detach gives the old loss back"


def test_own_objective(example, capsys):
    after = example("own_objective").main(steps=2)
    assert set(after) == {"usual", "smoothed", "focal"} and len(set(after.values())) == 3
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_compare_methods(example, capsys):
    program = example("compare_methods")
    after = program.main(steps=1)
    assert set(after) == set(program.METHODS) and all(value > 1 for value in after.values())
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(after)


def test_resume_after_a_kill(example, capsys):
    assert example("resume_after_a_kill").main()
    assert "exit code -9, checkpoints ['step-000005']" in capsys.readouterr().out


def test_plan_first(example, capsys):
    small = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8}
    peaks = list(example("plan_first").main(small).values())
    assert peaks[0] == max(peaks) and peaks[-1] == min(peaks)
    assert not list(Path("runs/plan_first").glob("*.safetensors")), "no weights are read"


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_says_what_it_shows_and_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring.splitlines()[0].endswith(".") and f"python examples/{name}.py" in docstring
    assert len(text.splitlines()) <= 80 and f"{name}.py" in (EXAMPLES / "README.md").read_text()
    assert f"def test_{name}(" in Path(__file__).read_text() or name == "two_specialists"


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
    assert all(set(columns) == {"majority", "after"} for columns in scores.values())
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
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.splitlines()
    scores = {tuple(line.split()[:2]): float(line.split()[-1]) for line in printed if " f1 " in line}
    assert scores["shelves", "after"] > 0.9 > 0.1 > scores["shelves", "majority"]
    assert scores["entities", "after"] > 0.8 > 0.1 > scores["entities", "majority"]
    assert any("[PRICE forty euros]" in line for line in printed) and printed[-1].endswith(": equal")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "two_specialists"])
def test_an_example_runs_as_it_stands(name, tmp_path, rows):
    environment = os.environ | {"XDG_CACHE_HOME": str(rows), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, EXAMPLES / f"{name}.py"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
