"""Trees of messages: every message is in a result, or named with its reason."""

import gzip
import json
import random
from itertools import combinations
from pathlib import Path

import pytest

from graft.data.rows import Record
from graft.data.trees import conversations, is_tree, plant, rankings

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def message(name, parent, text, rank=None, role=None, **more):
    role = role or ("assistant" if text.startswith("a") else "prompter")
    fields = {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": "en"}
    return fields | {"deleted": False, "review_result": True} | more


# q1 -> a1 (rank 1), a0 (rank 0), ax (no rank); a0 -> q2 (rank 1) -> a2 ; a0 -> q3 (rank 0) -> a4 (1), a3 (0)
TREE = [
    message("1", None, "q1"),
    message("2", "1", "a1", 1),
    message("3", "1", "a0", 0),
    message("4", "1", "ax"),
    message("5", "3", "q2", 1),
    message("6", "5", "a2"),
    message("7", "3", "q3", 0),
    message("8", "7", "a4", 1),
    message("9", "7", "a3", 0),
]


def records(messages):
    return [Record(f"f:{i}", fields) for i, fields in enumerate(messages, 1)]


def nested(messages):
    """The same tree as one row."""
    by_name = {fields["message_id"]: fields | {"replies": []} for fields in messages}
    for fields in by_name.values():
        if fields["parent_id"] in by_name:
            by_name[fields["parent_id"]]["replies"].append(fields)
    (root,) = [fields for fields in by_name.values() if fields["parent_id"] is None]
    return Record("g:1", {"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": root})


def said(row):
    if row.kind == "chat":
        return " ".join(turn["content"] for turn in row.value)
    prompt, answers, scores = row.value
    return " ".join(turn["content"] for turn in prompt), [turn["content"] for (turn,) in answers], scores


def reasons(left):
    return {message.name: reject.reason for message, reject in left.items()}


def test_every_question_with_ranked_answers_is_a_ranking():
    messages, left = plant(records(TREE))
    rows, rest = rankings(messages)
    assert [said(row) for row in rows] == [
        ("q1", ["a0", "a1"], None), ("q1 a0 q3", ["a3", "a4"], None),
    ]  # fmt: skip
    assert [turn["role"] for turn in rows[1].value[0]] == ["user", "assistant", "user"]
    assert not left and reasons(rest) == {name: "compared with none" for name in ("4", "5", "6")}


def test_answers_of_one_rank_are_not_compared_and_equal_ones_are_named():
    tied = [*TREE[:3], message("4", "1", "a5", 0), message("5", "1", "a0", 3)]
    rows, rest = rankings(plant(records(tied))[0])
    assert [said(row) for row in rows] == [("q1", ["a0", "a5", "a1"], (0.0, 0.0, -1.0))]
    assert reasons(rest) == {"5": "identical answers"}
    rows, rest = rankings(plant(records([TREE[0], TREE[1], message("3", "1", "a0", 1)]))[0])
    assert not rows and len(rest) == 3


@pytest.mark.parametrize(
    "paths, talks, unused",
    [
        ("best", ["q1 a0 q3 a3"], {"2", "4", "5", "6", "8"}),
        ("all", ["q1 a1", "q1 a0 q2 a2", "q1 a0 q3 a4", "q1 a0 q3 a3", "q1 ax"], set()),
        ("each", ["q1 a0", "q1 a0 q2 a2", "q1 a0 q3 a3"], {"2", "4", "8"}),
    ],
)
def test_paths_through_a_tree_are_conversations(paths, talks, unused):
    rows, rest = conversations(plant(records(TREE))[0], paths)
    assert sorted(map(said, rows)) == sorted(talks) and reasons(rest).keys() == unused
    if paths == "each":  # earlier answers are learnt in the row in which they are the last
        assert [row.first for row in rows] == [len(row.value) - 1 for row in rows]


def test_a_path_ends_with_an_answer():
    open_ended = [*TREE[:3], message("4", "3", "q2")]
    for paths in ("best", "all", "each"):
        rows, rest = conversations(plant(records(open_ended))[0], paths)
        assert "q1 a0" in map(said, rows) and reasons(rest)["4"] == "not on a path"


def test_a_nested_tree_is_the_same_tree_in_any_order_of_its_messages():
    expected = [said(row) for row in rankings(plant(records(TREE))[0])[0]]
    assert [said(row) for row in rankings(plant([nested(TREE)])[0])[0]] == expected
    shuffled = random.Random(0).sample(TREE, len(TREE))
    assert sorted(said(row) for row in rankings(plant(records(shuffled))[0])[0]) == sorted(expected)


def test_what_cannot_be_used_is_named_with_all_that_follows_it():
    bad = [
        message("1", None, "q1"),
        message("2", "1", "a0", 0, deleted=True),
        message("3", "2", "q2"),
        message("4", "1", "a1", 1, review_result=False),
        message("5", "1", "", 2, role="assistant"),
        message("6", "1", "a2", 3, role="bot"),
        message("1", None, "q9"),
        message("7", "nowhere", "a3"),
        message("8", "9", "q4"), message("9", "8", "a4"),  # each answers the other
        message("10", None, "q5", lang="de"),
        message("11", "10", "a5", lang="de"),
    ]  # fmt: skip
    messages, left = plant(records(bad), lang="en")
    assert [m.name for m in messages] == ["1"]
    assert [(m.name, reject.reason) for m, reject in left.items()] == [
        ("2", "deleted"), ("4", "failed review"), ("5", "empty message"), ("6", "bad role"),
        ("1", "repeated message"), ("10", "other language"), ("11", "other language"),
        ("3", "nothing before it"), ("7", "nothing before it"), ("8", "nothing before it"),
        ("9", "nothing before it"),
    ]  # fmt: skip
    assert [reject.source for reject in left.values()][:2] == ["f:2", "f:4"]


def test_replies_that_are_no_objects_are_named():
    tree = Record("f:1", {"text": "q1", "role": "prompter", "message_id": "1", "replies": [3, {"text": "a"}]})
    messages, left = plant([tree])
    assert len(messages) == 1 and [reject.reason for reject in left.values()] == ["bad role", "bad role"]


def test_trees_are_told_from_other_rows():
    assert is_tree(TREE[0]) and is_tree(nested(TREE).fields)
    for other in ({"prompt": "q", "completion": "a"}, {"prompt": [], "chosen": []}, {"text": "t"}):
        assert not is_tree(other)


def test_a_very_deep_tree_is_no_trouble():
    deep = [message(str(i), str(i - 1) if i else None, "aq"[i % 2 == 0] + str(i), 0) for i in range(5000)]
    (row,) = conversations(plant(records(deep))[0], "best")[0]
    assert len(row.value) == 5000


@pytest.mark.slow
def test_the_rankings_of_open_assistants_sample_give_its_pairs():
    """The pairs were made by others from the trees; here the trees are put together from the pairs again."""
    path = SHARED / "oasst_sample" / "pairs.jsonl.gz"
    if not path.exists():
        pytest.skip("oasst_sample is not beside the repository")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        pairs = [json.loads(line) for line in stream]
    flat: dict[str, dict] = {}

    def grow(tree, talk, rank=None):
        """Add the messages of a conversation; return the name of the last one."""
        above = grow(tree, talk[:-1]) if len(talk) > 1 else None
        name = json.dumps([tree, talk])
        known = flat.setdefault(name, message(name, above, talk[-1]["content"], role=talk[-1]["role"]))
        known["rank"] = rank if rank is not None else known["rank"]
        return name

    for pair in pairs:
        for side in ("chosen", "rejected"):
            answer = {"role": "assistant", "content": pair[side]}
            grow(pair["tree"], [*pair["prompt"], answer], pair[f"rank_{side}"])
    rows, _ = rankings(plant(records(list(flat.values())))[0])
    found = [
        (row.value[0], better[0]["content"], worse[0]["content"])
        for row in rows for better, worse in combinations(row.value[1], 2)
    ]  # fmt: skip
    expected = [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs]
    assert sorted(map(repr, found)) == sorted(map(repr, expected)) and len(found) == 562
