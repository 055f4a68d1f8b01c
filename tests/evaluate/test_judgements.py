"""Files of judgements are read whole or refused by line, and become games."""

import json

import pytest

from graft.errors import DataError
from graft.evaluate.judgements import Judgement, games, lines, outcomes, read_judgements


def judgement(prompt, first, second, verdict, **more):
    return Judgement(prompt, first, second, verdict, **more)


def test_what_was_written_is_read_back(tmp_path):
    said = [
        judgement("p", "a", "b", "1", judge="me", characters=(3, 9)),
        judgement("p", "b", "a", "tie", judge="me", said="equal"),
        judgement("ж\n", "b", "a", None, said="no idea"),
        judgement("q", "b", "a", "2", scores=(3.0, 8.5)),
    ]
    (tmp_path / "j.jsonl").write_text(lines(said))
    assert read_judgements(tmp_path / "j.jsonl") == said
    first = json.loads((tmp_path / "j.jsonl").read_text().splitlines()[1])
    assert (first["model_a"], first["model_b"], first["order"], first["verdict"]) == ("a", "b", "ba", "tie")


def test_a_verdict_is_about_the_order_in_which_answers_were_shown(tmp_path):
    rows = [
        {"prompt": 1, "model_a": "a", "model_b": "b", "order": order, "verdict": 1} for order in ("ab", "ba")
    ]
    (tmp_path / "j.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two = read_judgements(tmp_path / "j.jsonl")
    assert (one.first, one.points_of_pair, two.first, two.points_of_pair) == ("a", 1.0, "b", 0.0)
    assert outcomes([one, two]) == {("", "1", ("a", "b")): 0.5}


def test_verdicts_of_tables_are_read(tmp_path):
    (tmp_path / "j.csv").write_text("prompt,model_a,model_b,verdict\np,a,b,1\nq,a,b,tie\nr,a,b,\n")
    (tmp_path / "j.jsonl").write_text('{"prompt": "p", "model_a": "a", "model_b": "b", "verdict": 2.0}')
    assert [one.verdict for one in read_judgements(tmp_path / "j.csv")] == ["1", "tie", None]
    assert read_judgements(tmp_path / "j.jsonl")[0].verdict == "2"


def test_marks_without_a_verdict_are_one(tmp_path):
    row = {"prompt": "p", "model_a": "a", "model_b": "b", "order": "ba", "scores": [6, 9]}
    (tmp_path / "j.jsonl").write_text(json.dumps(row))
    assert read_judgements(tmp_path / "j.jsonl")[0].points_of_pair == 1.0  # a was shown second, with a 9


BAD = {
    '{"model_a": "a", "model_b": "b", "verdict": 1}': "prompt missing",
    '{"prompt": "p", "model_a": "a", "model_b": "a", "verdict": 1}': "both models are a",
    '{"prompt": "p", "model_a": "a", "model_b": "b", "verdict": 3}': "verdict is 3",
    '{"prompt": "p", "model_a": "a", "model_b": "b", "verdict": true}': "verdict is True",
    '{"prompt": "p", "model_a": "a", "model_b": "b"}': "neither verdict nor scores",
    '{"prompt": "p", "model_a": "a", "model_b": "b", "order": "x", "verdict": 1}': "order is 'x'",
    '{"prompt": "p", "model_a": "a", "model_b": "b", "scores": [1]}': "scores is \\[1\\]",
    '{"prompt": "p", "model_a": "a", "model_b": "b", "scores": ["1", 2]}': "scores is",
    '["p"]': "the row is a list",
    "{": "bad JSON",
}


@pytest.mark.parametrize(("row", "detail"), BAD.items())
def test_a_row_that_is_no_judgement_is_named(row, detail, tmp_path):
    good = '{"prompt": "p", "model_a": "a", "model_b": "b", "verdict": 1}\n'
    (tmp_path / "j.jsonl").write_text(good + row + "\n")
    with pytest.raises(DataError, match=detail) as raised:
        read_judgements(tmp_path / "j.jsonl")
    assert "1 of 2 rows" in raised.value.given and "j.jsonl:2" in raised.value.given


def test_both_orders_are_averaged_and_each_counts_the_same():
    said = [
        judgement("p", "a", "b", "1"),
        judgement("p", "a", "b", "1"),  # judged twice in this order: still one half of the whole
        judgement("p", "b", "a", "1"),
        judgement("q", "b", "a", "tie"),
        judgement("q", "a", "b", "1"),
        judgement("r", "a", "b", None),
    ]
    found = games(said)
    assert found.prompts == ("p", "q") and found.score.tolist() == [0.5, 0.75]
    apart = games(said, averaged=False)
    assert len(apart.a) == 5 and apart.points().tolist() == [[0, 3.5], [1.5, 0]]


def test_judges_are_not_averaged_with_each_other():
    said = [judgement("p", "a", "b", "1", judge="x"), judgement("p", "a", "b", "2", judge="y")]
    assert games(said).score.tolist() == [1.0, 0.0]


def test_no_verdict_at_all_is_an_error():
    with pytest.raises(DataError, match="no game was decided"):
        games([judgement("p", "a", "b", None)])
