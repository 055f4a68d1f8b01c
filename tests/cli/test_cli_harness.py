"""graft eval --tasks: public benchmarks before and after, as a table and as JSON; misuse in lines."""

import json

import pytest

pytest.importorskip("lm_eval", reason="an extra")

from harness_tasks import write_tasks
from tiny_folder import write_model

import graft
from graft.cli import call
from models import randomise


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, an adapter of it, and tasks."""
    folder = tmp_path_factory.mktemp("benchmarks")
    base = graft.load(str(write_model(folder / "model")), dtype="fp32")
    adapter = base.attach("mine", graft.LoRA(r=2))
    randomise(adapter, scale=1.0)
    adapter.save(folder / "mine")
    write_tasks(folder / "tasks")
    return folder


def words(home, *more, tasks="toys"):
    """The words of `graft eval` with these tasks on the model and its adapter."""
    where = ["--include-path", str(home / "tasks"), "--tasks", tasks]
    return ["eval", str(home / "model"), "--adapter", str(home / "mine"), *where, *more]


def test_benchmarks_stand_before_and_after_with_their_errors(home, capsys):
    assert call(words(home, "--limit", "8", "--num-fewshot", "1", "--json")) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert [(one["task"], one["metric"]) for one in scores] == [
        ("toys_choice", "acc"),
        ("toys_choice", "acc_norm"),
        ("toys_writing", "exact_match"),
    ]
    for one in scores:
        assert one["rows"] == 8 and one["num_fewshot"] == 1 and one["filter"] == "none"
        assert one["change"]["value"] == pytest.approx(one["after"]["value"] - one["before"]["value"])
    assert all(one[column]["stderr"] > 0 for one in scores[:2] for column in ("before", "after"))
    assert any(one["change"]["value"] != 0 and one["change"]["stderr"] > 0 for one in scores)


def test_the_table_shows_what_is_better(home, capsys):
    assert call(words(home, "--limit", "4", tasks="toys_choice")) == 0
    out, err = capsys.readouterr()
    header, acc, *_ = out.splitlines()
    assert header.split() == ["task", "rows", "shots", "metric", "before", "after", "change"]
    assert acc.split()[:5] == ["toys_choice", "4", "0", "acc", "↑"] and acc.count(" ± ") == 3
    assert "asked   mine: 16 of 16" in err and "next    graft chat" in err


@pytest.mark.parametrize(
    "more, given",
    [
        (["--data", "rows.jsonl"], "--data with --tasks"),
        (["--metric", "bleu", "--stage", "sft"], "--metric, --stage with --tasks"),
        (["--apply-chat-template"], "has no chat template"),
    ],
)
def test_misuse_ends_in_lines(home, capsys, more, given):
    assert call(words(home, *more, tasks="toys_choice")) == 2
    assert given in capsys.readouterr().err


def test_tasks_must_be_named(home, capsys):
    assert call(words(home, tasks=" ,")) == 2
    assert call(["eval", str(home / "model"), "--num-fewshot", "0"]) == 2
    err = capsys.readouterr().err
    assert "--tasks names nothing" in err and "--num-fewshot without --tasks" in err
