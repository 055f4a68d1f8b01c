"""Judges see every pair in both orders; what is no verdict is kept and counted, never guessed."""

import gzip
import json
from pathlib import Path

import pytest

from graft.errors import DataError, UsageError
from graft.evaluate.answer_files import Answer, read_answers, without_partner
from graft.evaluate.judges import (
    Opinion,
    Question,
    by_function,
    by_rule,
    judged,
    marks,
    scores_in,
    verdict_in,
)

ANSWERS = {
    "a": {"p": Answer("yes", ("yes",), "a:1"), "q": Answer("a long answer", ("no",), "a:2")},
    "b": {"p": Answer("maybe", (), "b:1"), "q": Answer("no", (), "b:2"), "r": Answer("alone", (), "b:3")},
    "c": {"p": Answer("well", (), "c:1")},
}
PUBLISHED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "qlora_judgments"


def test_every_pair_is_shown_in_both_orders_and_the_judge_sees_no_names():
    seen = []

    def judge(questions):
        seen.extend(questions)
        return [Opinion("1") for _ in questions]

    said = judged(ANSWERS, judge, "me")
    places = [(one.prompt, one.first, one.second) for one in said]
    assert places == [("p", "a", "b"), ("p", "b", "a"), ("q", "a", "b"), ("q", "b", "a"),
                      ("p", "a", "c"), ("p", "c", "a"), ("p", "b", "c"), ("p", "c", "b")]  # fmt: skip
    assert (seen[1].first, seen[1].second, seen[1].references) == ("maybe", "yes", ("yes",))
    assert said[1].characters == (5, 3) and said[1].judge == "me"
    assert len(judged(ANSWERS, judge, limit=1)) == 6
    with pytest.raises(DataError, match="no prompt in common"):
        judged({"a": {"p": Answer("x")}, "b": {"q": Answer("y")}}, judge)


def verdicts(judge, *questions):
    return [one.verdict for one in judge([Question(*q) for q in questions])]


def test_rules_prefer_what_they_say():
    assert verdicts(by_rule("shorter"), ("p", "xx", "x"), ("p", "x", "y")) == ["2", "tie"]
    assert verdicts(by_rule("longer"), ("p", "xx", "x")) == ["1"]
    assert verdicts(by_rule("exact_match"), ("p", "The cat!", "dog", ("cat",))) == ["1"]
    assert verdicts(by_rule("distinct_1"), ("p", "a a a", "a b c")) == ["2"]
    with pytest.raises(DataError, match="a:1 have no reference"):
        by_rule("rouge_l")([Question("p", "x", "y", (), "a:1")])
    with pytest.raises(UsageError, match="rule='shortr'"):
        by_rule("shortr")


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "mine_judging.py").write_text(
        "def pick(prompt, first, second): return {'1': 1, '2': '2', 't': 'tie'}.get(prompt)\n"
        "def mark(prompt, first, second): return len(first), [len(second)][0]\n"
        "ODD = {'x': 3, 'y': True, 'z': (1, 'b'), 'n': (float('nan'), 1)}\n"
        "def odd(prompt, first, second): return ODD[prompt]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_a_function_picks_or_marks_and_anything_else_is_no_verdict(functions):
    assert verdicts(by_function("mine_judging:pick"), *[(p, "a", "b") for p in "12tx"]) == [
        "1",
        "2",
        "tie",
        None,
    ]
    assert by_function("mine_judging:mark")([Question("p", "xx", "x")]) == [Opinion("1", (2.0, 1.0))]
    odd = by_function("mine_judging:odd")([Question(p, "a", "b") for p in "xyzn"])
    assert [one.verdict for one in odd] == [None] * 4
    assert [one.said for one in odd] == ["3", "True", "(1, 'b')", "marks nan and 1.0"]


def test_a_function_that_fails_is_named_with_the_answers(functions):
    with pytest.raises(UsageError, match=r"failed on a:7 and b:7 with KeyError: 'p'"):
        by_function("mine_judging:odd")([Question("p", "x", "y", (), "a:7 and b:7")])
    with pytest.raises(UsageError, match="judge 'mine_judging:nothing' cannot be imported"):
        by_function("mine_judging:nothing")


def test_marks_ask_for_every_answer_once():
    asked = []

    def reward(prompts, answers):
        asked.append((list(prompts), list(answers)))
        return [float(len(text)) for text in answers]

    assert verdicts(marks(reward), ("p", "xx", "x"), ("p", "x", "xx"), ("q", "x", "x")) == ["1", "2", "tie"]
    assert asked == [(["p", "p", "q"], ["xx", "x", "x"])]
    chat = [{"role": "user", "content": "Hi"}]
    marks(reward)([Question("user: Hi", "x", "y", (), "", chat)])
    assert asked[-1][0] == [chat, chat], "a conversation is scored as one"
    with pytest.raises(UsageError, match="1 numbers for 2 answers"):
        marks(lambda prompts, answers: [1.0])([Question("p", "x", "y")])


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("because\n\n2\n", "2"), ("3", "tie"), ("**1**", "1"), ("so: 1", None), ("1\nI think", None), ("", None),
     ("12", None), ("4", None), ("Tie.", "tie"), ("1 2", None)],
)  # fmt: skip
def test_a_verdict_is_a_last_line_of_its_own(text, verdict):
    assert verdict_in(text) == Opinion(verdict, said=text)


