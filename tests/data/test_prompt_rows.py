"""Rows that only ask: the prompt of every layout, and what is left of a row for reward functions."""

import json

import pytest

from graft.data.layouts import Accepts, recognise
from graft.data.preparation import load_rows
from graft.data.rows import ASKING, Record, Reject

ACCEPTS = Accepts("ppo", ("prompt",))
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Why?"}
SAY = {"role": "assistant", "content": "Because."}
NO = {"role": "assistant", "content": "No."}
AGAIN = {"role": "user", "content": "And then?"}
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]


def asked(columns=None, **fields):
    """The row of some columns."""
    return recognise(Record("f.jsonl:1", fields), ACCEPTS, columns=columns)


def talk(*turns):
    """The same turns as ShareGPT writes them."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "Why?"}, "Why?"),
        ({"question": "Why?"}, "Why?"),
        ({"query": "Why?"}, "Why?"),
        ({"input": "Why?"}, "Why?"),
        ({"prompt": "Why?", "context": "It rains."}, "It rains.\nWhy?"),
        ({"prompt": "Why?", "system": "Be brief."}, [SYSTEM, ASK]),
        ({"prompt": "Why?", "system_prompt": " "}, "Why?"),
        ({"prompt": [SYSTEM, ASK]}, [SYSTEM, ASK]),
        ({"prompt": [ASK], "system": "Be brief."}, [SYSTEM, ASK]),
        ({"prompt": "[1, 2] is what?"}, "[1, 2] is what?"),
        ({"instruction": "Why?"}, [ASK]),
        ({"instruction": "Add", "input": "1 2"}, [{"role": "user", "content": "Add\n1 2"}]),
        (
            {"instruction": "And then?", "history": [["Why?", "Because."]], "system": "Be brief."},
            [SYSTEM, ASK, SAY, AGAIN],
        ),
        ({"messages": [ASK, SAY]}, [ASK]),
        ({"messages": [SYSTEM, ASK, SAY, AGAIN]}, [SYSTEM, ASK, SAY, AGAIN]),
        ({"messages": [ASK, SAY, AGAIN, SAY, SAY]}, [ASK, SAY, AGAIN]),
        ({"messages": json.dumps([ASK, SAY])}, [ASK]),
        ({"conversations": talk(SYSTEM, ASK, SAY)}, [SYSTEM, ASK]),
        ({"conversation": talk(ASK), "system": "Be brief."}, [SYSTEM, ASK]),
        ({"prompt": "Why?", "chosen": "a", "rejected": "b"}, "Why?"),
        ({"chosen": [ASK, SAY], "rejected": [ASK, NO]}, [ASK]),
        (
            {"chosen": [ASK, SAY, AGAIN, SAY], "rejected": [ASK, SAY, AGAIN, NO]},
            [ASK, SAY, AGAIN],
        ),
        (
            {
                "chosen": "\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: And then?\n\nAssistant: x",
                "rejected": "\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: And then?\n\nAssistant: y",
            },
            [ASK, SAY, AGAIN],
        ),
    ],
)
def test_what_a_row_asks_is_found_in_every_layout(fields, prompt):
    row = asked(**fields)
    assert row.kind == ASKING and row.value[0] == prompt
    assert row.plain is isinstance(prompt, str)


def test_tools_come_with_a_conversation_and_with_no_text():
    assert asked(messages=[ASK], tools=TOOLS).tools == TOOLS
    assert asked(messages=[ASK], tools=json.dumps(TOOLS)).tools == TOOLS
    row = asked(prompt="Why?", tools=TOOLS)
    assert row.tools is None and row.value[1] == {"tools": TOOLS}  # a reward function may want them


def test_columns_that_the_prompt_does_not_take_arrive_and_the_others_do_not():
    nested = {"unit": "€", "steps": [1, [2.5, None], {"ok": True}]}
    row = asked(prompt="Why?", context="It rains.", answer=42, more=nested, empty=None, blank="  ", id=0)
    assert row.value[1] == {"answer": 42, "more": nested, "id": 0}
    assert row.unused == ()
    assert asked(prompt="Why?", chosen="a", rejected="b").value[1] == {"chosen": "a", "rejected": "b"}
    assert asked(chosen=[ASK, SAY], rejected=[ASK, NO], k=1).value[1] == {"k": 1}
    assert asked(messages=[ASK, SAY], answer="x").value[1] == {"answer": "x"}
    assert asked(instruction="Add", input="1 2", output="3").value[1] == {"output": "3"}


def test_texts_are_those_of_the_prompt_alone():
    """Columns for functions are never read by the model, so nothing in them is a control token."""
    assert list(asked(prompt="Why?", note="<|im_start|>").texts()) == ["Why?"]
    assert set(asked(messages=[ASK], tools=TOOLS, note="n").texts()) >= {"Why?", "clock"}
    assert "n" not in asked(messages=[ASK], tools=TOOLS, note="n").texts()


def test_names_of_columns_can_be_mapped():
    row = asked({"prompt": "problem"}, problem="Why?", prompt="an older one", answer="x")
    assert row.value == ("Why?", {"answer": "x"})
    missing = asked({"prompt": "problem"}, probem="Why?")
    assert isinstance(missing, Reject) and "did you mean 'probem'" in missing.remedy


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "  "}, "no prompt"),
        ({"prompt": 7}, "bad messages"),
        ({"prompt": "a\0b"}, "NUL byte"),
        ({"prompt": "half \ud83d"}, "not UTF-8"),
        ({"messages": [SAY]}, "no prompt"),
        ({"messages": []}, "bad messages"),
        ({"messages": [{"role": "user"}]}, "no prompt"),
        ({"instruction": 3}, "not text"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"answer": "b"}, "unknown columns"),
    ],
)
def test_a_row_that_asks_nothing_is_a_reject_with_its_reason(fields, reason):
    row = asked(**fields)
    assert isinstance(row, Reject), row
    assert row.reason == reason and row.remedy


def test_of_a_table_for_several_layouts_the_column_that_is_filled_asks():
    """Tables have null where a row has another layout."""
    assert asked(prompt=None, messages=[ASK, SAY]).value == ([ASK], {})
    assert asked(prompt=" ", question="Why?").value == ("Why?", {})
    assert asked(prompt=None, chosen=[ASK, SAY], rejected=[ASK, NO]).value == ([ASK], {})


def test_rows_of_one_prompt_belong_together_whatever_their_columns_say():
    """So that none of them is held out while another one is trained on."""
    one, two, other = asked(prompt="Why?", k=1), asked(prompt="Why?", k=2), asked(prompt="Who?", k=1)
    assert one.group() == two.group() != other.group()
    assert one.key() != two.key()


def test_a_file_that_mixes_texts_and_conversations_has_conversations(settings, tmp_path):
    """Else the chat template would write some prompts of the file and not the others."""
    mixed, plain = tmp_path / "mixed.jsonl", tmp_path / "plain.jsonl"
    mixed.write_text('{"prompt": "Why?", "k": 1}\n{"prompt": "Why?", "system": "Be brief.", "k": 2}\n')
    plain.write_text('{"prompt": "Who?", "k": 3}\n')
    rows = load_rows(settings(train=[str(mixed), str(plain)]), ACCEPTS).train
    assert [row.value for row in rows] == [
        ([ASK], {"k": 1}),
        ([SYSTEM, ASK], {"k": 2}),
        ("Who?", {"k": 3}),
    ]
