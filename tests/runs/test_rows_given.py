"""Rows in memory: the same run as from a file, kept in its folder, resumed and refused as files are."""

import json
import shutil

import pytest
from tiny_folder import rows, write_model, write_rows

import graft
from graft.cli import call
from graft.data import load_rows
from graft.errors import CheckpointError
from graft.recipe import read
from graft.runs.chain import run
from graft.runs.run import train
from graft.runs.score import chosen_rows
from graft.stages.stage import stage_of
from graft.training.observer import Observer

STEPS = {"max_steps": 4, "batch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "save_every": 2}
WEIGHTS = "adapter/adapter_model.safetensors"


class Stop(Exception):
    """Stands for a power cut."""


class Stopped(Observer):
    def step(self, record):
        if record["step"] == 3:
            raise Stop


class Resumes(Observer):
    def __init__(self):
        self.resumes = []

    def resumed(self, step):
        self.resumes.append(step)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    return folder


def recipe(home, output, data, **changes):
    return {
        "model": str(home / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2},
        "data": {"max_length": 64, "eval": 0.25, **data},
        "train": STEPS,
        "output": str(output),
        **changes,
    }


@pytest.fixture(scope="module")
def of_file(home):
    return run(recipe(home, home / "of_file", {"train": str(home / "rows.jsonl")})).folder


def same(a, b):
    return all((a / file).read_bytes() == (b / file).read_bytes() for file in (WEIGHTS, "metrics.jsonl"))


def test_a_run_on_rows_in_memory_is_that_on_their_file(home, of_file, tmp_path):
    result = run(recipe(home, tmp_path / "run", {"train": (row for row in rows())}))
    assert same(result.folder, of_file)
    kept = result.folder / "rows" / "train.jsonl"
    assert [json.loads(line) for line in kept.read_text().splitlines()] == rows()
    assert read(result.folder).data.train == str(kept)
    notes = json.loads((result.folder / "data_report.json").read_text())["folders"]
    assert notes == [f"24 train rows were given in memory (a generator) and are kept in {kept}"]
    again = run(result.folder / "recipe.yaml", [f"output={tmp_path / 'again'}"])
    assert same(again.folder, of_file)


def test_graft_train_takes_rows_and_splits(home, tmp_path):
    held = [{"prompt": f"Night {i}. What? ", "completion": "A kite."} for i in range(3)]

    def trained(name, data):
        base = graft.load(home / "model", dtype="fp32")
        output = tmp_path / name
        return train(base, base.attach("x", graft.LoRA(r=2)), data, output=output, **STEPS).folder

    files = {"train": home / "rows.jsonl", "eval": str(write_rows(tmp_path / "held.jsonl", held))}
    usual = trained("files", {**files, "max_length": 64})
    given = trained("given", {"train": rows(), "eval": iter(held), "max_length": 64})
    assert same(usual, given)
    assert {path.name for path in (given / "rows").iterdir()} == {"train.jsonl", "eval.jsonl", "rows.json"}


def test_a_stopped_run_goes_on_with_the_same_rows_and_not_with_others(home, of_file, tmp_path):
    asked = recipe(home, tmp_path / "run", {"train": rows()})
    with pytest.raises(Stop):
        run(asked, observer=Stopped())
    kept = (tmp_path / "run/rows/train.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="other rows than these: its train rows are in"):
        run(recipe(home, tmp_path / "run", {"train": rows()[1:]}))
    assert (tmp_path / "run/rows/train.jsonl").read_bytes() == kept
    heard = Resumes()
    result = run(recipe(home, tmp_path / "run", {"train": iter(rows())}), observer=heard)
    assert heard.resumes == [2] and same(result.folder, of_file)


def test_rows_may_change_before_the_first_step(home, tmp_path):
    bad = [*rows(), {"prompt": "x", "completion": ""}]
    asked = recipe(home, tmp_path / "run", {"train": bad})
    with pytest.raises(graft.GraftError, match="train row 25: no answer"):
        run(asked)
    asked = recipe(home, tmp_path / "run", {"train": rows()}, train={**STEPS, "max_steps": 1})
    assert run(asked).steps == 1


def test_the_folder_continues_and_scores_the_run_also_where_it_was_moved(home, tmp_path, capsys):
    asked = recipe(home, tmp_path / "run", {"train": rows()}, train={**STEPS, "max_steps": 1})
    done = run(asked).folder
    shutil.move(done, tmp_path / "elsewhere" / "run")
    moved = tmp_path / "elsewhere" / "run"
    assert read(moved).data.train == str(moved / "rows" / "train.jsonl")
    assert call(["train", str(moved)]) == 0
    assert "nothing is left to train" in capsys.readouterr().err
    assert call(["eval", str(moved), "--limit", "2"]) == 0
    assert {row.source for row in chosen_rows(read(moved)).rows} <= {f"train row {i + 1}" for i in range(24)}


def test_a_chain_takes_rows_for_all_stages_and_for_one(home, tmp_path):
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "I do not know."} for row in rows()
    ]
    shared = {"model": str(home / "model"), "dtype": "fp32", "method": {"name": "lora", "r": 2}}

    def chain(output, first, second):
        return {
            **shared,
            "data": {"train": first, "eval": None, "max_length": 64},
            "train": {**STEPS, "max_steps": 1},
            "output": str(tmp_path / output),
            "stages": ["sft", {"stage": "dpo", "data": {"train": second}}],
        }

    run(chain("given", rows(), pairs))
    kept = {path.name for path in (tmp_path / "given/rows").iterdir()}
    assert kept == {"train.jsonl", "stage-2-train.jsonl", "rows.json"}
    chosen = read(tmp_path / "given" / "dpo")
    assert load_rows(chosen.data, stage_of(chosen).accepts()).train[3].source == "stage 2 train row 4"


@pytest.mark.parametrize(
    ("stage", "given"),
    [
        ("classify", [{"text": f"the cat {i}", "label": "ab"[i % 2]} for i in range(8)]),
        ("pretrain", [f"the cat sat {i} times on a mat" for i in range(8)]),
        ("preference", [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(8)]),
    ],
)
def test_every_stage_takes_them(stage, given, home, tmp_path):
    asked = recipe(home, tmp_path / "run", {"train": given, "eval": None}, stage=stage)
    asked["train"] = {**STEPS, "max_steps": 1}
    assert run(asked).steps == 1


def test_columns_of_prompts_reach_the_rewards(home, tmp_path):
    path = tmp_path / "pays.py"
    path.write_text(
        "def pay(completions, wanted, **columns):\n"
        "    assert all(w in range(4) for w in wanted), wanted\n"
        "    return [float(w) for w in wanted]\n"
    )
    given = [{"prompt": f"Day {i}. ", "wanted": i} for i in range(4)]
    stage = {"name": "grpo", "prompts": 2, "group": 2, "max_new_tokens": 4, "rewards": [f"{path}:pay"]}
    asked = recipe(home, tmp_path / "run", {"train": given, "eval": None}, stage=stage)
    asked["train"] = {**STEPS, "max_steps": 1, "batch_size": 2}
    assert run(asked).steps == 1