@pytest.mark.parametrize(
    ("text", "scores"),
    [("9 7", (9, 7)), ("8.5, 8\nbecause", (8.5, 8)), ("7 7", (7, 7)), ("9", None), ("9 7 5", None),
     ("90 70", None), ("-1 5", None), ("I give 9 7", None), ("", None)],
)  # fmt: skip
def test_marks_are_a_first_line_of_their_own(text, scores):
    assert scores_in(text).scores == scores
    assert (scores_in(text).verdict is None) == (scores is None)


@pytest.mark.slow
def test_the_published_reviews_are_read_as_the_authors_read_them():
    """4,480 reviews of GPT-4 with a verdict, 5,760 with marks (artidoro/qlora, folder eval)."""
    if not PUBLISHED.is_dir():
        pytest.skip("the published judgements are not next to the checkout")
    verdict = {1: "1", 2: "2", 3: "tie", -1: None}
    with gzip.open(PUBLISHED / "vicuna_pairwise.jsonl.gz", "rt") as rows:
        for row in map(json.loads, rows):
            assert verdict_in(row["review"]).verdict == verdict[row["verdict"]], row
    by_hand = 0
    with gzip.open(PUBLISHED / "vicuna_relative.jsonl.gz", "rt") as rows:
        for row in map(json.loads, rows):
            scores = scores_in(row["review"]).scores
            assert scores in (None, tuple(row["scores"])), row
            by_hand += scores is None
    assert by_hand == 216  # marks that stand elsewhere: 156 read by hand, 60 that nobody read


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_of_answers_are_read_with_their_models(tmp_path):
    one = write(
        tmp_path / "one.jsonl",
        {"prompt": "p", "answer": "x", "reference": "y"},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Hello", "reference": ["a", "b"]},
    )
    two = write(tmp_path / "two.jsonl", {"prompt": "p", "text": "z", "model": "other"})
    read = read_answers(one, two)
    assert list(read) == ["one", "other"]
    assert read["one"]["p"] == Answer("x", ("y",), f"{one}:1", "p")
    assert read["one"]["user: Hi"].references == ("a", "b")
    assert without_partner(read) == [f"1 answers of one have no partner and are not judged: {one}:2"]


def test_files_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "answers.jsonl", {"prompt": "p", "answer": folder})
    assert list(read_answers(*sorted(tmp_path.glob("*/answers.jsonl")))) == ["x/answers", "y/answers"]


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"answer": "x"}, "it lacks a prompt"),
        ({"prompt": "q"}, "it lacks an answer"),
        ({"prompt": "p", "answer": "again"}, "the same prompt stands at"),
        ({"prompt": "q", "answer": "x", "reference": 3}, "reference is 3"),
        ({"prompt": "q", "answer": "\ud800"}, "half a character"),
        ({"prompt": ["q"], "answer": "x"}, "it lacks a prompt"),
    ],
)
def test_a_row_that_is_no_answer_is_named(row, detail, tmp_path):
    path = write(tmp_path / "one.jsonl", {"prompt": "p", "answer": "x"}, row)
    with pytest.raises(DataError, match=detail) as raised:
        read_answers(path)
    assert f"{path}:2" in raised.value.given
