"""A folder's files are told apart by their names, and what is left out is named."""

import json

import pytest
from stage_tools import accepts, prepared

from graft.cli.data_report import report_lines
from graft.data import load_rows
from graft.data.read import choices, sources, validation
from graft.errors import DataError


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        row = {"prompt": f"What is {name}?", "completion": "four"}
        text = json.dumps([row]) if name.endswith(".json") else json.dumps(row) + "\n"
        text = "prompt\tcompletion\nWhat is two?\tfour\n" if name.endswith(".tsv") else text
        (folder / name).write_text("Permission is granted." if name.endswith((".txt", ".md")) else text)


def names(folder, split="train"):
    return [path.removeprefix(f"{folder}/") for path in sources(str(folder), split)]


@pytest.mark.parametrize(
    "files, train, validation, test",
    [
        ("train.jsonl valid.jsonl test.jsonl", "train.jsonl", "valid.jsonl", "test.jsonl"),
        ("train.tsv dev.tsv", "train.tsv", "dev.tsv", "dev.tsv"),
        ("training.json val.json", "training.json", "val.json", "val.json"),
        ("qa_train.jsonl qa_eval.jsonl", "qa_train.jsonl", "qa_eval.jsonl", "qa_eval.jsonl"),
        ("oos_train.jsonl train.jsonl oos_val.jsonl test.jsonl", "oos_train.jsonl train.jsonl",
         "oos_val.jsonl", "test.jsonl"),
        ("d/train-00000-of-00002.jsonl d/train-00001-of-00002.jsonl d/validation-00000-of-00001.jsonl",
         "d/train-00000-of-00002.jsonl d/train-00001-of-00002.jsonl",
         "d/validation-00000-of-00001.jsonl", "d/validation-00000-of-00001.jsonl"),
        ("train/a.jsonl train/b.jsonl test/a.jsonl", "train/a.jsonl train/b.jsonl", "test/a.jsonl",
         "test/a.jsonl"),
        ("Test.jsonl rows.jsonl", "rows.jsonl", "Test.jsonl", "Test.jsonl"),
        ("train2017.jsonl val2017.jsonl", "train2017.jsonl", "val2017.jsonl", "val2017.jsonl"),
        ("wiki.train.raw.jsonl wiki.valid.raw.jsonl", "wiki.train.raw.jsonl", "wiki.valid.raw.jsonl",
         "wiki.valid.raw.jsonl"),
        ("v1.1-train.jsonl.gz v1.1-dev.jsonl.gz", "v1.1-train.jsonl.gz", "v1.1-dev.jsonl.gz",
         "v1.1-dev.jsonl.gz"),
        ("a.jsonl b.jsonl", "a.jsonl b.jsonl", "a.jsonl b.jsonl", "a.jsonl b.jsonl"),
        ("test.jsonl", "test.jsonl", "test.jsonl", "test.jsonl"),
        ("constraint.jsonl latest.jsonl", "constraint.jsonl latest.jsonl", "constraint.jsonl latest.jsonl",
         "constraint.jsonl latest.jsonl"),
    ],
)  # fmt: skip
def test_splits_are_told_by_names_of_files_and_folders(files, train, validation, test, tmp_path):
    write(tmp_path, *files.split())
    for split, expected in (("train", train), ("validation", validation), ("test", test)):
        assert sorted(names(tmp_path, split)) == sorted(expected.split())


@pytest.mark.parametrize(
    "files, rows",
    [
        ("rows.jsonl LICENSE.txt", "rows.jsonl"),
        ("rows.jsonl notes.txt more.txt CHANGELOG.md", "rows.jsonl"),
        ("rows.tsv dataset_infos.json package.json", "rows.tsv"),
        ("train.json extra.csv test.json", "train.json"),
        ("a.txt b.txt LICENSE.txt Licence-MIT.txt COPYING.txt requirements.txt README.txt", "a.txt b.txt"),
        ("rows.jsonl.gz rows.md", "rows.jsonl.gz"),
    ],
)
def test_files_of_one_format_are_the_rows(files, rows, tmp_path):
    write(tmp_path, *files.split())
    assert names(tmp_path) == rows.split()


def test_what_is_not_read_of_a_folder_is_named(tmp_path):
    write(
        tmp_path,
        "train.jsonl",
        "extra.jsonl",
        "dev.jsonl",
        "LICENSE.txt",
        "README.md",
        ".cache.jsonl",
        "a.png",
    )
    used = sources(str(tmp_path)) + validation(str(tmp_path))
    held, rest = choices(str(tmp_path), used)
    assert "dev.jsonl" in held and rest == f"not read of {tmp_path}: LICENSE.txt, extra.jsonl"
    assert choices(str(tmp_path / "train.jsonl"), used) == []


def test_a_folder_without_rows_to_train_on_is_refused(tmp_path):
    write(tmp_path, "valid.jsonl", "test.jsonl")
    with pytest.raises(DataError, match=r"no rows to train on: .*test\.jsonl"):
        sources(str(tmp_path))
    assert names(tmp_path, "validation") == ["valid.jsonl"]


def test_a_folder_of_arrow_files_is_refused_with_a_way_out(tmp_path):
    write(tmp_path, "state.json", "dataset_info.json", "data-00000-of-00001.arrow")
    with pytest.raises(DataError) as caught:
        sources(str(tmp_path))
    assert "save_to_disk" in caught.value.given and "to_parquet" in caught.value.remedy


@pytest.mark.parametrize("share, held", [(0.05, 3), (0.0, None), (None, None)])
def test_validation_files_are_held_out_in_place_of_a_share(share, held, tmp_path, settings):
    write(tmp_path, "train.jsonl", "test.jsonl")
    rows = [json.dumps({"prompt": f"row {i}?", "completion": "x"}) for i in range(3)]
    (tmp_path / "valid.jsonl").write_text("\n".join(rows))
    loaded = load_rows(settings(train=str(tmp_path), eval=share), accepts("sft"))
    assert len(loaded.train) == 1 and (loaded.eval is None if held is None else len(loaded.eval) == held)


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path, settings):
    write(tmp_path, "train.jsonl", "valid.jsonl", "test.jsonl")
    asked = settings(train=str(tmp_path), eval=str(tmp_path / "test.jsonl"), test=str(tmp_path))
    loaded = load_rows(asked, accepts("sft"))
    places = [
        [row.source.split("/")[-1] for row in part] for part in (loaded.train, loaded.eval, loaded.test)
    ]
    assert places == [["train.jsonl:1"], ["test.jsonl:1"], ["test.jsonl:1"]]


def test_the_report_says_what_was_taken_even_from_the_cache(tmp_path, settings, llama):
    folder = tmp_path / "rows"
    write(folder, "train.jsonl", "valid.jsonl", "test.jsonl")
    for _ in range(2):
        report = prepared(settings(train=str(folder), eval=0.05), llama, stage="sft").report
        shown = "\n".join(report_lines(report, color=False))
        assert (report.train, report.eval) == (1, 1)
        assert "held out are those of valid.jsonl" in shown and f"not read of {folder}: test.jsonl" in shown
