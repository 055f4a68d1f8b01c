"""Observers: any object with a method for an event hears of it, and may end the run."""

import json
import re
from pathlib import Path

import pytest
from short_run import short_run, write_home

import graft
from graft.errors import MachineError, UsageError
from graft.runs.audience import EVENTS
from graft.runs.run import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("audience"))


class Everything:
    """Writes down every event with what it was told, without deriving from anything."""

    def __init__(self):
        self.heard = []

    def __getattr__(self, name):
        if name not in EVENTS:
            raise AttributeError(name)
        return lambda *told: self.heard.append((name, *told))

    def names(self):
        return [name for name, *_ in self.heard]

    def of(self, event):
        return [told for name, *told in self.heard if name == event]


class OnlySteps:
    """Has one method, and derives from nothing."""

    def __init__(self):
        self.steps = []

    def step(self, record):
        self.steps.append(record["step"])


@pytest.fixture(scope="module")
def done(home):
    everything, steps = Everything(), OnlySteps()
    result = graft.run(short_run(home, home / "done"), observer=[everything, steps])
    return result, everything, steps


def test_an_object_with_step_alone_hears_the_steps(done):
    assert done[2].steps == [1, 2, 3, 4]


def test_every_event_comes_in_the_documented_order_with_the_documented_fields(done):
    result, heard, _ = done
    order = list(dict.fromkeys(heard.names()))
    page = (ROOT / "docs/observers.md").read_text()
    documented = re.findall(r"^\| `(\w+)\(", page, re.MULTILINE)
    assert set(documented) == set(EVENTS)
    apart = ("doing",)  # comes again and again
    assert [name for name in order if name not in apart] == [
        name for name in documented if name in order and name not in apart
    ]
    (facts,) = heard.of("begin")[0]
    assert set(facts) == {
        "base", "parameters", "dtype", "stored", "methods", "sites", "trained", "stage", "recipe", "folder",
    }  # fmt: skip
    assert facts["recipe"]["train"]["max_steps"] == 4 and facts["folder"] == str(result.folder)
    assert heard.of("scored") == [[result.scores]]
    records = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert [record["loss"] for (record,) in heard.of("step")] == losses
    assert {"preparing rows", "planning", "scoring"} <= {what for what, *_ in heard.of("doing")}
    scoring = [(done, total) for what, done, total in heard.of("doing") if what == "scoring"]
    assert all(1 <= part <= total for part, total in scoring) and scoring[-1][0] == scoring[-1][1]


def test_an_exception_says_whose_it_is_and_at_which_event(home, tmp_path):
    class Broken(graft.Observer):
        def evaluated(self, record):
            return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        graft.run(short_run(home, tmp_path / "run"), observer=Broken())
    (note,) = caught.value.__notes__
    assert "Broken" in note and "'evaluated'" in note


def test_an_observer_that_ends_the_run_leaves_a_finished_run(home, tmp_path):
    class Enough(graft.Observer):
        def step(self, record):
            self.stop = record["step"] == 3

    enough, heard = Enough(), Everything()
    result = graft.run(short_run(home, tmp_path / "run"), observer=[enough, heard])
    assert result.steps == 3 and enough.stop is False
    assert [record["step"] for (record,) in heard.of("evaluated")] == [2, 3]  # as at a last step
    assert result.scores["after"]["perplexity"] > 0 and result.adapter.exists()
    again = Everything()
    graft.run(short_run(home, tmp_path / "run"), observer=again)
    assert again.of("step") == [], "the run has ended"


def test_a_run_that_is_to_end_ends_also_if_it_is_killed_before(home, tmp_path):
    class EnoughThenKilled(graft.Observer):
        def evaluated(self, record):
            self.stop = True

        def saved(self, path):
            raise MemoryError("killed")  # the checkpoint is written, the end is not

    settings = short_run(home, tmp_path / "run", max_steps=8)
    with pytest.raises(MachineError):
        graft.run(settings, observer=EnoughThenKilled())
    heard = Everything()
    assert graft.run(settings, observer=heard).steps == 2 and heard.of("step") == []


def test_notes_go_to_observers_that_take_them_and_else_are_warnings(home, tmp_path):
    settings = short_run(home, tmp_path / "warned", patience=0)
    settings["train"]["samples"] = []
    settings["train"]["sample_tokens"] = 5
    with pytest.warns(graft.Notice, match="sample_tokens"):
        graft.run(settings, observer=OnlySteps())
    heard = Everything()
    graft.run(settings | {"output": str(tmp_path / "told")}, observer=[OnlySteps(), heard])
    assert any("sample_tokens" in text for (text,) in heard.of("note"))


@pytest.mark.parametrize(
    ("observer", "said"),
    [
        (OnlySteps, "observer=OnlySteps()"),
        (type("Typo", (), {"evaluate": lambda self, record: None})(), "did you mean evaluated"),
        (object(), "graft.Observer"),
    ],
    ids=["class", "misspelt", "nothing"],
)
def test_what_cannot_hear_is_refused_with_a_remedy(home, tmp_path, observer, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        graft.run(short_run(home, tmp_path / "run"), observer=observer)


def test_a_run_inside_the_library_hears_too(home, tmp_path):
    steps = OnlySteps()
    run(short_run(home, tmp_path / "run"), observer=steps)
    assert steps.steps == [1, 2, 3, 4]


def test_the_programs_of_the_page_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/observers.md").read_text(), re.DOTALL)
    scope = {}
    for block in blocks:
        exec(block, scope)
    printed = capsys.readouterr().out.splitlines()
    assert len(json.loads(printed[0])) == 6 and 0 < int(printed[1]) < 200
