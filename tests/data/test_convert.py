"""Conversion: every row is in the result or named, and the result is read back as what it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.cli import call
from graft.data.convert import KINDS, convert
from graft.data.layouts import Accepts, recognise
from graft.data.read import records
from graft.data.rows import Record, Reject
from graft.data.trees import PATHS

ALL = Accepts("any", ("preference", "ranking", "judged", "messages", "prompt_completion"))
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER = [TALK[0], {"role": "assistant", "content": "b"}]


def record(fields, source="f:1"):
    return Record(source, fields)


def vote(word, **names):
    return {"prompt": "q", "answer_a": "a", "answer_b": "b", "vote": word} | names


ROWS = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"chosen": TALK, "rejected": OTHER, "score_chosen": 2.5, "score_rejected": 1},
    {"prompt": "q", "responses": ["b", "a", "c"], "scores": [1, 3, 1]},
    {"prompt": TALK[:1], "responses": [OTHER[1:], TALK[1:], [{"role": "assistant", "content": "c"}]]}
    | {"ranks": [3, 1, 2], "tools": [{"name": "f"}]},
    {"chosen": [*TALK, *TALK], "rejected": OTHER},
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": TALK[:1], "completion": OTHER[1:], "label": False},
]


def test_pairs_and_verdicts_are_read_back_as_they_were_written():
    for to in ("preference", "judged"):
        kind = {"preference": "ranking", "judged": "judged"}[to]
        given = [recognise(record(fields), ALL) for fields in ROWS]
        given = [row for row in given if row.kind == kind]
        made = convert([record(fields) for fields in ROWS if recognise(record(fields), ALL).kind == kind], to)
        again = [recognise(record(json.loads(json.dumps(row))), ALL) for row in made.rows]
        assert [(r.kind, r.value, r.tools) for r in again] == [(r.kind, r.value, r.tools) for r in given]
        assert not made.left and not any(row.unused for row in again)


def test_good_and_bad_answers_to_one_prompt_become_a_ranking():
    def verdict(prompt, answer, good):
        return {"prompt": prompt, "completion": answer, "label": good}

    given = [
        verdict("q", "a", False), verdict("q", "b", True), verdict("r", "a", True), verdict("q", "c", True),
        verdict("q", "a", False), verdict("q", "d", True), verdict("q", "d", False), verdict("s", "x", True),
        verdict("s", "y", False),
    ]  # fmt: skip
    made = convert([record(fields, f"f:{i}") for i, fields in enumerate(given, 1)], "preference")
    assert made.rows == [
        {"prompt": "q", "responses": ["b", "c", "a"], "scores": [1.0, 1.0, 0.0]},
        {"prompt": "s", "chosen": "x", "rejected": "y"},
    ]
    assert [(reject.source, reject.reason) for reject in made.left] == [
        ("f:6", "contradiction"), ("f:7", "contradiction"), ("f:3", "one answer"),
    ]  # fmt: skip


def test_the_best_answer_of_each_row_is_learnt():
    made = convert([record(fields, f"f:{i}") for i, fields in enumerate(ROWS, 1)], "sft")
    answers = [row["completion"] for row in made.rows]
    a = [{"role": "assistant", "content": "a"}]
    assert answers == ["a", a, "a", a, [*TALK[1:], *TALK], "a"]
    assert [(reject.source, reject.reason) for reject in made.left] == [("f:7", "bad answer")]
    assert made.unused["worse answers of a ranking"] == 5
    assert made.rows[3]["tools"] == [{"name": "f"}]


def test_rows_with_one_answer_stay_as_they_are_for_sft_and_are_named_for_the_rest():
    plain = [{"messages": TALK}, {"prompt": "q", "completion": "a"}]
    assert convert(map(record, plain), "sft").rows == plain
    assert [r.reason for r in convert(map(record, plain), "preference").left] == ["unknown columns"] * 2


@pytest.mark.parametrize("to", KINDS)
def test_every_row_is_used_or_named(to):
    given = [
        vote("a"),
        vote("tie"),
        vote("bad"),
        vote("?"),
        *ROWS,
        {"x": 1},
        {"chosen": "a", "rejected": "b"},
    ]
    given.append({"message_id": "1", "parent_id": None, "role": "prompter", "text": "alone"})
    sources = [f"f:{i}" for i in range(len(given))]
    made = convert([record(f, s) for f, s in zip(given, sources, strict=True)] + [
        Reject("f:x", "bad JSON", "d", "r")
    ], to)  # fmt: skip
    assert made.read == len(given) + 1
    named = {reject.source for reject in made.left}
    used = [s for f, s in zip(given, sources, strict=True) if convert([record(f, s)], to).rows]
    assert sorted([*named, *used]) == sorted([*sources, "f:x"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["prompter", "assistant", "a", "tie", "1", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "text", "message_id", "replies"]), inner
    ),
    max_leaves=8,
)  # fmt: skip
TREE = ["message_id", "parent_id", "role", "text", "rank", "replies", "deleted", "lang", "prompt"]
VOTE = ["prompt", "answer_a", "answer_b", "conversation_a", "conversation_b", "vote", "winner"]


@given(
    st.lists(st.dictionaries(st.sampled_from(TREE), VALUES) | st.dictionaries(st.sampled_from(VOTE), VALUES)),
    st.sampled_from(KINDS),
    st.sampled_from(PATHS),
)
def test_any_values_are_converted_to_rows_that_can_be_read_or_are_named(rows, to, paths):
    made = convert([record(fields, f"f:{i}") for i, fields in enumerate(rows)], to, paths=paths)
    for row in made.rows:
        again = recognise(record(json.loads(json.dumps(row))), ALL)
        assert not isinstance(again, Reject), again
    assert all(reject.reason and reject.source for reject in made.left)
    assert not rows or made.rows or made.left


def tree_file(folder):
    rows = [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "lang": "en"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "b", "rank": 1, "lang": "en"},
        {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "a", "rank": 0, "lang": "en"},
        {"message_id": "4", "parent_id": "1", "role": "assistant", "text": "c", "lang": "en"},
    ]
    path = folder / "tree.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_writes_rows_and_names_what_is_left(tmp_path, capsys):
    path, out = tree_file(tmp_path), tmp_path / "new" / "rows.jsonl"
    assert call(["data", "convert", str(path), str(out), "--to", "preference"]) == 0
    said = capsys.readouterr()
    assert f"wrote   {out} (1 row of 4)" in said.out
    assert "left    1 x compared with none" in said.err and "tree.jsonl:4" in said.err
    (row,) = [recognise(r, ALL) for r in records(str(out))]
    assert row.value == (TALK[:1], (TALK[1:], OTHER[1:]), None)
    assert call(["data", "convert", str(path), str(out), "--to", "sft"]) == 2  # it is there already
    assert call(["data", "convert", str(path), str(out), "--to", "sft", "--force", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["read"], len(facts["left"])) == (1, 4, 2)
    assert json.loads(out.read_text()) == {"messages": TALK}


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["--to", "preferences"], 2, "preference"),
        (["--to", "sft", "--paths", "bst"], 2, "best"),
        (["--to", "sft", "--lang", "de"], 1, "other language 4"),
    ],
)
def test_a_conversion_that_gives_nothing_says_why(words, code, text, tmp_path, capsys):
    path = tree_file(tmp_path)
    assert call(["data", "convert", str(path), str(tmp_path / "rows.jsonl"), *words]) == code
    assert text in capsys.readouterr().err and not (tmp_path / "rows.jsonl").exists()
    assert call(["data", "convert", str(path), str(tmp_path / "rows.txt"), "--to", "sft"]) == 2
