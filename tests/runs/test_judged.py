"""Which judgements belong to two runs: files, folders, and how a model is called."""

import pytest

from graft.errors import UsageError
from graft.evaluate.judgements import Judgement, lines
from graft.runs.judged import NAME, judged_between


def write(path, a, b, verdicts="112", judge="x"):
    """Write judgements of a against b. Return the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines(Judgement(str(i), a, b, v, judge=judge) for i, v in enumerate(verdicts)))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two folders of runs in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/one", "runs/two"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("called", ["runs/one", "./runs/one", "runs/../runs/one/", "FULL", "one"])
def test_a_run_is_known_by_its_path_however_it_is_written_and_by_its_folders_name(here, called):
    model = str(here / "runs/one") if called == "FULL" else called
    file = write(here / "j.jsonl", model, "runs/two")
    (rate,) = judged_between("runs/one", "runs/two", [file])
    assert (rate.first, rate.second, rate.wins, rate.losses) == ("runs/one", "runs/two", 2, 1)


def test_the_judgements_in_the_folders_of_both_are_read(here):
    write(here / "runs/one" / NAME, "runs/one", "runs/two", judge="x")
    write(here / "runs/two" / NAME, "runs/two", "runs/one", judge="y")
    rates = judged_between("runs/one", "runs/two")
    assert [(rate.judge, rate.wins) for rate in rates] == [("x", 2), ("y", 1)]
    assert [rate.judge for rate in judged_between("runs/one", "seedling/")] == []


def test_a_given_file_takes_the_place_of_those_in_the_folders(here):
    write(here / "runs/one" / NAME, "runs/one", "runs/two", judge="x")
    given = write(here / "other.jsonl", "runs/one", "runs/two", judge="y")
    assert [rate.judge for rate in judged_between("runs/one", "runs/two", [given])] == ["y"]


@pytest.mark.parametrize("called", ["runs/one", "runs/one/sft"])
def test_a_run_of_several_stages_is_its_last_stage(here, called):
    stage = here / "runs/one/sft"
    stage.mkdir()
    (here / "runs/one/recipe.yaml").write_text("stages: [{name: sft}, {name: ppo}]\n")
    (stage / "finished.json").write_text("{}")
    write(stage / NAME, called, "runs/two")
    (rate,) = judged_between("runs/one", "runs/two")
    assert rate.first == "runs/one" and rate.wins == 2


def test_a_file_without_the_two_says_whose_judgements_it_has(here):
    file = write(here / "j.jsonl", "runs/one", "three")
    with pytest.raises(UsageError, match="no judgement of runs/one against runs/two") as error:
        judged_between("runs/one", "runs/two", [file])
    assert "runs/one, three" in str(error.value)


def test_a_model_is_not_judged_against_itself(here):
    """Two spellings of one folder are one model."""
    write(here / "runs/one" / NAME, "runs/one", "./runs/one")
    assert judged_between("runs/one", "runs/one") == []
