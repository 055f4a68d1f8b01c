"""Trackers: what they receive is what metrics.jsonl holds, each step once, also after a kill.

TensorBoard's files are read back by TensorBoard. The others run for real where they are installed, against a
folder and without a network; else the calls that they would receive are recorded.
"""

import importlib.machinery
import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from short_run import short_run, write_home

import graft
from graft.errors import MachineError, UsageError
from graft.recipe import read
from graft.recipe.trackers import TRACKERS
from graft.runs.tracker import settings_of
from graft.runs.trackers import require_trackers

SCALARS = ("loss", "lr", "grad_norm", "tokens")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("trackers"))


class Killed:
    """Ends the process after a step, as far as a test can: nothing is saved after it."""

    def step(self, record):
        if record["step"] == 3:
            raise MemoryError("killed")


def killed_and_resumed(home, output, tracker):
    """Return the result of a run that was killed after step 3, whose last checkpoint was step 2."""
    settings = short_run(home, output, report_to=tracker)
    with pytest.raises(MachineError):
        graft.run(settings, observer=Killed())
    return graft.run(settings)


def recorded(result, key):
    """Return {step: value} of a number in metrics.jsonl."""
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


# TensorBoard


def read_back(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def test_tensorboard_reads_what_the_run_recorded_each_step_once_after_a_kill(home, tmp_path):
    pytest.importorskip("tensorboard")
    result = killed_and_resumed(home, tmp_path / "run", ["tensorboard"])
    found = read_back(result.folder / "tensorboard")
    for tag, key in [(f"train/{key}", key) for key in SCALARS] + [("eval/loss", "eval_loss")]:
        events = found.Scalars(tag)
        wanted = recorded(result, key)
        assert [event.step for event in events] == list(wanted), tag
        assert [event.value for event in events] == pytest.approx(list(wanted.values()), rel=1e-6), tag
    assert {"train/tokens_per_s", "train/memory_mb"} <= set(found.Tags()["scalars"])
    (score,) = found.Scalars("score/after/perplexity")
    assert score.step == 4 and score.value == pytest.approx(result.scores["after"]["perplexity"], rel=1e-6)
    texts = found.Tags()["tensors"]
    assert "recipe/text_summary" in texts and "samples/0/text_summary" in texts
    assert [event.step for event in found.Tensors("samples/0/text_summary")] == [2, 4]


def test_tensorboard_has_the_recipe_as_hyper_parameters(home, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.plugins.hparams import plugin_data_pb2

    result = graft.run(short_run(home, tmp_path / "run", report_to=["tensorboard"]))
    metadata = read_back(result.folder / "tensorboard").summary_metadata["_hparams_/session_start_info"]
    data = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    told = data.session_start_info.hparams
    assert told["train.lr"].number_value == 1e-2 and told["method.r"].number_value == 2
    assert told["method.name"].string_value == "lora"


def test_a_run_that_goes_on_may_name_another_tracker(home, tmp_path):
    pytest.importorskip("tensorboard")
    settings = short_run(home, tmp_path / "run")
    with pytest.raises(MachineError):
        graft.run(settings, observer=Killed())
    settings["train"]["report_to"] = "tensorboard"
    result = graft.run(settings)
    events = read_back(result.folder / "tensorboard").Scalars("train/loss")
    assert [event.step for event in events] == [3, 4]


# The others, for real


def test_mlflow_has_every_step_once_after_a_kill(home, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    result = killed_and_resumed(home, tmp_path / "run", ["mlflow"])
    client = mlflow.MlflowClient()
    (one,) = client.search_runs([client.get_experiment_by_name("graft").experiment_id])
    for name, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        history = client.get_metric_history(one.info.run_id, name)
        assert {metric.step: metric.value for metric in history} == pytest.approx(recorded(result, key))
        assert len(history) == len(recorded(result, key))
    assert one.info.status == "FINISHED" and one.data.params["train.lr"] == "0.01"
    assert one.data.metrics["score/after/perplexity"] == pytest.approx(result.scores["after"]["perplexity"])


def test_trackio_has_every_step_once_after_a_kill(home, tmp_path, monkeypatch):
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    result = killed_and_resumed(home, tmp_path / "run", ["trackio"])
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((result.folder / "trackers.json").read_text())["trackio"]
    rows = [row for row in SQLiteStorage.get_logs("graft", name) if "train/loss" in row]
    assert {row["step"]: row["train/loss"] for row in rows} == pytest.approx(recorded(result, "loss"))
    assert len(rows) == 4


def test_wandb_takes_a_run_without_a_network(home, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = killed_and_resumed(home, tmp_path / "run", ["wandb"])
    names = [folder.name for folder in (result.folder / "wandb").glob("offline-run-*")]
    kept = json.loads((result.folder / "trackers.json").read_text())["wandb"]
    assert len(names) == 2 and all(name.endswith(kept) for name in names), "two starts of one run"


# The others, recorded


class Calls(list):
    """Calls that a stand-in has received: (name, arguments, keywords)."""

    def named(self, name):
        return [(arguments, keywords) for called, arguments, keywords in self if called == name]

    def recorder(self, name, answer=None):
        def call(*arguments, **keywords):
            self.append((name, arguments, keywords))
            return answer

        return call


@pytest.fixture
def stand_in(monkeypatch):
    """Return a function that puts a module with these members in the place of a library."""

    def place(name, **members):
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)

    return place


def test_wandb_receives_steps_samples_scores_and_goes_on_by_its_id(home, tmp_path, stand_in):
    calls, log = Calls(), []

    def init(**keywords):
        calls.append(("init", (), keywords))
        return SimpleNamespace(
            id=keywords["id"], step=max((step for step, _ in log), default=-1) + 1,
            log=lambda values, step: log.append((step, values)),
            summary=SimpleNamespace(update=calls.recorder("summary")), finish=calls.recorder("finish"),
        )  # fmt: skip

    stand_in("wandb", init=init, Table=lambda **keywords: keywords)
    result = killed_and_resumed(home, tmp_path / "run", ["wandb"])
    first, second = (keywords for _, keywords in calls.named("init"))
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert first["config"]["train.lr"] == 1e-2 and first["name"] == "run"
    losses = [(step, values["train/loss"]) for step, values in log if "train/loss" in values]
    assert losses == list(recorded(result, "loss").items())
    samples = [values["samples"]["data"] for _, values in log if "samples" in values]
    assert [rows[0][0] for rows in samples] == [2, 4] and samples[0][0][1].startswith("Day 1.")
    assert calls.named("summary")[0][0][0]["score/after/perplexity"] == result.scores["after"]["perplexity"]
    assert [keywords["exit_code"] for _, keywords in calls.named("finish")] == [1, 0]


def test_a_tracker_that_fails_on_the_way_is_left_out_with_a_notice(home, tmp_path, stand_in):
    def fail(values, step):
        raise ConnectionError("no route to host")

    one = SimpleNamespace(id="x", step=0, log=fail, finish=lambda **_: None, summary={})
    stand_in("wandb", init=lambda **_: one)
    with pytest.warns(graft.Notice, match="wandb does not receive the run any longer: no route to host"):
        result = graft.run(short_run(home, tmp_path / "run", report_to=["wandb"]))
    assert result.steps == 4


def test_a_tracker_that_does_not_begin_stops_the_run_before_its_first_step(home, tmp_path, stand_in):
    def init(**_):
        raise RuntimeError("api_key not configured\nmore")

    stand_in("wandb", init=init)
    with pytest.raises(UsageError, match="wandb did not begin: api_key not configured"):
        graft.run(short_run(home, tmp_path / "run", report_to=["wandb"]))
    assert not (tmp_path / "run" / "checkpoints").exists()


# Names


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(TRACKERS, "mlflow", "no_such_package")
    with pytest.raises(UsageError, match=r"pip install 'graftlm\[mlflow\]'"):
        require_trackers(read({"train": {"report_to": ["mlflow"]}}))


def test_an_unknown_tracker_has_the_nearest_and_none_is_none():
    with pytest.raises(UsageError, match="nearest: tensorboard"):
        read({"train": {"report_to": "tensorbord"}})
    assert read({"report_to": "none"}).train.report_to == []
    assert read({}, ["train.report_to=wandb"]).train.report_to == ["wandb"]


def test_settings_are_flat_and_short():
    told = settings_of(read({"method": {"name": "lora", "r": 4}, "train": {"samples": ["a" * 900]}}))
    assert told["method.r"] == 4 and told["train.dropout"] is False and len(told["train.samples"]) == 500
