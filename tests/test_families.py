"""Every family of models that transformers has: a few telling ones here, all of them by `make families`."""

import importlib.util
import sys
from pathlib import Path

import families
import family_checks
import pytest
import torch
from broken import ForgetsATensor, IgnoresSpans, LooksBack, Sound, WrongMerge
from transformers.models.auto import modeling_auto

from graft.core import registry

ROOT = Path(__file__).parents[1]
# family: the columns that are refused there, by name
SAMPLE: dict[str, set[str]] = {
    "llama": set(),
    "gpt2": set(),  # Conv1D, learned positions
    "bloom": {"prefix"},  # alibi, an attention of its own
    "mixtral": set(),  # experts
    "qwen3_next": {"bottleneck"},  # states that run along the row, and attention
    "bert": set(),
    "t5": set(),
    "bart": set(),  # a bias after the head
}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_family_is_right_or_refused(name, tmp_path):
    cells = family_checks.examine(name, tmp_path)
    bad = {column: cell for column, cell in cells.items() if cell.startswith(("WRONG", "CRASH", "cannot"))}
    assert not bad
    assert {column for column, cell in cells.items() if cell.startswith("refused")} == SAMPLE[name]


def test_every_text_model_of_transformers_is_a_family_or_says_why_not():
    tables = [
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    ]
    known = families.families()
    assert {f.model_type for f in known.values()} == {model_type for table in tables for model_type in table}
    assert len(families.names()) >= 85
    assert families.why_not_text("emu3") and not families.why_not_text("gemma4_text")


def test_a_family_is_the_same_at_every_call():
    one, two = families.build("gpt_neox"), families.build("gpt_neox")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not any((p == p.flatten()[0]).all() for p in one.parameters() if p.numel() > 1)


def test_a_tiny_model_keeps_a_layer_of_every_kind():
    assert set(families.small_config("gemma3_text").layer_types) == {"sliding_attention", "full_attention"}
    assert families.small_config("mixtral").num_local_experts == 4
    assert families.small_config("falcon_h1").lm_head_multiplier == 0.8


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """A tiny Llama; adapter files name methods of this test."""
    find = registry.find
    broken = {cls.__name__: cls for cls in (ForgetsATensor, IgnoresSpans, LooksBack, Sound, WrongMerge)}
    monkeypatch.setattr(registry, "find", lambda name: broken.get(name) or find(name))
    monkeypatch.setattr(registry, "names", lambda: list(broken))
    return family_checks.Subject("llama", tmp_path)


@pytest.mark.parametrize(
    ("method", "complaint"),
    [(IgnoresSpans, "mixed"), (WrongMerge, "merge"), (LooksBack, "text"), (ForgetsATensor, "reload")],
)
def test_a_broken_method_is_found(subject, method, complaint):
    with pytest.raises(family_checks.Wrong, match=complaint):
        family_checks.adapt(subject, method())


def test_a_wrong_base_is_found(subject, monkeypatch):
    base = subject.base
    with torch.no_grad():
        base.model.lm_head.weight.mul_(1.5)
    for column in ("load", "loss", "packed"):
        cell = family_checks.verdict(subject, family_checks.CHECKS[column])
        assert cell.startswith("WRONG"), column


def test_an_exception_is_a_cell(subject, monkeypatch):
    monkeypatch.setattr(subject.base, "unpackable", lambda length: 1 / 0)
    cell = family_checks.verdict(subject, family_checks.packing)
    assert cell == "CRASH ZeroDivisionError: division by zero"


def test_the_table_has_a_column_for_every_check(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks/common")
    spec = importlib.util.spec_from_file_location("family_columns", ROOT / "benchmarks/families/columns.py")
    columns = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(columns)
    assert columns.CELLS == family_checks.COLUMNS
    sys.modules.pop("results", None)
