"""A method is one file: dropped into the package's path it is seen everywhere, with no other edit."""

import json
import sys

import pytest
import torch
from bases import BASES
from laws import LAWS
from tiny_folder import write_model, write_rows

import graft.methods
from graft.cli import call
from graft.core.cards import pages
from graft.core.registry import find, names
from graft.recipe import read

FILE = '''"""Doubt: a trained share of every feed-forward part's output is taken back.

    y - g * y        g (out,), zero at birth

Nobody 2026 (2601.00001).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from graft.core.file_layout import FileLayout
from graft.core.insert import Insert
from graft.core.method import Method, No


@dataclass(frozen=True)
class Doubt(Method):
    strength: float = 1.0  # factor of g

    kinds: ClassVar = ("mlp",)
    files: ClassVar = FileLayout("DOUBT")
    mergeable: ClassVar = No("it was not worked out")

    def build(self, site):
        return Share(site.out_features, self.strength)


class Share(Insert):
    def __init__(self, width, strength):
        super().__init__()
        self.g = nn.Parameter(torch.zeros(width))
        self.strength = strength

    def forward(self, x, y):
        return y - self.strength * self.g.to(y.dtype) * y
'''


@pytest.fixture
def doubt(tmp_path):
    (tmp_path / "more" / "methods").mkdir(parents=True)
    (tmp_path / "more" / "methods" / "doubt.py").write_text(FILE)
    graft.__path__.append(str(tmp_path / "more"))
    yield find("doubt")
    graft.__path__.pop()
    sys.modules.pop("graft.methods.doubt")
    vars(graft.methods).pop("doubt", None)
    vars(graft).pop("Doubt", None)


def test_it_is_listed_documented_and_counted(doubt, capsys):
    assert "doubt" in names() and graft.Doubt is doubt and "Doubt" in dir(graft)
    assert call(["methods", "--model", "seedling", "--json"]) == 0
    mine = next(one for one in json.loads(capsys.readouterr().out) if one["name"] == "doubt")
    assert mine["paper"] == "arXiv 2601.00001" and mine["trained"] == 4 * 192 and not mine["mergeable"]
    assert "factor of g" in pages()["doubt.md"] and "[doubt](doubt.md)" in pages()["README.md"]


@pytest.mark.parametrize("law", LAWS)
def test_it_is_held_to_every_law(doubt, law):
    reason = LAWS[law](BASES["fp32"], doubt())
    assert reason in (None, "it was not worked out")


def test_it_is_trained_saved_and_loaded_by_name(doubt, tmp_path):
    write_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl")
    recipe = {
        "model": str(tmp_path / "model"),
        "dtype": "fp32",
        "method": {"name": "doubt", "strength": 2.0},
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": None},
        "train": {"max_steps": 2, "batch_size": 4, "lr": 0.01},
        "output": str(tmp_path / "run"),
    }
    graft.run(read(recipe))
    base = graft.load(str(tmp_path / "model"), dtype="fp32")
    adapter = base.load_adapter(tmp_path / "run" / "adapter", "mine")
    assert adapter.methods[0] == doubt(strength=2.0)
    assert any(torch.count_nonzero(p) for p in adapter.parameters())
