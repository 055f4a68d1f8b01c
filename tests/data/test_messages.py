"""Turns of files become messages: speakers, empty turns, weights, nulls of tables."""

import pytest

from graft.data.messages import messages_of, with_answer
from graft.data.rows import BadRow

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def read(*turns):
    return messages_of(list(turns), "role", "content")


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("human", "user"), ("User", "user"), ("gpt", "assistant"), ("ASSISTANT", "assistant"),
        ("model", "assistant"),
        ("bot", "assistant"), ("function_call", "assistant"), ("observation", "tool"), ("function", "tool"),
        ("critic", "critic"), ("ipython", "ipython"),
    ],
)  # fmt: skip
def test_speakers_have_our_roles_and_unknown_ones_their_own(speaker, role):
    assert [m["role"] for m in read({"role": speaker, "content": "a"}, ANSWER)] == [role, "assistant"]


@pytest.mark.parametrize(
    ("speaker", "near"), [("usr", "user"), ("asistant", "assistant"), ("sytem", "system")]
)
def test_a_misspelt_speaker_is_named_with_the_nearest(speaker, near):
    with pytest.raises(BadRow) as caught:
        read({"role": speaker, "content": "a"}, ANSWER)
    assert caught.value.args[0] == "bad role" and near in caught.value.args[2]


@pytest.mark.parametrize("empty", ["", " \n", None, [], [{"type": "text", "text": ""}]])
def test_an_empty_system_turn_means_none(empty):
    for role in ("system", "developer"):
        assert read({"role": role, "content": empty}, USER, ANSWER) == [USER, ANSWER]
    with pytest.raises(BadRow, match="no prompt"):
        read({"role": "user", "content": empty}, ANSWER)


@pytest.mark.parametrize(
    "turns",
    [[ANSWER, USER, ANSWER], [USER, USER, ANSWER], [USER, ANSWER, ANSWER],
     [USER, {"role": "system", "content": "s"}, ANSWER]],
)  # fmt: skip
def test_roles_may_follow_each_other_in_any_order(turns):
    assert with_answer(read(*turns)) == turns


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize(
    ("value", "learnt"),
    [(0, False), (False, False), (0.0, False), ("false", False), ("0", False),
     (1, True), (True, True), (1.0, True), ("True", True), (None, True)],
)  # fmt: skip
def test_a_weight_takes_an_answer_out_or_says_nothing(key, value, learnt):
    (_, answer) = read(USER, ANSWER | {key: value})
    assert answer == (ANSWER if learnt else ANSWER | {"weight": 0})


def test_a_weight_of_a_question_is_kept_only_where_it_asks_to_learn_it():
    assert read(USER | {"train": False}, ANSWER)[0] == USER
    assert read(USER | {"train": True}, ANSWER)[0] == USER | {"weight": 1}


@pytest.mark.parametrize(
    "weights", [{"weight": 0.5}, {"loss": -1}, {"weight": 2}, {"train": "yes"}, {"weight": 0, "train": 1}]
)
def test_other_weights_are_refused(weights):
    with pytest.raises(BadRow, match="bad weight"):
        read(USER, ANSWER | weights)


def call(**arguments):
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


def test_nulls_of_a_table_with_typed_columns_are_left_out_at_every_depth():
    """pyarrow's to_pylist of these two rows: every struct has the keys of all others."""
    pyarrow = pytest.importorskip("pyarrow")
    turns = [USER, ANSWER | {"tool_calls": [call(city="Oslo"), call(a=1)]}]
    (back,) = pyarrow.Table.from_pylist([{"messages": turns}]).to_pylist()
    assert back["messages"][0]["tool_calls"] is None
    assert back["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo", "a": None}
    assert read(*back["messages"]) == turns


def test_a_null_that_a_person_wrote_is_an_argument():
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [call(city=None)]}]
    assert read(*turns)[1]["tool_calls"] == [call(city=None)]
    texts = [{"function": {"name": "f", "arguments": '{"city": null}'}}]
    filled = [USER | {"tool_calls": None}, ANSWER | {"tool_calls": texts}]
    assert read(*filled)[1]["tool_calls"] == texts


def test_calls_may_be_a_json_text_empty_or_of_the_first_interface():
    (_, answer) = read(USER, ANSWER | {"tool_calls": '[{"function": {"name": "f", "arguments": {}}}]'})
    assert answer["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]
    assert read(USER, ANSWER | {"tool_calls": []}) == [USER, ANSWER]
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    (_, answer) = read(USER, old)
    assert answer["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert "function_call" not in answer


def test_an_answer_may_consist_of_reasoning_or_of_calls_alone():
    for rest in ({"reasoning_content": "r"}, {"thinking": "t"}, {"tool_calls": [call()]}):
        assert (
            read(USER, {"role": "assistant", "content": None} | rest)[1]
            == {"role": "assistant", "content": ""} | rest
        )
