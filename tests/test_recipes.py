"""The recipes of recipes/ run as they stand on the embedded base and a few of its rows, and learn."""

import json
import math
from pathlib import Path

import pytest
import torch

from graft.base.base import Base
from graft.recipe import read
from graft.recipe.chain import read_chain
from graft.runs.chain import run

FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
CHAINS = [path for path in FILES if read_chain(path)]
RECIPES = [path for path in FILES if path not in CHAINS]
STEPS = 4
# Every step sees all rows, so that its loss can be compared with that of the step before.
SMALL = (
    f"data.limit=40 data.eval=0.7 train.epochs={STEPS} train.max_steps={STEPS} train.batch_size=64 "
    f"train.micro_batch_size=4 train.warmup=0 train.eval_every={STEPS} train.log_every=1 "
    "train.sample_tokens=4 evaluate.limit=4 evaluate.max_new_tokens=4"
)
ONLINE = ("ppo", "grpo")
FOR_LARGE = ("guanaco",)  # its learning rate is that of large models
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


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem not in ONLINE], ids=lambda path: path.stem)
def test_a_recipe_runs_and_learns(path, births, tmp_path):
    rows = ["data.eval=0.1"] if path.stem in CLASSIFIERS else []
    rate = ["train.lr=2e-3"] if path.stem in FOR_LARGE else []
    result = run(path, [*SMALL.split(), *rows, *rate, f"output={tmp_path}"])
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


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem in ONLINE], ids=lambda path: path.stem)
def test_a_recipe_whose_answers_the_model_writes_moves_near_its_reference(path, tmp_path):
    words = "stage.prompts=4 stage.max_new_tokens=16 train.batch_size=4 train.micro_batch_size=2"
    result = run(path, [*SMALL.split(), *words.split(), f"output={tmp_path}"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.steps == STEPS and all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert lines[0]["ratio"] == pytest.approx(1, abs=0.01) and 0 <= lines[0]["reward_price_last_reward"] <= 1
    assert 0 < abs(result.scores["after"]["kl"]) < 20


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.stem)
def test_every_stage_of_a_chain_runs_and_learns(path, tmp_path):
    last = run(path, [*SMALL.split(), f"output={tmp_path}"])
    for result in (*last.earlier, last):
        lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert result.steps == len(losses) == STEPS and all(map(math.isfinite, losses)), result.folder
        assert "reward" in lines[0] or losses[-1] < 0.97 * losses[0], result.folder
        assert result.scores["after"] and all(map(math.isfinite, result.scores["after"].values()))


def test_every_job_has_its_recipe():
    named = {path.stem: read(path) for path in RECIPES}
    wanted = "pretrain sft single_task tagging lora qlora qalora full mix dpo kto reward ppo grpo guanaco"
    assert set(named) == set(wanted.split()) and [path.stem for path in CHAINS] == ["life"]
    assert named["pretrain"].fresh and named["single_task"].stage == "classify"
    assert named["qalora"].quant == "int4" and named["qalora"].methods[0]["name"] == "qa_lora"
    assert named["qlora"].quant == "nf4" and named["full"].methods[0]["name"] == "full"
