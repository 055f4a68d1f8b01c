"""Chains: one base for all stages, each equal to a run of its own; stopped anywhere, they end the same."""

import json
import shutil
import signal

import pytest
import yaml
from killed_run import finish
from tiny_folder import ANIMALS, TOYS, rows, write_model, write_rows

import graft
from graft.cli import call
from graft.errors import CheckpointError, UsageError
from graft.planning import plan as planning
from graft.recipe.chain import read_chain
from graft.runs import chain as chains
from graft.runs.open import open_model
from graft.runs.run import run as run_one
from graft.training.observer import Observer

NAMES = ("sft", "reward", "dpo")
FILES = (
    "adapter/adapter_model.safetensors",
    "metrics.jsonl",
    "finished.json",
    "identity.json",
    "recipe.yaml",
)


class Stop(Exception):
    """Stands for a power cut."""


class Heard(Observer):
    """Writes down which stages begin, and where they go on; stops in a stage at a step, if asked to."""

    def __init__(self, stop=None):
        self.stop, self.stages, self.resumes, self.notes = stop, [], [], []

    def stage(self, name, number, count, recipe):
        self.stages.append((name, number, count))

    def resumed(self, step):
        self.resumes.append((self.stages[-1][0], step))

    def note(self, text):
        self.notes.append(text)

    def step(self, record):
        if (self.stages[-1][0], record["step"]) == self.stop:
            raise Stop


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, rows to answer and pairs of answers."""
    folder = tmp_path_factory.mktemp("chain")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", rows(12))
    pairs = [
        {
            "prompt": f"Day {i}. What does the {ANIMALS[i % 4]} want? ",
            "chosen": f"The {ANIMALS[i % 4]} wants a {TOYS[i % 3]}.",
            "rejected": "No.",
        }
        for i in range(12)
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    return folder


def recipe(home, output):
    pairs = {"train": str(home / "pairs.jsonl"), "eval": 0.25}
    return {
        "model": str(home / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2, "lora_dropout": 0.1},
        "data": {"max_length": 64},
        "train": {"max_steps": 3, "batch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "save_every": 1},
        "stages": [
            {"stage": "sft", "data": {"train": str(home / "rows.jsonl"), "eval": 0.25}},
            {"stage": "reward", "data": pairs},
            {"stage": "dpo", "data": pairs, "train": {"lr": 3e-3}},
        ],
        "output": str(output),
    }


@pytest.fixture(scope="module")
def done(home):
    """The finished chain, what was heard of it, and how many bases were loaded."""
    loaded = []
    with pytest.MonkeyPatch.context() as patch:
        load = chains.load_base
        patch.setattr(chains, "load_base", lambda recipe: loaded.append(recipe.output) or load(recipe))
        heard = Heard()
        result = graft.run(recipe(home, home / "done"), observer=heard)
    return result, heard, loaded


def files_of(folder):
    """The files of all stages that must not depend on how they came about, but for where they lie."""
    return {
        f"{name}/{file}": (folder / name / file).read_bytes().replace(str(folder).encode(), b"HOME")
        for name in NAMES
        for file in FILES
    }


def test_a_chain_hands_adapters_on_and_loads_one_base(done, home):
    result, heard, loaded = done
    assert heard.stages == [("sft", 1, 3), ("reward", 2, 3), ("dpo", 3, 3)]
    assert [one.folder.name for one in (*result.earlier, result)] == list(NAMES)
    assert all(one.steps == 3 and one.trained and one.scores["after"] for one in (*result.earlier, result))
    assert loaded == [str(home / "done" / "sft")]
    assert "stage dpo goes on from the adapter of stage sft" in heard.notes
    kept = json.loads((home / "done" / "dpo" / "identity.json").read_text())
    assert len(kept["fingerprint of adapter"]) == 64
    start = home / "done" / "dpo" / "reference"
    assert start.exists()  # the reference is the adapter of sft, not the bare model


def test_separate_runs_are_equal_to_the_bit(done, home):
    for name, one in read_chain(recipe(home, home / "apart")).recipes.items():
        assert run_one(one).folder.name == name
    assert files_of(home / "apart") == files_of(home / "done")


@pytest.mark.parametrize("stop", [("sft", 2), ("reward", 3), ("dpo", 1)], ids=str)
def test_a_chain_that_is_stopped_goes_on_and_ends_the_same(done, home, stop, tmp_path):
    settings = recipe(home, tmp_path)
    with pytest.raises(Stop):
        graft.run(settings, observer=Heard(stop))
    heard = Heard()
    result = graft.run(settings, observer=heard)
    stage, step = stop
    assert heard.resumes == ([(stage, step - 1)] if step > 1 else [])
    finished = NAMES[: NAMES.index(stage)]
    assert [one.trained for one in (*result.earlier, result)] == [name not in finished for name in NAMES]
    for name in finished:
        assert f"nothing is left to train: the run in {tmp_path / name} has ended" in heard.notes
    assert files_of(tmp_path) == files_of(home / "done")


def test_a_chain_that_is_stopped_between_stages_goes_on_and_ends_the_same(done, home, tmp_path):
    settings = recipe(home, tmp_path)
    next(steps := chains.stages(read_chain(settings)))
    steps.close()
    assert not (tmp_path / "reward").exists()
    assert graft.run(tmp_path).trained  # its folder is enough
    assert files_of(tmp_path) == files_of(home / "done")
    assert not graft.run(settings).trained


def test_a_chain_that_is_killed_again_and_again_ends_the_same(done, home, tmp_path):
    settings = recipe(home, tmp_path)
    for forward in (6, 9):
        assert finish(settings, forward) == -signal.SIGKILL
    assert finish(settings) == 0
    assert files_of(tmp_path) == files_of(home / "done")


def test_what_depends_on_a_stage_that_is_trained_anew_is_refused(done, home, tmp_path):
    shutil.copytree(home / "done", tmp_path / "chain")
    settings = recipe(home, tmp_path / "chain")
    shutil.rmtree(tmp_path / "chain" / "sft")
    kept = (tmp_path / "chain" / "reward" / "recipe.yaml").read_bytes()
    settings["stages"][0]["train"] = {"seed": 7}
    with pytest.raises(
        CheckpointError, match=r"reward belongs to a run with different .*fingerprint of adapter"
    ):
        graft.run(settings)
    assert (tmp_path / "chain" / "reward" / "recipe.yaml").read_bytes() == kept
    for name in ("reward", "dpo"):
        shutil.rmtree(tmp_path / "chain" / name)
    assert graft.run(settings).trained


def test_a_stage_with_other_settings_is_refused_before_anything_is_written(done, home):
    settings = recipe(home, home / "done")
    settings["stages"][2]["train"] = {"lr": 1e-3}
    before = (home / "done" / "recipe.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=r"dpo belongs to a run with different settings \(train\.lr"):
        graft.run(settings)
    assert (home / "done" / "recipe.yaml").read_bytes() == before


def test_a_finished_chain_looks_at_the_rows_of_each_stage(done, home, tmp_path):
    shutil.copytree(home / "done", tmp_path / "chain")
    for name in ("rows.jsonl", "pairs.jsonl"):
        shutil.copy(home / name, tmp_path / name)
    settings = recipe(home, tmp_path / "chain")
    for stage, name in zip(settings["stages"], ("rows", "pairs", "pairs"), strict=True):
        stage["data"]["train"] = str(tmp_path / f"{name}.jsonl")
    assert not graft.run(settings).trained  # the rows lie elsewhere, and are the same
    pairs = (tmp_path / "pairs.jsonl").read_text()
    (tmp_path / "pairs.jsonl").write_text(pairs.replace('"No."', '"Yes."', 1))
    with pytest.raises(CheckpointError, match=r"reward belongs to a run with different data \(fingerprint"):
        graft.run(settings)


def test_a_moved_chain_is_still_the_same(done, home, tmp_path):
    shutil.copytree(home / "done", tmp_path / "moved")
    assert not graft.run(tmp_path / "moved").trained


def test_a_chain_and_a_run_do_not_share_a_folder(done, home, tmp_path):
    one = read_chain(recipe(home, tmp_path)).recipes["sft"].model_copy(update={"output": str(tmp_path)})
    run_one(one)
    with pytest.raises(CheckpointError, match="holds a run of one stage"):
        graft.run(recipe(home, tmp_path))
    with pytest.raises(UsageError, match="has several stages"):
        run_one(one.model_copy(update={"output": str(home / "done")}))


def test_another_way_to_store_the_base_loads_it_again(home, tmp_path):
    settings = recipe(home, tmp_path)
    settings["stages"] = [settings["stages"][0], {**settings["stages"][2], "adapter": None, "quant": "nf4"}]
    bases = chains.Bases()
    first, second = read_chain(settings).recipes.values()
    base = bases(first)
    base.attach("x", graft.LoRA())
    base.tokenizer.chat_template = "changed"
    bases.release()
    assert bases(first) is base and not base.adapters and base.tokenizer.chat_template != "changed"
    assert bases(second) is not base and bases(second).quant == "nf4"


def test_the_folder_of_a_chain_is_its_last_finished_stage(done, home, tmp_path):
    with pytest.warns(graft.Notice, match="has several stages: dpo is the last that has finished"):
        opened = open_model(str(home / "done"))
    assert opened.folder == home / "done" / "dpo" and opened.adapter == "dpo"


def test_a_plan_of_a_chain_is_that_of_its_largest_stage(home, tmp_path):
    settings = recipe(home, tmp_path)
    settings["stages"] = settings["stages"][:2]
    settings["stages"][0]["train"] = {"micro_batch_size": 4}
    found = graft.plan(settings)
    assert found.parts == graft.plan(read_chain(settings).before("sft")).parts
    assert found.needs == found.peak - found.process


def test_the_command_line_trains_plans_shows_and_opens_a_chain(home, tmp_path, capsys, monkeypatch):
    plans, plan = {}, planning.plan  # a plan takes a second

    def planned(recipe):
        return plans.get(recipe.stage_name) or plans.setdefault(recipe.stage_name, plan(recipe))

    monkeypatch.setattr(planning, "plan", planned)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "life.yaml").write_text(yaml.safe_dump(recipe(home, "out") | {"dtype": "auto"}))
    words = ["train", "life.yaml", "train.max_steps=1", "dpo.train.lr=1e-3"]
    assert call([*words, "--dry-run"]) == 0
    shown = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [one["output"] for one in shown] == ["out/sft", "out/reward", "out/dpo"]
    assert [one["train"]["lr"] for one in shown] == [0.01, 0.01, 0.001]
    assert call(["plan", "life.yaml", "--json"]) == 0
    assert [one["stage"] for one in json.loads(capsys.readouterr().out)] == list(NAMES)
    assert call(["plan", "life.yaml"]) == 0
    assert "\nmost     stage " in capsys.readouterr().out
    assert call([*words, "--json"]) == 0
    told = capsys.readouterr()
    assert [one["steps"] for one in json.loads(told.out)] == [1, 1, 1]
    assert "stage 2 of 3   reward\n" in told.err and told.err.count("wrote   out/") == 3
    assert told.err.splitlines()[-1].startswith("next    graft chat out ")
    assert call(["train", "out"]) == 0 and capsys.readouterr().err.count("kept    out/") == 3
    assert call(["eval", "out", "--limit", "2"]) == 0
    assert "note    out has several stages: dpo is the last that has finished" in capsys.readouterr().err
    assert call([*words, "dpo.train.lrr=1"]) == 2
    assert "dpo.train.lrr" in capsys.readouterr().err
