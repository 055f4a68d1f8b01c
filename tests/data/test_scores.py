"""Scores, ranks and margins as rows write them."""

import pytest

from graft.data.columns import Fields
from graft.data.rows import BadRow
from graft.data.scores import LARGEST, measured, number, scores_of_pair


@pytest.mark.parametrize(
    "value, score",
    [(1, 1.0), ("2.5", 2.5), (-0.12345, -0.123), (0.0004, 0.0), (LARGEST, 2e6), (None, None), ("", None)],
)
def test_a_score_is_a_number_to_a_thousandth(value, score):
    assert number(value, "score") == score
    assert score is None or -(2**31) < score * 1000 < 2**31  # what an example stores


@pytest.mark.parametrize("value", ["good", True, [1], {"a": 1}, LARGEST + 1, float("inf")])
def test_anything_else_is_no_score(value):
    with pytest.raises(BadRow) as caught:
        number(value, "margin")
    assert caught.value.args[0] == "bad score" and "'margin'" in caught.value.args[1]


@pytest.mark.parametrize(
    "fields, scores",
    [
        ({"margin": 2}, (2.0, 0.0)),
        (
            {"margin": 2, "score_chosen": 9, "score_rejected": 1},
            (2.0, 0.0),
        ),  # the margin is meant for the loss
        ({"score_chosen": 9, "score_rejected": None}, None),
        ({"rank_chosen": 0, "rank_rejected": 1}, None),
        ({}, None),
    ],
)
def test_a_pair_has_scores_or_none(fields, scores):
    assert scores_of_pair(Fields(fields)) == scores


def test_what_was_read_of_scores_is_not_named_as_unread():
    fields = Fields({"chosen_rating": 9, "rejected_rating": 1, "score": 3})
    scores_of_pair(fields)
    assert fields.unread() == ["score"]


def test_a_column_of_scores_goes_before_those_of_the_objects():
    objects = [{"response": "a", "score": 1}, {"response": "b", "score": 2}]
    own = measured(Fields({"completions": objects}), "completions")
    assert (own.scores, own.ranked, own.unused) == ([1.0, 2.0], False, ())
    apart = measured(Fields({"completions": objects, "scores": [5, 4]}), "completions")
    assert apart.scores == [5.0, 4.0] and apart.unused == ("score of completions",)
    assert apart.said == [("completions[0]", "a"), ("completions[1]", "b")]


def test_ranks_are_scores_of_the_other_sign():
    found = measured(Fields({"responses": ["a", "b", "c"], "ranks": [2, 1, None]}), "responses")
    assert (found.scores, found.ranked) == ([-2.0, -1.0], True)
    assert found.unused == ("answers without a score",)
