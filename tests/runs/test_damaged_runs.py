"""Files of a run that are missing or damaged are made again, or named; no command calls that a defect."""

import json
import shutil

import pytest
from tiny_folder import write_model, write_rows

from graft import storage
from graft.cli import call


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def folder_instead(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "folder": folder_instead,
}


def training(home, output):
    named = {"--model": home / "model", "--data": home / "rows.jsonl", "--output": output}
    changes = "dtype=fp32 method.r=2 train.max_steps=2 train.batch_size=4 data.eval=0.25 train.save_every=1"
    return ["train", *(str(word) for pair in named.items() for word in pair), *changes.split()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    assert call(training(folder, folder / "run")) == 0
    return folder


@pytest.fixture
def run(home):
    """A copy of the finished run under the name that it had."""
    shutil.copytree(home / "run", home / "kept")
    yield home / "run"
    shutil.rmtree(home / "run")
    (home / "kept").rename(home / "run")


# Damages of the files that decide something; a notice says which file it was.
TOLD = (
    ("evaluation.json", "flipped"),
    ("evaluation.json", "cut"),
    ("finished.json", "flipped"),
    ("finished.json", "zeros"),
    ("identity.json", "flipped"),
    ("recipe.yaml", "zeros"),
)
SILENT = (
    ("data_report.json", "cut"),
    ("evaluation.json", "gone"),
    ("recipe.yaml", "gone"),
    ("report.html", "cut"),
)


@pytest.mark.parametrize(("name", "damage"), TOLD + SILENT)
def test_b13_the_same_command_makes_a_damaged_file_again(name, damage, home, run, capsys):
    before = (run / name).read_bytes()
    adapter = storage.digest(run / "adapter" / "adapter_model.safetensors")
    DAMAGES[damage](run / name)
    assert call(training(home, run)) == 0
    said = capsys.readouterr().err
    assert (name, damage) in SILENT or f"{run / name} " in said
    assert (run / name).read_bytes() == before or name == "report.html"
    assert storage.digest(run / "adapter" / "adapter_model.safetensors") == adapter
    assert storage.read_record(run / "evaluation.json")["columns"]["after"]["perplexity"] > 1


@pytest.mark.parametrize("name", ["evaluation.json", "finished.json", "notes.json", "metrics.jsonl"])
def test_b13_a_folder_in_a_files_place_is_named_or_passed_over(name, home, run, capsys):
    folder_instead(run / name)
    code = call(training(home, run))
    said = capsys.readouterr().err
    assert code == (0 if name in ("notes.json", "metrics.jsonl") else 1)
    assert code == 0 or f"{run / name}: Is a directory (EISDIR)" in said


@pytest.mark.parametrize("damage", ["cut", "gone", "folder"])
def test_b13_without_its_data_report_a_run_is_asked_as_its_rows_say(damage, run, capsys):
    DAMAGES[damage](run / "data_report.json")
    assert call(["eval", str(run)]) == 0
    said = capsys.readouterr()
    assert "perplexity" in said.out and "data_report.json is missing or damaged" in said.err


def test_b13_without_its_data_report_and_its_rows_a_run_says_what_is_missing(home, run, capsys):
    (run / "data_report.json").unlink()
    (home / "rows.jsonl").rename(home / "moved")
    try:
        assert call(["export", str(run), str(home / "out"), "--to", "peft"]) in (1, 2)
        assert "rows.jsonl" in capsys.readouterr().err
    finally:
        (home / "moved").rename(home / "rows.jsonl")


@pytest.mark.parametrize("damage", ["flipped", "zeros"])
def test_b13_damaged_scores_are_told_and_not_compared(damage, home, run, capsys):
    DAMAGES[damage](run / "evaluation.json")
    assert call(["compare", str(run), str(home / "kept"), "--prompt", "hi", "--max-new-tokens", "2"]) == 0
    said = capsys.readouterr()
    assert "evaluation.json" in said.err and "scores are not used" in said.err


def test_a_recipe_that_was_cut_is_told_by_those_who_read_it(run, capsys):
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text[: text.index("\ntrain:")])
    assert call(["eval", str(run)]) == 0
    assert "recipe.yaml was changed after the run began" in capsys.readouterr().err
    assert call(["train", str(run)]) == 1
    assert "train.batch_size: 4 -> " in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{", b"{}"])
def test_notes_that_are_damaged_begin_anew(content, home, run, capsys):
    (run / "notes.json").write_bytes(content)
    shutil.rmtree(run / "adapter"), (run / "finished.json").unlink()
    assert call(training(home, run)) == 0
    assert isinstance(json.loads((run / "notes.json").read_text()), list)


BAD_LINES = (bytes(90), b'{"step": "two", "loss": [1]}', b"[]", b'{"step": 1', b"\xff\xfe")


def test_b9_a_report_survives_bad_lines(home, run, capsys):
    for name in ("metrics.jsonl", "timing.jsonl"):
        with open(run / name, "ab") as file:
            file.write(b"\n".join(BAD_LINES) + b"\n")
    assert call(training(home, run)) == 0
    said = capsys.readouterr().err
    assert f"4 lines of {run / 'metrics.jsonl'}" in said and f"4 lines of {run / 'timing.jsonl'}" in said
    assert "Loss" in (run / "report.html").read_text(encoding="utf-8")


def test_b9_an_interrupted_run_without_its_journal_ends_and_tells(home, run, capsys):
    """As it was found: the file grew to its length with NUL, and no later start could read it."""
    shutil.rmtree(run / "adapter"), (run / "finished.json").unlink(), (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "checkpoints" / "step-000002")
    assert call(training(home, run)) == 0
    assert "metrics.jsonl has lost" in capsys.readouterr().err
    assert b"\0" not in (run / "metrics.jsonl").read_bytes()
    assert call(training(home, run)) == 0
