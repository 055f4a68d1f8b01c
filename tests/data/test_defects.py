"""Every kind of defective row is found, named file:line with reason and remedy, and counted."""

import copy
import gzip
import json

import pytest
from stage_tools import accepts, prepared
from tokenizers import normalizers

from graft.data import RejectedRows, load_rows
from graft.data.rows import Reject
from graft.errors import DataError

GOOD = b'{"prompt": "What is two and two?", "completion": "four"}\n'

TALK = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def line(**fields):
    return json.dumps(fields).encode() + b"\n"


def chat(*turns):
    return line(messages=[{"role": role, "content": content} for role, content in turns])


def second(raw, reason):
    """A JSONL file with this defect in its second line."""
    return "a.jsonl", GOOD + raw, 2, reason


# name: (file, bytes, line of the defect, reason). The line is None where zlib decides how much can be read.
DEFECTS = {
    "broken json": second(b'{"prompt": "x", \n', "bad JSON"),
    "single quotes": second(b"{'prompt': 'x'}\n", "bad JSON"),
    "two objects on a line": second(GOOD.strip() + GOOD, "bad JSON"),
    "key twice": second(b'{"prompt": "a", "prompt": "b", "completion": "c"}\n', "bad JSON"),
    "NaN": second(b'{"prompt": "a", "completion": NaN}\n', "bad JSON"),
    "nested too deeply": second(b'{"a":' + b"[" * 200_000 + b"\n", "bad JSON"),
    "huge number": second(b'{"a": ' + b"9" * 5000 + b"}\n", "bad JSON"),
    "row is a list": second(b"[1, 2]\n", "not an object"),
    "row is a string": second(b'"text"\n', "not an object"),
    "row is null": second(b"null\n", "not an object"),
    "latin-1": second('{"prompt": "caf\u00e9", "completion": "x"}\n'.encode("latin-1"), "not UTF-8"),
    "utf-16 breaks off": ("a.jsonl", '{"prompt": "x"}\n'.encode("utf-16")[:-1], 1, "not UTF-8"),
    "NUL in the file": second(b'{"prompt": "a\0b", "completion": "c"}\n', "NUL byte"),
    "NUL escaped": second(b'{"prompt": "a\\u0000b", "completion": "c"}\n', "NUL byte"),
    "half a surrogate pair": second(b'{"prompt": "\\ud83d", "completion": "c"}\n', "not UTF-8"),
    "empty file": ("a.jsonl", b"", 1, "empty file"),
    "only blank lines": ("a.jsonl", b"\n\n  \n", 1, "empty file"),
    "no answer": second(line(prompt="x", completion=None), "no answer"),
    "empty answer": second(line(prompt="x", completion=""), "no answer"),
    "blank answer": second(line(prompt="x", completion=" \n"), "no answer"),
    "empty prompt": second(line(prompt="", completion="x"), "no prompt"),
    "answer is a number": second(line(prompt="x", completion=4), "not text"),
    "answer is an object": second(line(prompt="x", completion={"a": 1}), "not text"),
    "other columns": second(line(question="x", reply="y"), "unknown columns"),
    "no columns": second(b"{}\n", "unknown columns"),
    "preference pair": second(line(chosen="x", rejected="y"), "preference pair"),
    "label in sft": second(line(text="x", label="y"), "a label, and stage is not classify"),
    "no turns": second(line(messages=[]), "bad messages"),
    "turn is a string": second(line(messages=["hi"]), "bad messages"),
    "unknown role": second(chat(("usr", "hi"), ("assistant", "x")), "bad role"),
    "no role": second(line(messages=[{"content": "x"}]), "bad role"),
    "no assistant": second(chat(("system", "c"), ("user", "a")), "no answer"),
    "weight is a half": second(line(messages=[TALK[0], TALK[1] | {"weight": 0.5}]), "bad weight"),
    "weights differ": second(line(messages=[TALK[0], TALK[1] | {"weight": 0, "train": True}]), "bad weight"),
    "calls are no JSON": second(line(messages=[TALK[0], TALK[1] | {"tool_calls": "f()"}]), "bad messages"),
    "ends with user": second(chat(("user", "a"), ("assistant", "b"), ("user", "c")), "no answer"),
    "assistant is silent": second(chat(("user", "a"), ("assistant", "")), "no answer"),
    "image": second(chat(("user", [{"type": "image"}]), ("assistant", "x")), "unsupported content"),
    "content is a number": second(chat(("user", 5), ("assistant", "x")), "not text"),
    "tools are no JSON": second(line(messages=TALK, tools="[{"), "bad messages"),
    "history holds no pairs": second(line(instruction="x", output="y", history=["z"]), "bad messages"),
    "element of an array": ("a.json", b"[" + GOOD.strip() + b", 3]", 2, "not an object"),
    "json breaks off": ("a.json", b"[" + GOOD.strip() + b",", 1, "bad JSON"),
    "too few cells": ("a.csv", b"prompt,completion\na,b\nc\n", 3, "wrong number of cells"),
    "too many cells": ("a.csv", b"prompt,completion\na,b\nc,d,e\n", 3, "wrong number of cells"),
    "quote never closed": ("a.csv", b'prompt,completion\na,b\n"c,d\n', 3, "bad CSV"),
    "header twice": ("a.csv", b"prompt,prompt\na,b\n", 1, "bad header"),
    "cell in latin-1": ("a.csv", "prompt,completion\na,b\nc,caf\u00e9\n".encode("latin-1"), 3, "not UTF-8"),
    "cell is empty": ("a.tsv", b"prompt\tcompletion\na\tb\nc\t\n", 3, "no answer"),
    "archive breaks off": ("a.jsonl.gz", gzip.compress(GOOD * 400, mtime=0)[:-12], None, "damaged archive"),
    "no archive at all": ("a.jsonl.gz", GOOD, 0, "damaged archive"),
    "no parquet at all": ("a.parquet", GOOD, 1, "bad Parquet"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_is_named_by_file_and_line(name, tmp_path, settings):
    file, content, at, reason = DEFECTS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_rows(settings(train=str(tmp_path / file)), accepts("sft"))
    (reject,) = caught.value.report.rejects
    path, _, number = reject.source.rpartition(":")
    assert (path, int(number), reject.reason) == (
        str(tmp_path / file),
        int(number) if at is None else at,
        reason,
    )
    assert reject.detail and reject.remedy and str(reject) in str(caught.value)


TAGGED = line(tokens=["a", "b"], tags=["B-PER", "I-PER"])

CLASSIFY = {
    "label is null": (line(text="a", label="x") + line(text="b", label=None), "no label"),
    "label is a float": (line(text="a", label="x") + line(text="b", label=0.5), "bad label"),
    "labels are many": (line(text="a", label="x") + line(text="b", label=["x", "y"]), "bad label"),
    "text is blank": (line(text="a", label="x") + line(text=" ", label="x"), "empty text"),
    "a word without a tag": (TAGGED + line(tokens=["a", "b"], tags=["O"]), "unequal lengths"),
    "tags are missing": (TAGGED + line(tokens=["a"], tags=None), "no tags"),
    "no word": (TAGGED + line(tokens=[], tags=[]), "no words"),
    "words are a string": (TAGGED + line(tokens="a b", tags=["O", "O"]), "no words"),
    "word is a number": (TAGGED + line(tokens=[7], tags=["O"]), "bad word"),
    "word is blank": (TAGGED + line(tokens=[" "], tags=["O"]), "bad word"),
    "tag is null": (TAGGED + line(tokens=["a"], tags=[None]), "bad tag"),
    "tag is true": (TAGGED + line(tokens=["a"], tags=[True]), "bad tag"),
    "tag is an integer": (TAGGED + line(tokens=["a"], ner_tags=[0]), "tag without a name"),
    "tags are IOB1": (TAGGED + line(tokens=["a"], tags=["I-PER"]), "not IOB2"),
    "NUL in a word": (TAGGED + line(tokens=["a\0"], tags=["O"]), "NUL byte"),
    "half a character in a tag": (TAGGED + b'{"tokens": ["a"], "tags": ["B-\\ud83d"]}\n', "not UTF-8"),
}


@pytest.mark.parametrize("name", CLASSIFY)
def test_defects_of_labelled_rows_are_named(name, tmp_path, settings):
    content, reason = CLASSIFY[name]
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_rows(settings(train=str(tmp_path / "a.jsonl")), accepts("classify"))
    assert [(r.source, r.reason) for r in caught.value.report.rejects] == [(f"{tmp_path}/a.jsonl:2", reason)]


CONLL = {
    "tag is missing": (b"a O\nb O\n\nc O\nd\n", 5, "no tags"),
    "tag is empty": (b"a\tO\n\nb\t\n", 3, "no tags"),
    "cells differ": (b"a DT O\nb NN O\n\nc DT O\nd O\n", 5, "wrong number of cells"),
    "latin-1": (b"a O\n\ncaf\xe9 O\n", 3, "not UTF-8"),
    "IOB1": (b"a O\n\nb O\nc I-PER\n", 3, "not IOB2"),
    "only blank lines": (b"\n\n", 1, "empty file"),
}


@pytest.mark.parametrize("name", CONLL)
def test_defects_of_conll_files_are_named_by_line(name, tmp_path, settings):
    content, at, reason = CONLL[name]
    (tmp_path / "a.conll").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_rows(settings(train=str(tmp_path / "a.conll")), accepts("classify"))
    assert [(r.source, r.reason) for r in caught.value.report.rejects] == [
        (f"{tmp_path}/a.conll:{at}", reason)
    ]


def test_labels_and_tags_in_one_file_are_refused_with_both_places(tmp_path, settings):
    (tmp_path / "a.jsonl").write_bytes(TAGGED + TAGGED + line(text="a", label="x"))
    with pytest.raises(DataError, match=r"a\.jsonl:3 has one label and .*a\.jsonl:1 a tag for every word"):
        load_rows(settings(train=str(tmp_path / "a.jsonl")), accepts("classify"))


ENCODED = {  # found with the tokenizer at hand
    "control token in a text": (line(prompt="the cat</s>", completion="sat"), "control token"),
    "control token in a turn": (chat(("user", "a <s> b"), ("assistant", "c")), "control token"),
    "answer behind max_length": (line(prompt="the cat " * 60, completion="sat"), "cut away"),
    "letters outside the alphabet": (line(prompt="the cat", completion="\u732b"), "unknown characters"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_defects_that_only_the_tokenizer_shows_are_named(name, tmp_path, settings, llama):
    content, reason = ENCODED[name]
    (tmp_path / "a.jsonl").write_bytes(GOOD * 300 + content)
    with pytest.raises(DataError) as caught:
        prepared(settings(train=str(tmp_path / "a.jsonl")), llama, stage="sft")
    assert [(r.source, r.reason) for r in caught.value.report.rejects] == [
        (f"{tmp_path}/a.jsonl:301", reason)
    ]


@pytest.mark.parametrize(
    "words, reason", [(["a", "[SEP]"], "control token"), (["a", "\u200b"], "word without a token")]
)
def test_words_that_a_tokenizer_cannot_take_are_named(words, reason, tmp_path, settings, bert):
    bert = copy.deepcopy(bert)
    bert.backend_tokenizer.normalizer = normalizers.BertNormalizer()  # drops what is not printed
    (tmp_path / "a.jsonl").write_bytes(TAGGED + line(tokens=words, tags=["B-PER", "I-PER"]))
    with pytest.raises(DataError) as caught:
        prepared(settings(train=str(tmp_path / "a.jsonl")), bert, stage="classify", family="encoder")
    assert [(r.source, r.reason) for r in caught.value.report.rejects] == [(f"{tmp_path}/a.jsonl:2", reason)]


def test_skipping_uses_the_good_rows_and_lists_the_bad_ones(tmp_path, settings, llama):
    (tmp_path / "a.jsonl").write_bytes(
        GOOD + b"[1]\n" + GOOD + line(prompt="x", completion="") + b"{\n" + GOOD
    )
    report = prepared(settings(train=str(tmp_path / "a.jsonl"), bad_rows="skip"), llama, stage="sft").report
    assert (report.read, report.train) == (6, 3)
    assert report.rejected == {"not an object": 1, "no answer": 1, "bad JSON": 1}
    report.write_rejects(tmp_path / "rejected.jsonl")
    written = [Reject(**json.loads(row)) for row in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row.source.rpartition(":")[2] for row in written] == ["2", "4", "5"]


def test_a_strict_run_names_the_first_twenty_and_counts_all(tmp_path, settings):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"[1]\n" * 30)
    with pytest.raises(DataError, match=r"30 of 31 rows cannot be used \(not an object 30\)") as caught:
        load_rows(settings(train=str(tmp_path / "a.jsonl")), accepts("sft"))
    assert str(caught.value).count("a.jsonl:") == 20 and "and 10 more" in str(caught.value)


def test_a_lenient_run_without_any_row_left_asks_for_one_and_not_to_skip(tmp_path, settings):
    (tmp_path / "a.jsonl").write_bytes(b"[1]\n" * 3)
    with pytest.raises(RejectedRows, match="3 of 3 rows cannot be used") as caught:
        load_rows(settings(train=str(tmp_path / "a.jsonl"), bad_rows="skip"), accepts("sft"))
    assert "at least one row" in caught.value.expected and "skip" not in caught.value.remedy
    assert caught.value.report.rejected == {"not an object": 3}


def test_more_than_one_percent_of_answers_cut_away_stops_even_a_lenient_run(tmp_path, settings, llama):
    for rows, refused in [(GOOD * 300, False), (GOOD * 50, True)]:
        (tmp_path / "a.jsonl").write_bytes(rows + line(prompt="the cat " * 60, completion="sat"))
        asked = settings(train=str(tmp_path / "a.jsonl"), bad_rows="skip")
        if refused:
            with pytest.raises(DataError, match="cuts the whole answer away in 1 of 51 rows"):
                prepared(asked, llama, stage="sft")
        else:
            assert prepared(asked, llama, stage="sft").report.rejected == {"cut away": 1}
