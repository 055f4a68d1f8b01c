"""Answers of several files together: the same answer may stand in two of them."""

import pytest

from graft.errors import Notice
from graft.evaluate.answer_files import Answer, merged


def test_the_first_of_two_answers_counts_and_the_other_one_is_named():
    one = {"a": {"p": Answer("yes", source="one:1"), "q": Answer("no", source="one:2")}}
    two = {"a": {"p": Answer("yes", source="two:1"), "q": Answer("No!", source="two:2")}, "b": {}}
    with pytest.warns(Notice, match="^1 answers of a differ between files; left out: two:2$"):
        together = merged(one, two)
    assert {prompt: answer.text for prompt, answer in together["a"].items()} == {"p": "yes", "q": "no"}
    assert together["b"] == {}


def test_files_with_other_prompts_add_to_each_other():
    answers = merged({"a": {"p": Answer("x")}}, {"a": {"q": Answer("y")}})
    assert {prompt: answer.text for prompt, answer in answers["a"].items()} == {"p": "x", "q": "y"}
