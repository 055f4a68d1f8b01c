"""Votes between two answers become pairs and verdicts, where they tell of any."""

import pytest

from graft.data.convert import convert
from graft.data.rows import Record
from graft.data.votes import is_vote, vote_rows

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER = [TALK[0], {"role": "assistant", "content": "b"}]


def record(fields, source="f:1"):
    return Record(source, fields)


def vote(word, **names):
    return {"prompt": "q", "answer_a": "a", "answer_b": "b", "vote": word} | names


@pytest.mark.parametrize(
    "word, pair, verdicts",
    [
        ("a", ("a", "b"), [("a", True), ("b", False)]),
        ("B", ("b", "a"), [("a", False), ("b", True)]),
        ("model_b", ("b", "a"), [("a", False), ("b", True)]),
        ("tie", None, None),
        ("bad", None, [("a", False), ("b", False)]),
        ("tie (bothbad)", None, [("a", False), ("b", False)]),
        ("both_good", None, [("a", True), ("b", True)]),
    ],
)
def test_a_vote_is_a_pair_and_two_verdicts_where_it_says_so(word, pair, verdicts):
    made = convert([record(vote(word))], "preference")
    assert [(row["chosen"], row["rejected"]) for row in made.rows] == ([pair] if pair else [])
    assert [reject.source for reject in made.left] == ([] if pair else ["f:1"])
    made = convert([record(vote(word))], "judged")
    assert [(row["completion"], row["label"]) for row in made.rows] == (verdicts or [])
    assert [reject.reason for reject in made.left] == ([] if verdicts else ["tie"])


@pytest.mark.parametrize(
    "fields",
    [
        {"conversation_a": TALK, "conversation_b": OTHER, "winner": "model_a"},  # LMSYS
        {"prompt": "q", "response_a": "a", "response_b": "b"}
        | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        {"question": "q", "output_a": "a", "output_b": "b", "verdict": 1},
    ],
)
def test_votes_of_published_sets_are_recognised(fields):
    assert is_vote(fields)
    (row,) = vote_rows("f:1", fields, "preference")
    assert row.kind == "ranking" and "'a'" in repr(row.value[1][0]) and "'b'" in repr(row.value[1][1])


@pytest.mark.parametrize(
    "fields, reason",
    [
        (vote("perhaps"), "bad vote"),
        (vote("a", answer_b=""), "no answer"),
        (vote("a", answer_b="a"), "identical answers"),
        (vote("a", prompt=None), "no prompt"),
        ({"prompt": "q", "response_a": "a", "response_b": "b"}
         | {"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0}, "bad vote"),
    ],
)  # fmt: skip
def test_votes_that_cannot_be_read_are_named(fields, reason):
    assert [reject.reason for reject in convert([record(fields)], "preference").left] == [reason]


def test_what_a_vote_says_beside_is_named_and_half_a_character_is_refused():
    made = convert(
        [record(vote("a", model_a="m", turn=1)), record(vote("a", answer_b="\ud800"), "f:2")], "sft"
    )
    assert made.unused == {"column 'model_a'": 1, "column 'turn'": 1, "worse answers of a ranking": 1}
    assert [(reject.source, reject.reason) for reject in made.left] == [("f:2", "not UTF-8")]
