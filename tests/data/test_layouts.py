"""Rows are recognised by their columns and brought into one form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_tools import accepts

from graft.data.layouts import check_settings, recognise
from graft.data.rows import Record, Reject
from graft.errors import UsageError

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
SAME = {
    "messages": {"messages": [USER, ANSWER]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "alpaca response": {"instruction": "a", "response": "b", "category": "c"},
    "lists": {"prompt": [USER], "completion": [ANSWER]},
}


@pytest.mark.parametrize("name", SAME)
def test_every_layout_of_a_conversation_gives_the_same_messages(name):
    row = recognise(Record("f:1", SAME[name]), accepts("sft"))
    assert (row.source, row.kind, row.value) == ("f:1", "chat", [USER, ANSWER])


def test_system_input_history_and_tools_find_their_places():
    alpaca = {"instruction": "c", "input": "d", "output": "e", "system": "s", "history": [["a", "b"]]}
    last = [{"role": "user", "content": "c\nd"}, {"role": "assistant", "content": "e"}]
    assert recognise(Record("f:1", alpaca), accepts("sft")).value == [SYSTEM, USER, ANSWER, *last]
    turns = [("human", "a"), ("function_call", "f()"), ("observation", "1"), ("gpt", "b")]
    shared = {
        "conversations": [{"from": w, "value": v} for w, v in turns],
        "system": "s",
        "tools": '[{"name": "f"}]',
    }
    row = recognise(Record("f:1", shared), accepts("sft"))
    assert [m["role"] for m in row.value] == ["system", "user", "assistant", "tool", "assistant"]
    assert row.tools == [{"name": "f"}]


def test_only_the_completion_is_learnt_where_prompt_and_completion_are_lists():
    fields = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert recognise(Record("f:1", fields), accepts("sft")).first == 3


@pytest.mark.parametrize(
    "names",
    [
        "prompt completion",
        "prompt response",
        "question answer",
        "query response",
        "input target",
        "input output",
    ],
)
def test_texts_stay_texts(names):
    ask, answer = names.split()
    row = recognise(Record("f:1", {ask: "a", answer: "b", "id": 7}), accepts("sft"))
    assert (row.kind, row.value) == ("pair", ("a", "b"))


def test_the_stage_decides_between_readings_of_the_same_columns():
    fields = {"text": "a", "label": 3}
    assert recognise(Record("f:1", fields), accepts("classify")).value == ("a", 3)
    assert recognise(Record("f:1", fields), accepts("pretrain")).value == "a"
    assert isinstance(recognise(Record("f:1", fields), accepts("sft")), Reject)


@pytest.mark.parametrize("names", ["tokens tags", "words ner_tags", "tokens labels"])
def test_words_with_tags_are_recognised_by_their_columns(names):
    words, tags = names.split()
    row = recognise(
        Record("f:1", {words: ["Anna", "left"], tags: ["B-PER", "O"], "id": 7}), accepts("classify")
    )
    assert (row.kind, row.value) == ("tags", (["Anna", "left"], ["B-PER", "O"]))
    assert row.texts() == ["Anna", "left", "B-PER", "O"]
    assert (
        recognise(Record("f:1", {words: ["Anna"], tags: ["O"]}), accepts("sft")).reason == "unknown columns"
    )


def test_numbers_are_tags_where_their_names_are_given():
    fields = {"tokens": ["Anna", "left"], "ner_tags": [1, 0]}
    reject = recognise(Record("f:1", fields), accepts("classify"))
    assert reject.reason == "tag without a name" and "data.tag_names" in reject.remedy
    assert recognise(Record("f:1", fields), accepts("classify"), tag_names=["O", "B-PER"]).value[1] == [
        "B-PER",
        "O",
    ]
    assert recognise(Record("f:1", fields), accepts("classify"), tag_names=["O"]).detail == "ner_tags[0] is 1"


def test_columns_and_format_overrule_recognition():
    row = recognise(
        Record("f:1", {"text": "t", "mr": "a", "ref": "b"}),
        accepts("sft"),
        "auto",
        {"prompt": "mr", "completion": "ref"},
    )
    assert row.value == ("a", "b")
    row = recognise(Record("f:1", {"text": "t", "prompt": "a", "completion": "b"}), accepts("sft"), "text")
    assert row.value == "t"
    reject = recognise(Record("f:1", {"mrs": "a", "ref": "b"}), accepts("sft"), "auto", {"prompt": "mr"})
    assert reject.reason == "missing column" and "mrs" in reject.remedy


def test_wrong_words_in_the_settings_are_refused_with_the_nearest():
    for arguments, near in [(("sft", "alpacca", {}), "alpaca"), (("sft", "auto", {"promt": "x"}), "prompt")]:
        with pytest.raises(UsageError) as caught:
            check_settings(*arguments)
        assert near in caught.value.remedy
    with pytest.raises(UsageError):
        check_settings(accepts("pretrain"), "alpaca", {})


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "gpt", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner)
    ),
    max_leaves=8,
)
NAMES = [
    "text",
    "label",
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "output",
    "history",
    "tools",
    "tokens",
    "tags",
]


@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.sampled_from(["sft", "pretrain", "classify"]))
def test_any_values_in_known_columns_become_rows_or_rejects(fields, stage):
    row = recognise(Record("f:1", fields), accepts(stage))
    assert row.source == "f:1" and (row.reason if isinstance(row, Reject) else row.key())
