"""The recipes of the folder recipes/ run as they stand, on the embedded base and data, for a few steps."""

from pathlib import Path

import pytest

from graft.recipe import read
from graft.runs.run import run

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
SMALL = (
    "data.limit=60 train.max_steps=2 train.batch_size=4 train.micro_batch_size=2 "
    "train.eval_every=2 evaluate.limit=4"
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(path, tmp_path):
    changes = [*SMALL.split(), f"output={tmp_path}", "train.sample_tokens=4", "evaluate.max_new_tokens=4"]
    result = run(path, changes)
    assert result.steps == 2 and result.scores["after"] and (tmp_path / "report.html").exists()


def test_every_job_has_its_recipe():
    named = {path.stem: read(path) for path in RECIPES}
    assert set(named) == {
        "pretrain",
        "sft",
        "single_task",
        "tagging",
        "lora",
        "qlora",
        "qalora",
        "full",
        "mix",
    }
    assert named["pretrain"].fresh and named["single_task"].stage == "classify"
    assert named["qalora"].quant == "int4" and named["qalora"].methods[0]["name"] == "qa_lora"
    assert named["qlora"].quant == "nf4" and named["full"].methods[0]["name"] == "full"
