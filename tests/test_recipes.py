"""The recipes of recipes/ run as they stand on the embedded base and a few of its rows, and learn."""

import json
import math
from pathlib import Path

import pytest
import torch

from graft.base.base import Base
from graft.recipe import read
from graft.runs.run import run

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
STEPS = 4
# Every step sees all rows, so that its loss can be compared with that of the step before.
SMALL = (
    f"data.limit=40 data.eval=0.7 train.epochs={STEPS} train.max_steps={STEPS} train.batch_size=64 "
    f"train.micro_batch_size=4 train.warmup=0 train.eval_every={STEPS} train.log_every=1 "
    "train.sample_tokens=4 evaluate.limit=4 evaluate.max_new_tokens=4"
)
CLASSIFIERS = ("single_task", "tagging")  # their rows held out may have no class that no training row has


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def births(monkeypatch):
    """Return a list that fills with (adapter, its trained tensors at birth)."""
    attach = Base.attach
    seen = []

    def attached(base, name, method):
        adapter = attach(base, name, method)
        if base.has_values:  # no sketch of a plan
            seen.append((adapter, [p.detach().clone() for p in adapter.parameters()]))
        return adapter

    monkeypatch.setattr(Base, "attach", attached)
    return seen


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_and_learns(path, births, tmp_path):
    rows = ["data.eval=0.1"] if path.stem in CLASSIFIERS else []
    result = run(path, [*SMALL.split(), *rows, f"output={tmp_path}"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert result.steps == len(losses) == STEPS and all(map(math.isfinite, losses))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.97 * losses[0]
    (adapter, born), *others = births
    still = [p for p, old in zip(adapter.parameters(), born, strict=True) if torch.equal(p, old)]
    assert not others and not [p for p in still if p.ndim > 1]
    assert not still or adapter.in_place  # four steps are less than half a unit of a gain of 1 in bf16
    assert result.scores["after"] and all(map(math.isfinite, result.scores["after"].values()))
    assert (tmp_path / "report.html").exists()


def test_every_job_has_its_recipe():
    named = {path.stem: read(path) for path in RECIPES}
    wanted = "pretrain sft single_task tagging lora qlora qalora full mix dpo kto reward"
    assert set(named) == set(wanted.split())
    assert named["pretrain"].fresh and named["single_task"].stage == "classify"
    assert named["qalora"].quant == "int4" and named["qalora"].methods[0]["name"] == "qa_lora"
    assert named["qlora"].quant == "nf4" and named["full"].methods[0]["name"] == "full"
