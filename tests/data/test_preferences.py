"""Rows that compare answers: the columns of published sets, prompts written apart and prompts in common."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.data.layouts import Accepts, recognise
from graft.data.rows import Record, Reject, Row, alike, as_chat, compared, with_answers

STAGE = Accepts("preference", ("preference", "ranking", "judged"))
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def row_of(fields, **settings):
    return recognise(Record("f:1", fields), STAGE, **settings)


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


TALKS = {"chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")]}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
PAIR = {"chosen": "a", "rejected": "b"}
CHAT = ([user("q")], ([says("a")], [says("b")]), None)


@pytest.mark.parametrize(
    "fields, value",
    [
        (PAIR | {"prompt": "q"}, ("q", ("a", "b"), None)),  # trl-lib/tldr-preference
        (PAIR | {"question": "q"}, ("q", ("a", "b"), None)),
        (HH, CHAT),  # Anthropic/hh-rlhf
        (TALKS, CHAT),  # trl-lib/Capybara-Preferences
        (TALKS | {"prompt": "q"}, CHAT),  # argilla/ultrafeedback-binarized-preferences-cleaned
        (TALKS | {"prompt": [user("q")]}, CHAT),
        (
            {"prompt": [user("q")], "chosen": [says("a")], "rejected": [says("b")]},
            CHAT,
        ),  # trl-lib/hh-rlhf-...
        ({"prompt": "q", "chosen": says("a"), "rejected": says("b")}, CHAT),
        (
            {"conversations": [{"from": "human", "value": "q"}]}  # LLaMA-Factory
            | {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
            CHAT,
        ),
        (PAIR | {"instruction": "q", "input": ""}, CHAT),
        (
            PAIR | {"system": "s", "question": "q"},  # Intel/orca_dpo_pairs
            ([{"role": "system", "content": "s"}, user("q")], ([says("a")], [says("b")]), None),
        ),
        (PAIR | {"system": "", "question": "q"}, CHAT),
        (
            {"instruction": "q", "chosen_response": "a", "rejected_response": "b"}  # argilla/...-preferences
            | {"chosen_avg_rating": 4.5, "rejected_avg_rating": 2.0},
            (*CHAT[:2], (4.5, 2.0)),
        ),
        (TALKS | {"score_chosen": 8.5, "score_rejected": 7}, (*CHAT[:2], (8.5, 7.0))),  # HuggingFaceH4/...
        (TALKS | {"chosen_score": "8.5", "rejected_score": 7}, (*CHAT[:2], (8.5, 7.0))),
        (TALKS | {"chosen-rating": 5.0, "rejected-rating": 3.75}, (*CHAT[:2], (5.0, 3.75))),
        (PAIR | {"prompt": "q", "margin": 1.5}, ("q", ("a", "b"), (1.5, 0.0))),
        (PAIR | {"prompt": "q", "margin": 0}, ("q", ("a", "b"), None)),
        (PAIR | {"prompt": "q", "rank_chosen": 0, "rank_rejected": 3}, ("q", ("a", "b"), None)),
    ],
)
def test_pairs_of_published_sets_become_rankings_of_two(fields, value):
    row = row_of(fields)
    assert (row.kind, row.value) == ("ranking", value) and not row.unused


OBJECTS = [{"response": "b", "overall_score": 2.0}, {"response": "a", "overall_score": 9.5}]


@pytest.mark.parametrize(
    "fields, value",
    [
        ({"prompt": "q", "responses": ["b", "a"], "scores": [1, 2]}, ("q", ("a", "b"), (2.0, 1.0))),
        ({"prompt": "q", "generations": ["b", "a"], "ratings": ["1.5", 2]}, ("q", ("a", "b"), (2.0, 1.5))),
        ({"prompt": "q", "completions": ["b", "a"], "ranks": [2, 1]}, ("q", ("a", "b"), None)),
        (
            {"prompt": "q", "completions": ["c", "b", "a"], "ranks": [2, 2, 1]},  # two that nobody compared
            ("q", ("a", "c", "b"), (-1.0, -2.0, -2.0)),
        ),
        ({"instruction": "q", "completions": OBJECTS}, (*CHAT[:2], (9.5, 2.0))),  # openbmb/UltraFeedback
        (
            {"prompt": "q", "answers": [{"answer": "b", "rank": 3.0}, {"answer": "a", "rank": 1.0}]},
            ("q", ("a", "b"), None),  # berkeley-nest/Nectar
        ),
        (
            {"prompt": [user("q")], "responses": [[says("b")], [says("a")]], "scores": [0, 1]},
            (*CHAT[:2], (1.0, 0.0)),
        ),
        (
            {"prompt": "q", "completions": {"response": ["b", "a"], "score": [1, 2]}},  # by columns
            ("q", ("a", "b"), (2.0, 1.0)),
        ),
    ],
)
def test_several_answers_are_ordered_by_their_scores_or_ranks(fields, value):
    row = row_of(fields)
    assert (row.kind, row.value) == ("ranking", value) and not row.unused


@pytest.mark.parametrize(
    "fields, value",
    [
        ({"prompt": "q", "completion": "a", "label": True}, ("q", "a", True)),
        ({"prompt": "q", "completion": "a", "label": 0}, ("q", "a", False)),
        (
            {"prompt": [user("q")], "completion": [says("a")], "label": False},
            ([user("q")], [says("a")], False),
        ),
        ({"messages": [user("q"), says("a")], "label": True}, ([user("q")], [says("a")], True)),
        (
            {
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "kto_tag": "false",
            },
            ([user("q")], [says("a")], False),
        ),
        ({"instruction": "q", "input": "", "output": "a", "kto_tag": True}, ([user("q")], [says("a")], True)),
        ({"instruction": "q", "input": "i", "output": "a", "label": 1}, ([user("q\ni")], [says("a")], True)),
        ({"source": "q", "target": "a", "label": 1}, ("q", "a", True)),
        (
            {"messages": [user("q"), says("a"), user("r"), says("b")], "label": 1},
            ([user("q"), says("a"), user("r")], [says("b")], True),
        ),
        (
            {"system": "s", "prompt": "q", "completion": "a", "label": 1},
            ([{"role": "system", "content": "s"}, user("q")], [says("a")], True),
        ),
    ],
)
def test_answers_with_a_verdict_keep_it(fields, value):
    row = row_of(fields)
    assert (row.kind, row.value) == ("judged", value) and not row.unused


def test_a_prompt_in_common_ends_at_a_turn_never_inside_an_answer():
    begin = [user("q"), says("The answer is"), user("which?")]
    fields = {"chosen": [*begin, says("The answer is 4")], "rejected": [*begin, says("The answer is 5")]}
    assert row_of(fields).value == (
        begin, ([says("The answer is 4")], [says("The answer is 5")]), None
    )  # fmt: skip
    texts = {
        name: "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in talk)
        for name, talk in fields.items()
    }
    assert row_of(texts).value == row_of(fields).value


def test_a_conversation_that_goes_on_after_the_other_ends_is_an_answer_of_several_turns():
    long = [user("q"), says("a"), user("r"), says("b")]
    row = row_of({"chosen": [user("q"), says("a")], "rejected": long})
    assert row.value == ([user("q")], ([says("a")], long[1:]), None)
    row = row_of({"prompt": [user("q")], "chosen": long, "rejected": [*long[:3], says("c")]})
    assert row.value == ([user("q")], (long[1:], [*long[1:3], says("c")]), None)  # the prompt is given


def test_tools_and_their_calls_stay_with_the_conversation():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "1"}
    fields = {
        "chosen": [user("q"), call, result, says("a")],
        "rejected": [user("q"), call, result, says("b")],
        "tools": [{"name": "f"}],
    }
    row = row_of(fields)
    assert row.value[0] == [user("q"), call, result] and row.tools == [{"name": "f"}]
    fields["rejected"] = [user("q"), says("b")]
    row = row_of(fields)
    assert row.value == ([user("q")], ([call, result, says("a")], [says("b")]), None)


def test_tools_of_texts_are_named_for_no_text_shows_them():
    row = row_of(PAIR | {"prompt": "q", "tools": [{"name": "f"}]})
    assert row.tools is None and row.unused == ("column 'tools'",)


def test_a_column_that_holds_the_conversation_again_does_no_harm():
    row = row_of(TALKS | {"conversation": [{"input": "q", "output": "a"}], "messages": TALKS["chosen"]})
    assert row.value == CHAT and row.unused == ("column 'conversation'", "column 'messages'")


def test_a_long_prompt_repeated_before_its_answers_is_no_part_of_them():
    prompt = "Write a poem about rain."
    row = row_of({"prompt": prompt, "chosen": f"{prompt} Drip.", "rejected": f"{prompt} Drop."})
    assert row.value == (prompt, (" Drip.", " Drop."), None) and "the prompt" in row.unused[0]
    row = row_of({"prompt": "Hello", "chosen": "Hello you.", "rejected": "Hello me."})
    assert row.value[1] == ("Hello you.", "Hello me.")  # an answer may well begin with a word


@pytest.mark.parametrize(
    "fields, reason",
    [
        (PAIR, "no prompt"),
        (PAIR | {"prompt": ""}, "no prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "no answer"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "no answer"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "no answer"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical answers"),
        ({"prompt": "q", "chosen": [says("a")], "rejected": "a"}, "identical answers"),
        ({"chosen": HH["chosen"], "rejected": HH["chosen"]}, "identical answers"),
        ({"chosen": HH["chosen"], "rejected": HH["chosen"].rpartition(" ")[0]}, "no answer"),
        ({"chosen": TALKS["chosen"], "rejected": TALKS["rejected"][:1]}, "no answer"),
        ({"chosen": TALKS["chosen"], "rejected": [user("r"), says("b")]}, "no common prompt"),
        ({"chosen": [says("a")], "rejected": [says("b")]}, "no prompt"),
        (PAIR | {"prompt": [user("q"), says("a")]}, "no prompt"),
        (TALKS | {"prompt": "other"}, "prompt differs"),
        (TALKS | {"prompt": [user("other")]}, "prompt differs"),
        (PAIR | {"prompt": "q", "score_chosen": 1, "score_rejected": 2}, "contradiction"),
        (PAIR | {"prompt": "q", "rank_chosen": 2, "rank_rejected": 1}, "contradiction"),
        (PAIR | {"prompt": "q", "margin": -1}, "contradiction"),
        (PAIR | {"prompt": "q", "score_chosen": 2, "score_rejected": 2.0001}, "no preference"),
        (PAIR | {"prompt": "q", "margin": "much"}, "bad score"),
        (PAIR | {"prompt": "q", "margin": 1e9}, "bad score"),
        ({"prompt": "q", "chosen": True, "rejected": False}, "not text"),
        ({"prompt": "q", "responses": ["a", "b"]}, "no scores"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, None]}, "no scores"),
        ({"prompt": "q", "responses": ["a"], "scores": [1]}, "one answer"),
        ({"prompt": "q", "responses": "a", "scores": [1]}, "one answer"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "unequal lengths"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, "no preference"),
        ({"prompt": "q", "responses": ["a", "a", "b"], "scores": [1, 2, 3]}, "identical answers"),
        ({"prompt": "q", "responses": ["a", {"model": "m"}], "scores": [1, 2]}, "no answer"),
        ({"prompt": "q", "completion": "a", "label": "maybe"}, "bad label"),
        ({"prompt": "q", "completion": "", "label": True}, "no answer"),
        ({"messages": [says("a")], "label": True}, "no common prompt"),
    ],
)
def test_what_cannot_be_learnt_is_rejected_with_its_reason(fields, reason):
    reject = row_of(fields)
    assert isinstance(reject, Reject) and reject.reason == reason and reject.remedy


def test_equal_answers_that_nobody_compares_do_no_harm():
    row = row_of({"prompt": "q", "responses": ["a", "b", "a"], "scores": [1, 2, 1]})
    assert row.value == ("q", ("b", "a", "a"), (2.0, 1.0, 1.0))


def test_what_objects_say_beside_their_text_is_named():
    given = {"model": "m", "response": "a", "overall_score": 3, "critique": "c"}
    fields = {"prompt": "q", "completions": [given, {"response": "b", "overall_score": 1}, {"response": "c"}]}
    row = row_of(fields | {"id": 7})
    assert row.value == ("q", ("a", "b"), (3.0, 1.0))
    assert set(row.unused) == {
        "model of completions", "critique of completions", "answers without a score", "column 'id'",
    }  # fmt: skip


def test_columns_of_other_names_are_mapped():
    row = row_of(
        {"q": "x", "good": "a", "bad": "b"}, columns={"prompt": "q", "chosen": "good", "rejected": "bad"}
    )
    assert row.value == ("x", ("a", "b"), None)


def test_other_stages_say_which_stage_learns_from_a_pair():
    reject = recognise(Record("f:1", HH), Accepts("sft", ("messages", "prompt_completion", "text")))
    assert reject.reason == "preference pair" and "stage=preference or stage=reward" in reject.remedy


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"message_id": "1", "parent_id": "0", "text": "t", "role": "prompter", "labels": {}}, "trees"),
        ({"message_tree_id": "1", "tree_state": "ready", "prompt": {"text": "q", "replies": []}}, "trees"),
        ({"prompt": "q", "answer_a": "a", "answer_b": "b", "vote": "a"}, "votes"),
    ],
)
def test_trees_and_votes_are_not_rows_and_say_how_to_become_some(fields, word):
    for stage in (STAGE, Accepts("sft", ("messages", "prompt_completion", "text"))):
        reject = recognise(Record("f:1", fields), stage)
        assert reject.reason == "unknown columns" and f"turn {word} into rows first" in reject.remedy


def test_one_conversation_in_a_file_makes_conversations_of_its_other_rows():
    plain = Row("f:1", "ranking", ("q", ("a", "b"), None))
    judged = Row("f:2", "judged", ("q", "a", True))
    talk = Row("f:3", "ranking", CHAT)
    assert [row.value for row in alike([plain, judged, talk])] == [
        CHAT, ([user("q")], [says("a")], True), CHAT,
    ]  # fmt: skip
    assert alike([plain, judged]) == [plain, judged] and as_chat(plain).value == CHAT


def test_each_answer_can_be_had_after_its_prompt():
    assert [row.value for row in with_answers(Row("f:1", "ranking", ("q", ("a", "b"), None)))] == [
        ("q", "a"), ("q", "b"),
    ]  # fmt: skip
    first, _ = with_answers(Row("f:1", "ranking", CHAT, tools=["t"]))
    assert (first.kind, first.value, first.first, first.tools) == ("chat", [user("q"), says("a")], 1, ["t"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from(["user", "assistant", "q", "\n\nHuman: q\n\nAssistant: a"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "response", "score", "rank"]), inner),
    max_leaves=8,
)  # fmt: skip
COLUMNS = [
    "prompt",
    "chosen",
    "rejected",
    "margin",
    "score_chosen",
    "score_rejected",
    "completions",
    "scores",
]
COLUMNS += ["messages", "completion", "label", "instruction", "input", "system", "tools", "ranks"]


@given(st.dictionaries(st.sampled_from(COLUMNS), VALUES))
def test_any_values_become_rows_that_keep_the_promises_of_their_kind_or_rejects(fields):
    row = row_of(fields)
    if isinstance(row, Reject):
        assert row.source == "f:1" and row.reason
        return
    row.key(), row.texts()
    if row.kind == "ranking":
        _, answers, scores = row.value
        assert len(answers) >= 2 and compared(scores, len(answers))
        assert scores is None or (len(scores) == len(answers) and all(a >= b for a, b in pairwise(scores)))
        assert all(answers[a] != answers[b] for a, b in compared(scores, len(answers)))


def lines(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


@pytest.mark.slow
def test_anthropics_dialogues_are_divided_where_they_differ():
    rows = [row_of(fields) for fields in lines("hh_rlhf_harmless/train.jsonl.gz")]
    rejects = [row for row in rows if isinstance(row, Reject)]
    assert len(rows) == 1562 and {row.reason for row in rejects} <= {"no answer"}
    assert len(rejects) == sum(
        any(not talk.rpartition("Assistant:")[2].strip() for talk in fields.values())
        for fields in lines("hh_rlhf_harmless/train.jsonl.gz")
    )  # those with an empty answer, and no other


@pytest.mark.slow
def test_prompts_in_common_are_those_that_trl_finds():
    extract_prompt = pytest.importorskip("trl.data_utils").extract_prompt
    for fields in lines("oasst_sample/pairs.jsonl.gz"):
        talks = {name: [*fields["prompt"], says(fields[name])] for name in ("chosen", "rejected")}
        theirs = extract_prompt(talks)
        assert row_of(talks).value == (theirs["prompt"], (theirs["chosen"], theirs["rejected"]), None)
        assert row_of(fields).value == row_of(talks).value


@pytest.mark.slow
def test_rows_of_real_files_are_all_used():
    for name, kind in [("dpo_en", "ranking"), ("kto_en", "judged")]:
        rows = [row_of(fields) for fields in lines(f"chat_demos/{name}.jsonl.gz")]
        assert len(rows) == 300 and {getattr(row, "kind", row) for row in rows} == {kind}
