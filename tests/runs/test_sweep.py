"""A sweep is a folder of ordinary runs: equal to the bit to each alone, continued by the same call."""

import json

import pytest
from tiny_folder import rows, write_model, write_rows

import graft
from graft.errors import UsageError
from graft.runs import chain
from graft.runs.grid import values_in
from graft.runs.run import run
from graft.runs.sweep import read_sweep
from graft.training.observer import Observer

FILES = ("adapter/adapter_model.safetensors", "metrics.jsonl", "finished.json", "identity.json")
GRID = {"method": ["lora", "ia3"], "train.seed": [0, 1]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", rows(16))
    return folder


def recipe(home, **changes):
    train = {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "save_every": 1}
    return {
        "model": str(home / "model"), "dtype": "fp32",
        "data": {"train": str(home / "rows.jsonl"), "eval": 0.25, "max_length": 64},
        "train": train, **changes,
    }  # fmt: skip


class Loads:
    """Counts how often a base is loaded."""

    def __init__(self, monkeypatch):
        self.count, load = 0, chain.load_base

        def counted(recipe):
            self.count += 1
            return load(recipe)

        monkeypatch.setattr(chain, "load_base", counted)


@pytest.fixture(scope="module")
def swept(home):
    with pytest.MonkeyPatch.context() as patch:
        loads = Loads(patch)
        result = graft.sweep(recipe(home), GRID, output=home / "swept")
    assert loads.count == 1
    return result


def test_every_run_equals_to_the_bit_one_that_is_alone(home, swept):
    assert list(swept.runs) == ["lora-seed0", "lora-seed1", "ia3-seed0", "ia3-seed1"] and not swept.failed
    for name, changes in {"lora-seed1": ["method=lora"], "ia3-seed1": ["method=ia3"]}.items():
        alone = run(recipe(home, output=str(home / "alone" / name)), [*changes, "train.seed=1"])
        for file in FILES:
            ours, theirs = swept.runs[name].folder / file, alone.folder / file
            assert ours.read_bytes() == theirs.read_bytes(), f"{name}: {file}"
        assert swept.runs[name].scores == alone.scores


def test_the_table_and_its_files_have_the_means_over_seeds(swept):
    assert [group.n for group in swept.table.groups] == [2, 2]
    for method, group in zip(GRID["method"], swept.table.groups, strict=True):
        found = [swept.runs[f"{method}-seed{seed}"].scores["after"]["perplexity"] for seed in (0, 1)]
        assert group.mean["perplexity"] == pytest.approx(sum(found) / 2)
        assert group.deviation["perplexity"] == pytest.approx(abs(found[0] - found[1]) / 2**0.5)
    facts = json.loads((swept.folder / "sweep.json").read_text())
    assert facts["grid"] == GRID and [run["run"] for run in facts["runs"]] == list(swept.runs)
    assert {one["state"] for one in facts["sweep"].values()} == {"finished"}
    assert len((swept.folder / "sweep.csv").read_text().splitlines()) == 1 + 4 + 2


class Cut(BaseException):
    """Stands for a power cut."""


class Heard(Observer):
    """Writes down which runs begin, and their steps; stops at a step of a run, if asked to."""

    def __init__(self, stop=None):
        self.stop, self.begun, self.steps = stop, [], []

    def stage(self, name, number, count, recipe):
        self.begun.append((name, number, count))

    def step(self, record):
        self.steps.append((self.begun[-1][0], record["step"]))
        if self.steps[-1] == self.stop:
            raise Cut


def test_a_stopped_sweep_goes_on_and_keeps_what_has_finished(home, swept):
    again, folder = Heard(), home / "stopped"
    with pytest.raises(Cut):
        graft.sweep(recipe(home), GRID, output=folder, observer=Heard(("lora-seed1", 2)))
    facts = json.loads((folder / "sweep.json").read_text())["sweep"]
    assert [one["state"] for one in facts.values()] == ["finished", "to do", "to do", "to do"]
    result = graft.sweep(recipe(home), GRID, output=folder, observer=again)
    assert [name for name, *_ in again.begun] == list(result.runs) and again.begun[-1] == ("ia3-seed1", 4, 4)
    assert again.steps[0] == ("lora-seed1", 2), "the first run is kept, the second goes on"
    assert [result.runs[name].trained for name in result.runs] == [False, True, True, True]
    for name in result.runs:
        ours = (folder / name / FILES[0]).read_bytes()
        assert ours == (swept.folder / name / FILES[0]).read_bytes()


def test_more_values_of_a_key_train_only_the_new_runs(home, swept):
    heard = Heard()
    grid = {"method": ["ia3"], "train.seed": [0, 1, 2]}
    result = graft.sweep(recipe(home), grid, output=swept.folder, observer=heard)
    assert [result.runs[name].trained for name in result.runs] == [False, False, True]
    assert {name for name, _ in heard.steps} == {"ia3-seed2"} and result.table.groups[0].n == 3


def test_a_run_that_fails_is_named_and_the_others_go_on(home):
    grid = {"data.train": [str(home / "none.jsonl"), str(home / "rows.jsonl")]}
    result = graft.sweep(recipe(home, method="ia3"), grid, output=home / "failing")
    assert repr(result) == f"SweepResult({home / 'failing'}: 1 runs, 1 failed)"
    assert all("none.jsonl" in why for why in result.failed.values())
    states = json.loads((home / "failing" / "sweep.json").read_text())["sweep"]
    assert sorted(one["state"] for one in states.values()) == ["failed", "finished"]


def test_runs_that_share_a_base_stand_together_and_another_is_loaded_anew(home, monkeypatch):
    loads, heard = Loads(monkeypatch), Heard()
    grid = {"train.seed": [0, 1], "quant": ["none", "nf4"]}
    recipe_ = recipe(home, method={"name": "lora", "r": 2})
    recipe_["train"]["max_steps"] = 1
    result = graft.sweep(recipe_, grid, output=home / "packed", observer=heard)
    assert loads.count == 2 and not result.failed
    order = ["seed0-quantnone", "seed1-quantnone", "seed0-quantnf4", "seed1-quantnf4"]
    assert [name for name, *_ in heard.begun] == order


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,1", [0, 1]),
        ("1e-4,3e-4", [1e-4, 3e-4]),
        ("lora", ["lora"]),
        ("[0.9, 0.99],[0.8, 0.9]", [[0.9, 0.99], [0.8, 0.9]]),
        ("{name: lora, r: 8},{name: lora, r: 16}", [{"name": "lora", "r": 8}, {"name": "lora", "r": 16}]),
        ("'a,b',c", ["a,b", "c"]),
        ('["x, y", z],w', [["x, y", "z"], "w"]),
        ("don't,do", ["don't", "do"]),
        ("null,0.1", [None, 0.1]),
    ],
)
def test_values_are_parts_between_commas_outside_of_brackets_and_quotes(text, values):
    assert values_in(text) == values


