"""The pairs of answers on which verdicts differ most come first."""

from graft.evaluate.disputes import most_disputed
from graft.evaluate.judgements import Judgement

VERDICTS = {  # of the answer of a, in the words of each judgement: 1 a, 0 b, t tie, - none
    "none": "--",
    "agreed": "1111",
    "ties": "tt",
    "half": "10",
    "more half": "1100",
    "three of four": "1110",
    "a tie beside": "1t",
}


def judgements():
    words = {"1": "1", "0": "2", "t": "tie", "-": None}
    return [Judgement(prompt, "a", "b", words[c]) for prompt, told in VERDICTS.items() for c in told]


def test_the_variance_of_the_points_decides_and_then_how_many_verdicts_there_are():
    items = most_disputed(judgements(), 10)
    assert [(item.prompt, item.dispute) for item in items] == [
        ("more half", 0.25),
        ("half", 0.25),
        ("three of four", 3 / 16),
        ("a tie beside", 1 / 16),
        ("agreed", 0),
        ("ties", 0),
        ("none", 0),
    ]
    assert [item.prompt for item in most_disputed(judgements(), 2)] == ["more half", "half"]


def test_a_verdict_that_changes_with_the_order_is_a_dispute():
    """The first answer is preferred, whichever it is; in the other item both orders prefer b's."""
    swayed = [Judgement("p", "a", "b", "1"), Judgement("p", "b", "a", "1")]
    settled = [Judgement("q", "a", "b", "2"), Judgement("q", "b", "a", "1")]
    first, second = most_disputed([*settled, *swayed], 10)
    assert (first.prompt, first.dispute, first.pair) == ("p", 0.25, ("a", "b"))
    assert (second.prompt, second.dispute, second.points) == ("q", 0, [0, 0])


def test_among_equals_each_pair_of_models_has_its_turn():
    said = [Judgement(prompt, "a", other, v) for other in "bc" for prompt in "pqr" for v in "12"]
    items = [(item.prompt, item.pair[1]) for item in most_disputed(said, 4)]
    assert items == [("p", "b"), ("p", "c"), ("q", "b"), ("q", "c")]
