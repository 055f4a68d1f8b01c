"""What a folder of runs says of them, without a model: states, steps, scores; damage is named."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from tiny_folder import rows, write_model, write_rows

from graft import storage
from graft.errors import UsageError
from graft.runs.records import read_run, record_of, runs_below, several
from graft.runs.run import run
from graft.training.observer import Observer


class Cut(Exception):
    """Stands for a power cut."""


class Stop(Observer):
    def step(self, record):
        if record["step"] == 3:
            raise Cut


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A finished run, one that stopped, and a folder that is none."""
    folder = tmp_path_factory.mktemp("records")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", rows(16))
    recipe = {
        "model": str(folder / "model"), "dtype": "fp32", "method": {"name": "lora", "r": 2},
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25, "max_length": 64},
        "train": {"epochs": 2, "batch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "save_every": 1},
    }  # fmt: skip
    run({**recipe, "output": str(folder / "runs/done")})
    with pytest.raises(Cut):
        run({**recipe, "output": str(folder / "runs/deep/cut"), "quant": "nf4"}, observer=Stop())
    (folder / "runs/notes").mkdir()
    return folder


@pytest.fixture
def copy(home, tmp_path):
    shutil.copytree(home / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def test_runs_are_found_however_deep_and_what_is_none_is_passed_over(home):
    found = [str(path.relative_to(home)) for path in runs_below(home)]
    assert found == ["runs/deep/cut", "runs/done"]
    assert several(str(home / "runs")) == [str(home / name) for name in found]
    for one in ("runs/done", "model", "rows.jsonl"):
        assert several(str(home / one)) == [str(home / one)]
    with pytest.raises(UsageError, match="there is no folder"):
        list(runs_below(home / "nowhere"))


def test_a_finished_run_is_recorded_as_its_files_say(home):
    record = read_run(home / "runs/done")
    finished = storage.read_record(home / "runs/done/finished.json")
    columns = storage.read_record(home / "runs/done/evaluation.json")["columns"]
    assert (record.state, record.step, record.of, record.loss) == ("finished", 6, 6, finished["loss"])
    assert dict(record.before) == columns["before"] and dict(record.after) == columns["after"]
    assert record.main == "perplexity" and record.scored == 4 and not record.damage and record.holder is None
    assert record.settings["method"] == "lora" and record.settings["method.r"] == 2
    assert record.settings["train.seed"] == 0 and record.settings["model"] == str(home / "model")
    used = subprocess.run(
        ["du", "-sb", "--apparent-size", home / "runs/done"], capture_output=True, text=True
    )
    assert 0 < record.size_bytes <= int(used.stdout.split()[0])


def test_a_stopped_run_tells_its_last_step_and_how_many_there_will_be(home):
    record = read_run(home / "runs/deep/cut")
    assert (record.state, record.step, record.of) == ("stopped", 3, 6) and record.after == {}
    steps = [json.loads(line) for line in (home / "runs/deep/cut/metrics.jsonl").read_text().splitlines()]
    assert record.loss == [line["loss"] for line in steps if "loss" in line][-1]


def test_a_run_is_running_while_a_living_process_holds_it(copy):
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "started": "now"}
    (copy / "done/.lock").write_text(json.dumps(facts))
    assert read_run(copy / "done").state == "running"
    assert str(os.getpid()) in read_run(copy / "done").holder
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (copy / "done/.lock").write_text(json.dumps({**facts, "pid": gone.pid}))
    assert read_run(copy / "done").state == "finished", "a killed process leaves its name in the file"
    with storage.locked(copy / "done"):
        assert read_run(copy / "done").state == "running"
    assert read_run(copy / "done").state == "finished"


@pytest.mark.parametrize("name", ["recipe.yaml", "identity.json", "finished.json", "evaluation.json"])
@pytest.mark.parametrize("data", [b"", b"\0" * 50, b"[1]", b'{"sha256": "0", "steps": 1}', None])
def test_damaged_files_are_named_and_the_rest_is_read(name, data, copy):
    (copy / "done" / name).unlink()
    if data is None:
        (copy / "done" / name).mkdir()
    else:
        (copy / "done" / name).write_bytes(data)
    record = record_of(copy / "done")
    assert record.state == "damaged" and any(name in text for text in record.damage)
    assert record.step == 6 and (record.after != {}) == (name != "evaluation.json")


def test_bad_lines_of_metrics_are_passed_over(copy):
    with (copy / "deep/cut/metrics.jsonl").open("ab") as file:
        file.write(b'[]\n{"step": "x", "loss": []}\n\xff\n{"step": 9')
    assert read_run(copy / "deep/cut").step == 3


def test_a_folder_that_is_no_run_has_no_record(home):
    assert record_of(home / "model") is None and record_of(home / "nowhere") is None
