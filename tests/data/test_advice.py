"""A file whose columns have other names gives one error with a proposal that works."""

import csv
import json

import pytest
import yaml
from stage_tools import accepts

from graft.data import load_rows
from graft.data.advice import propose
from graft.data.layouts import Accepts, recognise
from graft.data.rows import Record
from graft.errors import DataError

LONG = "a longer text than others, {}"


def refused(folder, rows, settings, stage="sft", **more):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        load_rows(settings(train=str(folder / "a.jsonl"), **more), accepts(stage))
    return caught.value


@pytest.mark.parametrize(
    "names, stage, mapping",
    [
        (("mr", "ref"), "sft", {"prompt": "mr", "completion": "ref"}),
        (("Body", "Answer"), "sft", {"prompt": "Body", "completion": "Answer"}),
        (("reply", "post"), "sft", {"prompt": "post", "completion": "reply"}),
        (("Question", "Answer"), "sft", {"prompt": "Question", "completion": "Answer"}),
        (("sql_prompt", "sql"), "sft", {"prompt": "sql_prompt", "completion": "sql"}),
        (("the title", "the body"), "sft", {"prompt": "the title", "completion": "the body"}),
        (("body", "note"), "pretrain", {"text": "body"}),
    ],
)
def test_the_proposal_for_unknown_columns_makes_rows(names, stage, mapping, tmp_path, settings):
    first, second = names
    rows = [{"id": i, first: LONG.format(i), second: f"a text {i}"} for i in range(30)]
    error = refused(tmp_path, rows, settings, stage)
    assert "no row has columns that are known: id, " in error.given and "a.jsonl:1: id='0'" in error.given
    assert len(error.given) < 400 and len(error.report.rejects) == 30
    proposed = yaml.safe_load(error.remedy.partition("data.columns='")[2].partition("'")[0])
    assert proposed == mapping
    path = str(tmp_path / "a.jsonl")
    assert len(load_rows(settings(train=path, columns=proposed), accepts(stage)).train) == 30


def test_a_class_is_a_column_of_few_values():
    rows = [{"n": i, "review": LONG.format(i), "stars": i % 3, "user": f"u{i % 9}"} for i in range(20)]
    guess = propose(rows, ["n", "review", "stars", "user"], ("classification", "tags"))
    assert guess == {"text": "review", "label": "stars"}
    rows = [{"qid1": str(i), "qid2": "7", "Question1": "a", "Question2": "b", "dup": i % 2} for i in range(9)]
    guess = propose(rows, list(rows[0]), ("classification",))
    assert guess == {"text": "Question1", "text_pair": "Question2", "label": "dup"}
    assert propose([{"a": 1}, {"a": 2}], ["a"], ("classification",)) == {}
    assert propose([{"a": "x"}], ["a"], ("messages", "prompt_completion")) == {}


def test_a_table_without_a_header_is_told_by_its_first_row(tmp_path, settings):
    with open(tmp_path / "a.csv", "w") as stream:
        csv.writer(stream).writerows([["I like it a lot", "1"], ["I do not", "0"], ["So so", "1"]])
    with pytest.raises(DataError, match="no row has columns that are known: I like it a lot, 1"):
        load_rows(settings(train=str(tmp_path / "a.csv")), accepts("classify"))


@pytest.mark.parametrize(
    "row, stage, remedy",
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "sft", "{prompt: prompt, completion: chosen}"),
        ({"sentence1": "a", "sentence2": "b", "label": 1}, "sft", "set stage=classify"),
        ({"x": 1}, "sft", "data.columns="),
    ],
)
def test_other_defects_of_all_rows_are_one_error_too(row, stage, remedy, tmp_path, settings):
    error = refused(tmp_path, [row] * 25, settings, stage)
    assert remedy in error.remedy and str(error).count("a.jsonl:") <= 1
    assert ("25 of 25 rows are preference pairs" in error.given) == ("chosen" in row)


def test_some_rows_of_unknown_columns_are_rejected_one_by_one(tmp_path, settings):
    good, bad = {"prompt": "q", "completion": "a"}, {"mr": "q", "ref": "a"}
    error = refused(tmp_path, [good, good, bad], settings)
    assert "a.jsonl:3: unknown columns: columns mr, ref" in error.given
    path = str(tmp_path / "a.jsonl")
    assert len(load_rows(settings(train=path, bad_rows="skip"), accepts("sft")).train) == 2
    error = refused(tmp_path, [good, bad, bad], settings)
    assert "2 of 3 rows have no columns that are known" in error.given
    assert len(load_rows(settings(train=path, bad_rows="skip"), accepts("sft")).train) == 1
    error = refused(tmp_path, [bad, bad], settings, bad_rows="skip")
    assert "no row has columns" in error.given


def test_the_sides_of_a_pair_are_proposed_by_their_names():
    row = {"id": "7", "Question": "What is it?", "answer_good": "four", "answer_bad": "five"}
    guess = propose([row] * 3, list(row), ("preference", "ranking"))
    assert guess == {"prompt": "Question", "chosen": "answer_good", "rejected": "answer_bad"}
    fields = Record("f:1", row)
    preference = Accepts("preference", ("preference", "ranking"))
    assert recognise(fields, preference, columns=guess).value == ("What is it?", ("four", "five"), None)
    assert propose([{"x": "a"}], ["x"], ("preference",)) == {}


def test_a_file_of_unknown_columns_gets_a_mapping_for_pairs(tmp_path, settings):
    preference = Accepts("preference", ("preference", "ranking"))
    for row, mapping in [
        ({"q": "What is it?", "win": "four", "lose": "five"}, "{prompt: q, chosen: win, rejected: lose}"),
        ({"x": 1}, "{prompt: NAME, chosen: NAME, rejected: NAME}"),
        ({"prompt": "q", "answer_a": "a", "answer_b": "b", "vote": "a"}, "graft data convert"),
    ]:
        (tmp_path / "a.jsonl").write_text((json.dumps(row) + "\n") * 3)
        with pytest.raises(DataError) as caught:
            load_rows(settings(train=str(tmp_path / "a.jsonl")), preference)
        assert mapping in caught.value.remedy
