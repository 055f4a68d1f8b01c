"""What held-out rows ask a model by."""

from stage_tools import stage_named

from graft.data.rows import Row

ASK, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM, TOOLS = {"role": "system", "content": "s"}, [{"name": "f"}]


def test_rows_ask_with_all_that_their_answer_depends_on():
    rows = [
        Row("f:1", "pair", ("a", "b")),
        Row("f:2", "chat", [ASK, ANSWER]),  # the same text: each model asks it in its own way
        Row("f:3", "chat", [SYSTEM, ASK, ANSWER]),
        Row("f:4", "chat", [ASK, ANSWER, ASK, ANSWER]),
        Row("f:5", "chat", [ASK, ANSWER], TOOLS),
        Row("f:6", "chat", [ANSWER]),
        Row("f:7", "text", "t"),
    ]
    assert stage_named("sft").questions(rows) == [
        "a", [SYSTEM, ASK], [ASK, ANSWER, ASK], {"messages": [ASK], "tools": TOOLS},
    ]  # fmt: skip