def test_what_cannot_be_swept_is_refused_before_anything_runs(home, tmp_path):
    cases = [
        ({}, "without values"),
        ({"train.seed": []}, "without values"),
        ({"method": "lora"}, "a list of values"),
        ({"output": ["a", "b"]}, "as a key to try"),
        ({"train.lerning_rate": [1, 2]}, "unknown key"),
        ({"train.lr": [1e-3, -1.0]}, "train.lr"),
        ({"train.seed": [1, 1]}, "would be called seed1"),
    ]
    for grid, why in cases:
        with pytest.raises(UsageError, match=why):
            graft.sweep(recipe(home), grid, output=tmp_path / "out")
    chain_ = {**recipe(home), "stages": ["sft", "reward"]}
    with pytest.raises(UsageError, match="several stages"):
        graft.sweep(chain_, GRID, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_runs_are_names_of_folders_and_all_different(home, tmp_path):
    grid = {"data.train": ["a/b.jsonl", "a_b.jsonl", "x" * 300], "train.betas": [[0.9, 0.99], [0.8, 0.99]]}
    names = list(read_sweep(recipe(home), grid, output=tmp_path).recipes)
    assert len(set(names)) == 6 and all("/" not in name and "=" not in name for name in names)
    assert max(map(len, names)) < 200
