"""Runs that a signal stops in every phase: they say what is saved, and end with the bytes of a calm run."""

import asking
import pytest
import stopped
import yaml
from stopped import ONLINE, RUN, command, moments, outcome, rubbish
from tiny_folder import write_model, write_rows

EXIT = {15: 143, 2: 130}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stops")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    settings = {
        "model": str(folder / "model"), "dtype": "fp32",
        "method": {"name": "lora", "r": 4, "lora_dropout": 0.1},
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25, "max_length": 48},
        "train": {
            "max_steps": 8, "batch_size": 4, "micro_batch_size": 2, "save_every": 3, "eval_every": 2,
            "neftune_alpha": 2.0, "samples": ["Day 1."], "sample_tokens": 2,
        },
        "evaluate": {"batch_size": 2},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    asked = asking.write_home(folder / "asked")
    recipe = asking.recipe(asked, folder / "unused", {"name": "ppo", "epochs": 2})
    (folder / "online.yaml").write_text(yaml.safe_dump(recipe))
    chain = {**settings, "stages": [{"name": "one", "stage": "sft"}, {"name": "two", "stage": "sft"}]}
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    return folder


def calm(home, recipe):
    """Return the outcome of a run that nothing stops, which is done once for all tests."""
    if not (home / f"calm-{recipe}").exists():
        end = command(["train", str(home / recipe), f"output={home}/calm-{recipe}"], None, home / "calm")
        assert end.code == 0, end.said
    return home / f"calm-{recipe}"


def stop_in_turn(home, recipe, phases, run):
    """Start a run once for each phase and stop it there; then let it end. Return what each start said."""
    words, said = ["train", str(home / recipe), f"output={run}"], {}
    for number, (phase, place) in enumerate(phases.items()):
        moment = moments(place, number, most_s=0.02)
        end = command(words, moment, run.with_name("said"))
        assert end.code == EXIT[moment.number], (phase, moment, end)
        assert not rubbish(run), phase
        said[phase] = end.said
    end = command(words, None, run.with_name("said"))
    assert end.code == 0, end.said
    return said


def test_a_run_stopped_in_every_phase_ends_with_the_bytes_of_an_undisturbed_one(home, tmp_path):
    said = stop_in_turn(home, "recipe.yaml", RUN, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(calm(home, "recipe.yaml"))
    assert all("graft: stopped by SIG" in text and "error" not in text for text in said.values())
    assert "no step is lost" in said["rows"] and "adapter is saved" in said["scores"]
    for phase in ("update", "evaluation", "samples"):
        assert "is saved" in said[phase] and "it continues from step" in said[phase]


def test_a_run_that_writes_its_answers_is_stopped_in_all_of_that_and_ends_with_the_same_bytes(home, tmp_path):
    stop_in_turn(home, "online.yaml", ONLINE | {"step": RUN["step"]}, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(calm(home, "online.yaml"))


def test_a_chain_stopped_in_its_second_stage_ends_with_the_bytes_of_an_undisturbed_one(home, tmp_path):
    words = ["train", str(home / "chain.yaml"), f"output={tmp_path}/run"]
    end = command(words, stopped.Moment("graft.training.loop:Trainer._step", 11), tmp_path / "said")
    assert end.code == 143 and "step 2 is saved" in end.said
    assert command(words, None, tmp_path / "said").code == 0
    for stage in ("one", "two"):
        assert outcome(tmp_path / "run" / stage) == outcome(calm(home, "chain.yaml") / stage)


def test_an_evaluation_that_was_stopped_is_not_in_the_log_by_half_and_is_made_again(home, tmp_path):
    words = ["train", str(home / "recipe.yaml"), f"output={tmp_path}/run"]
    place = "graft.runs.open:Opened.ask"  # the samples that follow the second evaluation
    assert command(words, stopped.Moment(place, 2), tmp_path / "said").code == 143
    log, calm_log = (run / "metrics.jsonl" for run in (tmp_path / "run", calm(home, "recipe.yaml")))
    assert log.read_text().count("eval_loss") == 2
    assert (tmp_path / "run" / "samples.md").read_text().count("## step") == 1
    assert calm_log.read_bytes().startswith(log.read_bytes())
    assert command(words, None, tmp_path / "said").code == 0
    assert outcome(tmp_path / "run") == outcome(calm(home, "recipe.yaml"))
