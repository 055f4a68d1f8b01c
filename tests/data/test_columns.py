"""Every column of a row is used or named: what programs and published sets write, and what becomes of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_tools import accepts, prepared, stage_named

from graft.data import load_rows
from graft.data.columns import Fields
from graft.data.layouts import recognise
from graft.data.rows import Record, Reject

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def row_of(fields, stage="sft", **settings):
    return recognise(Record("f:1", fields), accepts(stage), **settings)


def said(row):
    """The contents of a conversation with the first letter of each role."""
    return [f"{message['role'][0]}:{message['content']}" for message in row.value]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"instruction": "q", "context": "c", "response": "a"}, ["u:q\nc", "a:a"]),
        ({"instruction": "q", "input": "i", "output": "a", "system": "s"}, ["s:s", "u:q\ni", "a:a"]),
        ({"instruction": "q", "input": " \n", "output": "a"}, ["u:q", "a:a"]),
        ({"instruction": "q", "input": None, "context": "", "answer": "a"}, ["u:q", "a:a"]),
        ({"system_prompt": "s", "question": "q", "response": "a"}, ["s:s", "u:q", "a:a"]),
        ({"system": "s", "prompt": "q", "completion": "a"}, ["s:s", "u:q", "a:a"]),
        ({"system_prompt": " ", "prompt": "q", "completion": "a"}, ["u:q", "a:a"]),  # others have one
        ({"system": "s", "messages": TALK}, ["s:s", "u:a", "a:b"]),
        ({"system_prompt": "s", "conversations": TALK}, ["s:s", "u:a", "a:b"]),
        ({"system": "s", "prompt": TALK[:1], "completion": TALK[1:]}, ["s:s", "u:a", "a:b"]),
        ({"prompt": "q", "completion": TALK[1:]}, ["u:q", "a:b"]),
        ({"prompt": TALK[:1], "response": "a"}, ["u:a", "a:a"]),
        ({"system": "s", "messages": [{"role": "system", "content": "s"}, *TALK]}, ["s:s", "u:a", "a:b"]),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["u:q", "a:a"]),
        ({"conversation": TALK}, ["u:a", "a:b"]),
        ({"conversations": [{"from": "user", "content": "q"}, {"from": "assistant", "content": "a"}]}, None),
        ({"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, None),
        ({"messages": [{"role": "system", "content": None}, *TALK]}, ["u:a", "a:b"]),
        ({"conversations": [{"from": "system", "value": " "}, *TALK[:0], {"from": "human", "value": "q"},
                            {"from": "gpt", "value": "a"}]}, ["u:q", "a:a"]),
        ({"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, ["u:q", "a:a"]),
        # A table for several layouts: the columns of the others are null.
        ({"messages": None, "instruction": "q", "output": "a"}, ["u:q", "a:a"]),
        # A struct column of Arrow that was written as JSON: every turn has every key.
        ({"messages": [turn | {"from": None, "value": None, "tool_calls": None} for turn in TALK]}, None),
    ],
)  # fmt: skip
def test_nothing_that_these_rows_say_is_unused(fields, words):
    row = row_of(fields)
    assert (row.kind, row.unused) == ("chat", ())
    assert said(row) in ([words] if words else (["u:q", "a:a"], ["u:a", "a:b"]))


@pytest.mark.parametrize(
    "fields, pair",
    [
        ({"question": "q", "context": "CREATE TABLE t", "answer": "a"}, ("CREATE TABLE t\nq", "a")),
        ({"question": "q", "context": "t", "sql": "SELECT"}, ("t\nq", "SELECT")),
        ({"context": "c", "question": "q", "answers": {"text": ["a", "a"]}}, ("c\nq", "a")),
        ({"question": "q", "answers": ["a"]}, ("q", "a")),
    ],
)
def test_a_context_stands_before_its_question(fields, pair):
    row = row_of(fields)
    assert (row.kind, row.value, row.unused) == ("pair", pair, ())


@pytest.mark.parametrize(
    "fields, stage, unused",
    [
        (
            {"prompt": "q", "completion": "a", "id": 0, "url": "u", "tags": [], "note": " "},
            "sft",
            ["id", "url"],
        ),
        ({"question": "q", "answer": "a", "context": {"title": ["t"]}}, "sft", ["context"]),
        ({"messages": TALK, "prompt": "a", "score": 0.0}, "sft", ["prompt", "score"]),
        ({"messages": [{"role": "system", "content": "x"}, *TALK], "system": "y"}, "sft", ["system"]),
        ({"system": "s", "system_prompt": "z", "messages": TALK}, "sft", ["system_prompt"]),
        ({"source": "q", "target": "a", "system": "model-7"}, "sft", ["system"]),
        ({"prompt": "q", "completion": "a", "tools": [{"name": "f"}]}, "sft", ["tools"]),
        ({"prompt": "q", "completion": "a", "label": "sports", "weight": 0.5}, "sft", ["label", "weight"]),
        ({"text": "t", "label": 1, "label_text": "good", "idx": 3}, "classify", ["label_text", "idx"]),
        ({"text": "t", "summary": "s"}, "sft", ["summary"]),
        ({"text": "t", "meta": {"x": 1}, "label": None}, "pretrain", ["meta"]),
        ({"tokens": ["a"], "ner_tags": ["O"], "pos_tags": [7]}, "classify", ["pos_tags"]),
        ({"premise": "p", "hypothesis": "h", "label": 1, "text": "x"}, "classify", ["text"]),
        ({"": "0", "Unnamed: 0": 7, "prompt": "q", "completion": "a"}, "sft", []),  # the numbers of pandas
        ({"": "Anna", "prompt": "q", "completion": "a"}, "sft", [""]),
    ],
)
def test_a_column_that_nothing_reads_is_named(fields, stage, unused):
    assert row_of(fields, stage).unused == tuple(f"column {name!r}" for name in unused)


def test_rows_without_a_system_prompt_are_written_as_those_of_their_file_that_have_one(tmp_path, settings):
    pair = {"prompt": "q", "completion": "a", "id": 3}
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (pair, pair | {"system": "s"}))
    )
    (tmp_path / "b.jsonl").write_text(json.dumps(pair) + "\n")
    asked = settings(train=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    first, second, other = load_rows(asked, accepts("sft")).train
    assert said(first) == ["u:q", "a:a"] and said(second) == ["s:s", "u:q", "a:a"]
    assert (other.kind, other.value) == ("pair", ("q", "a"))
    assert first.unused == second.unused == other.unused == ("column 'id'",)
    assert stage_named("sft").asks_by_template(asked)
    assert not stage_named("sft").asks_by_template(settings(train=str(tmp_path / "b.jsonl")))


def test_further_answers_are_named():
    row = row_of({"question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}})
    assert row.value == ("q", "a") and row.unused == ("further answers of a row",)


def test_mapped_columns_are_named_as_the_file_calls_them():
    fields = {"mr": "q", "ref": "a", "prompt": "other", "schema": "c", "who": "s"}
    names = {"prompt": "mr", "completion": "ref"}
    assert row_of(fields, columns=names).unused == ("column 'schema'", "column 'who'", "column 'prompt'")
    row = row_of(fields, columns={**names, "context": "schema", "system": "who"})
    assert said(row) == ["s:s", "u:c\nq", "a:a"] and row.unused == ("column 'prompt'",)
    unread = row_of({"body": "t", "schema": "c"}, "pretrain", columns={"text": "body", "context": "schema"})
    assert unread.unused == ("column 'schema'",)
    swapped = row_of(
        {"prompt": "a", "completion": "q"}, columns={"prompt": "completion", "completion": "prompt"}
    )
    assert swapped.value == ("q", "a") and not swapped.unused


@pytest.mark.parametrize("verdict", [False, 0, 0.0, -1, "false", "False", "0", " no "])
@pytest.mark.parametrize("form", ["pair", "lists", "messages", "alpaca"])
def test_an_answer_that_its_row_calls_bad_is_never_learnt(verdict, form):
    fields = {
        "pair": {"prompt": "q", "completion": "a", "label": verdict},
        "lists": {"prompt": TALK[:1], "completion": TALK[1:], "label": verdict},
        "messages": {"messages": TALK, "kto_tag": verdict},
        "alpaca": {"instruction": "q", "output": "a", "label": verdict},
    }[form]
    reject = row_of(fields)
    assert reject.reason == "rejected answer" and ("label" in reject.detail or "kto_tag" in reject.detail)
    assert "bad_rows=skip" in reject.remedy


@pytest.mark.parametrize("verdict", [True, 1, 1.0, "true", "1", "Yes"])
def test_an_answer_that_its_row_calls_good_is_a_row_like_others(verdict):
    row = row_of({"prompt": "q", "completion": "a", "label": verdict, "weight": "1.0"})
    assert row.value == ("q", "a") and not row.unused


def test_flags_of_true_and_false_say_the_same():
    pair = {"prompt": "q", "completion": "a"}
    assert row_of(pair | {"chosen": False}).reason == "rejected answer"
    assert row_of(pair | {"rejected": True}).reason == "rejected answer"
    assert row_of(pair | {"chosen": True, "rejected": False}).unused == ()
    assert row_of(pair | {"rejected": "no"}).unused == ("column 'rejected'",)  # a text, which is not learnt


@pytest.mark.parametrize(
    "stage, fields", [("sft", {"messages": TALK}), ("classify", {"text": "t", "label": 1})]
)
def test_a_row_without_weight_is_left_out_with_its_reason(stage, fields):
    for weight in (0, 0.0, "0", -2):
        assert row_of(fields | {"weight": weight}, stage).reason == "no weight"
    assert row_of(fields | {"weight": 2}, stage).unused == ("column 'weight'",)


@pytest.mark.parametrize(
    "fields, mapping",
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "{prompt: prompt, completion: chosen}"),
        ({"question": "q", "chosen": "a", "rejected": "b"}, "{prompt: question, completion: chosen}"),
        ({"chosen": TALK, "rejected": TALK}, "{messages: chosen}"),
    ],
)
def test_preference_pairs_are_refused_with_a_way_to_learn_the_chosen(fields, mapping):
    reject = row_of(fields)
    assert reject.reason == "preference pair" and mapping in reject.remedy
    names = dict(part.split(": ") for part in mapping.strip("{}").split(", "))
    row = row_of(fields, columns=names)
    assert not isinstance(row, Reject) and row.unused[-1] == "column 'rejected'"


@pytest.mark.parametrize(
    "fields, stage, remedy",
    [
        ({"question": "q", "sentence": "s", "label": 1}, "sft", "stage=classify"),
        ({"messages": TALK}, "pretrain", "stage=sft"),
        ({"tokens": ["a"], "tags": ["O"]}, "sft", "stage=classify"),
        ({"text": "t"}, "classify", "stage=pretrain"),
    ],
)
def test_columns_that_another_stage_reads_are_told_so(fields, stage, remedy):
    assert remedy in row_of(fields, stage).remedy


WORDS = ["id", "system", "context", "input", "score", "label_text", "note"]


@given(st.dictionaries(st.sampled_from(WORDS), st.text("xyz ", max_size=4)), st.booleans())
def test_every_filled_column_reaches_the_row_or_is_named(extra, chat):
    core = {"instruction": "q", "output": "a"} if chat else {"prompt": "q", "completion": "a"}
    marked = {name: f"<{name}>{text}" if text.strip() else text for name, text in extra.items()}
    row = row_of(core | marked)
    texts = "".join(row.texts())
    for name, text in marked.items():
        assert (text in texts) != (f"column {name!r}" in row.unused) or not text.strip()


def test_the_report_names_what_is_not_read_with_its_share_even_from_the_cache(tmp_path, settings, llama):
    rows = [{"prompt": f"the cat {i}", "completion": "sat", "id": i} for i in range(200)]
    rows[7]["url"] = "x"
    for row in rows[:50]:
        row["note"] = "y"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        report = prepared(settings(train=str(tmp_path / "a.jsonl"), eval=0.1), llama, stage="sft").report
        assert [note for note in report.notes() if note.startswith("not read")] == [
            "not read: column 'id', in 100% of the rows",
            "not read: column 'note', in 25% of the rows",
            "not read: column 'url', in 1 of 200 rows",
        ]


def test_a_text_is_learnt_without_its_label_only_where_that_is_said():
    fields = {"text": "t", "label": 1}
    assert row_of(fields).reason == "a label, and stage is not classify"
    assert row_of(fields, format="text").unused == ("column 'label'",)
    assert row_of({"text": "t", "label": None}).unused == ()


def test_fields_remember_what_was_read():
    fields = Fields({"a": 1, "b": "x", "c": float("nan"), "d": [], "e": {"f": None}})
    assert fields.unread() == ["a", "b", "e"]
    assert fields["a"] == 1 and fields.get("z") is None and fields.peek("b") == "x"
    assert fields.unread() == ["b", "e"]
