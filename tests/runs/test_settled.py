"""`dtype: auto` in a run: settled once, kept in its recipe, and told before the first step."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_folder import write_model, write_rows

import graft
from graft.cli import call
from graft.errors import CheckpointError
from graft.models import dtype as chooser
from graft.models.dtype import Choice
from graft.planning import dtype as of_plan
from graft.planning import plan as planning
from graft.recipe import read
from graft.runs import build
from graft.runs.identity import as_begun
from graft.runs.run import run
from graft.training.observer import Observer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settled")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    return folder


def faster(monkeypatch, dtype, *, free=True):
    """Let this machine be faster in this format."""
    choice = Choice(dtype, "products 9 GFLOP/s, the others 1 (measured on this machine)", free)
    for place in (chooser, of_plan, build):
        monkeypatch.setattr(place, "choose", lambda device_type: choice)


def recipe(home, output, steps=2, **more):
    return {
        "model": str(home / "model"),
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(home / "rows.jsonl"), "eval": None, "max_length": 64},
        "train": {"max_steps": steps, "batch_size": 4, "lr": 1e-2, "save_every": 1},
        "output": str(output),
        **more,
    }


class Told(Observer):
    def begin(self, facts):
        self.facts = facts


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [one["loss"] for one in map(json.loads, lines) if "loss" in one]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_settles_on_what_is_faster_and_its_recipe_says_which(home, tmp_path, monkeypatch, dtype):
    faster(monkeypatch, dtype)
    told = Told()
    run(recipe(home, tmp_path / "auto"), observer=told)
    assert read(tmp_path / "auto").dtype == told.facts["dtype"] == told.facts["stored"] == dtype
    run(recipe(home, tmp_path / "asked", dtype=dtype))
    assert losses(tmp_path / "auto") == losses(tmp_path / "asked")


def test_a_resumed_run_keeps_its_format_on_a_machine_that_would_choose_another(home, tmp_path, monkeypatch):
    faster(monkeypatch, "fp32")
    run(recipe(home, tmp_path / "whole", steps=2))

    class Stop(Observer):
        def saved(self, path):
            raise KeyboardInterrupt

    with pytest.raises(BaseException, match=""):
        run(recipe(home, tmp_path / "cut", steps=2), observer=Stop())
    assert not (tmp_path / "cut" / "finished.json").exists()
    faster(monkeypatch, "bf16")
    told = Told()
    run(recipe(home, tmp_path / "cut", steps=2), observer=told)
    assert told.facts["dtype"] == read(tmp_path / "cut").dtype == "fp32"
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    weights = [
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("cut", "whole")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_a_run_is_not_continued_in_another_format_that_is_asked_for(home, tmp_path, monkeypatch):
    faster(monkeypatch, "fp32")
    run(recipe(home, tmp_path / "run", steps=1))
    with pytest.raises(CheckpointError, match="dtype"):
        run(recipe(home, tmp_path / "run", steps=1, dtype="bf16"))


def test_a_recipe_that_somebody_put_into_the_runs_folder_may_say_auto(home, tmp_path, monkeypatch):
    faster(monkeypatch, "fp32")
    (tmp_path / "run").mkdir()
    own = read(recipe(home, tmp_path / "run", steps=1))
    (tmp_path / "run" / "recipe.yaml").write_text(own.yaml())
    run(tmp_path / "run")
    assert read(tmp_path / "run").dtype == "fp32"


def test_training_a_loaded_base_records_the_format_of_that_base(home, tmp_path):
    base = graft.load(home / "model", dtype="fp32")
    graft.train(
        base, base.attach("a", graft.LoRA(r=2)), home / "rows.jsonl", output=tmp_path / "run",
        max_steps=1, evaluate={"metrics": ["loss"]},
    )  # fmt: skip
    assert read(tmp_path / "run").dtype == "fp32"


@pytest.mark.parametrize("again", [True, False])
def test_a_run_that_may_not_fit_computes_activations_again_if_its_plan_does(
    home, tmp_path, monkeypatch, again
):
    monkeypatch.setattr(build, "surely_fits", lambda *_: False)
    found = replace(planned("fp32", {"fp32": 1}), dtype="fp32", checkpointing=again)
    monkeypatch.setattr(build, "plan", lambda recipe: found)
    monkeypatch.setattr(build, "plan_model", lambda *_, **__: found)
    run(recipe(home, tmp_path / "recipe", steps=1))
    base = graft.load(home / "model", dtype="fp32")
    rows = home / "rows.jsonl"
    graft.train(base, base.attach("a", graft.LoRA(r=2)), rows, output=tmp_path / "loaded", max_steps=1)
    for name in ("recipe", "loaded"):
        assert read(tmp_path / name).train.gradient_checkpointing is again


def test_an_adapter_trained_in_one_format_loads_onto_a_base_in_the_other(home, tmp_path, monkeypatch):
    faster(monkeypatch, "fp32")
    run(recipe(home, tmp_path / "run", steps=1))
    for dtype in ("bf16", "fp32"):
        base = graft.load(home / "model", dtype=dtype)
        adapter = base.load_adapter(tmp_path / "run" / "adapter", "a")
        assert {p.dtype for p in adapter.parameters()} == {torch.float32}


def test_a_recipe_without_a_run_stays_auto(home, tmp_path):
    given = read(recipe(home, tmp_path / "new"))
    assert given.dtype == as_begun(given).dtype == "auto"


def planned(dtype, peaks, available=1000):
    """A plan with this peak, in the one format or the other."""
    sizes = {"parameters": 1, "trained": 1, "sites": 1, "process": 0, "micro_batch": 1}
    return planning.Plan(
        "base", parts={}, peaks={"train": peaks[dtype]}, available=available, device="cpu", **sizes
    )


@pytest.mark.parametrize(
    ("peaks", "dtype"),
    [
        ({"fp32": 900, "bf16": 500}, "fp32"),
        ({"fp32": 1100, "bf16": 600}, "bf16"),
        ({"fp32": 3000, "bf16": 1500}, "bf16"),  # nothing fits: the smaller is nearer to it
        ({"fp32": 1100, "bf16": 1200}, "fp32"),
    ],
)
def test_bf16_is_taken_where_fp32_does_not_fit_and_the_plan_says_so(monkeypatch, peaks, dtype):
    faster(monkeypatch, "fp32")
    found = of_plan.settled("auto", lambda word: planned(word, peaks))
    assert found.dtype == dtype and found.peaks == {"train": peaks[dtype]}
    assert ("fp32 would take" in found.why) == (dtype == "bf16") and "products 9 GFLOP/s" in found.why


@pytest.mark.parametrize(("dtype", "free"), [("fp32", False), ("bf16", True), ("bf16", False)])
def test_one_plan_is_made_where_memory_changes_nothing(monkeypatch, dtype, free):
    faster(monkeypatch, dtype, free=free)
    asked = []
    found = of_plan.settled("auto", lambda word: asked.append(word) or planned(word, {dtype: 9999}))
    assert found.dtype == dtype and asked == [dtype]


def test_a_format_that_the_recipe_names_is_planned_whether_or_not_it_fits(monkeypatch):
    faster(monkeypatch, "bf16")
    found = of_plan.settled("fp32", lambda word: planned(word, {"fp32": 9999}))
    assert (found.dtype, found.why, found.fits) == ("fp32", "as the recipe says", False)


def test_a_run_that_is_too_large_in_fp32_is_settled_by_its_plan(home, tmp_path, monkeypatch):
    faster(monkeypatch, "fp32")
    given = read(recipe(home, tmp_path / "run"))
    config, found = planning.config_of(given), planning.plan(given)
    assert found.dtype == found.facts()["dtype"] == "fp32" and "dtype    fp32: products 9 GFLOP/s" in str(
        found
    )
    needed = sum(found.parts.values())
    for room, fits in ((needed, False), (10**12, True)):
        monkeypatch.setattr(of_plan, "memory", lambda room=room: (room, "cpu", 0))
        assert of_plan.surely_fits(given, config) is fits
    assert not of_plan.surely_fits(read(given, ["data.max_length=100000"]), config)
    monkeypatch.setattr(build, "plan", lambda recipe: planned("bf16", {"bf16": 1}))
    assert build.settled(given).dtype == "fp32"  # no plan is made
    monkeypatch.setattr(of_plan, "memory", lambda: (needed, "cpu", 0))
    monkeypatch.setattr(
        build, "plan", lambda recipe: of_plan.settled("bf16", lambda word: planned(word, {word: 1}))
    )
    assert build.settled(given).dtype == "bf16"


def test_the_first_lines_say_which_format_and_why(home, tmp_path, monkeypatch, capsys):
    faster(monkeypatch, "fp32")
    words = ["train", "--model", str(home / "model"), "--data", str(home / "rows.jsonl")]
    words += ["method.r=2", "train.max_steps=1", "data.eval=null", "--output", str(tmp_path / "run")]
    assert call(words) == 0
    first = capsys.readouterr().err.splitlines()
    assert "dtype   fp32: products 9 GFLOP/s, the others 1 (measured on this machine)" in first
    faster(monkeypatch, "bf16")
    assert call(words) == 0  # the run has ended: it is found as it is
    assert "dtype   fp32: as this run began" in capsys.readouterr().err
