"""The words of a leaderboard: columns only where there is something in them."""

import csv
import io

from graft.evaluate.judgements import Judgement
from graft.evaluate.leaderboard import leaderboard
from graft.evaluate.leaderboard_text import csv_text, facts, matrix, places


def test_models_that_never_met_have_a_dash_and_marks_a_column_where_they_are_known():
    said = [
        Judgement("p", "a", "b", "1", scores=(8, 4)),
        Judgement("p", "b", "c", "1", scores=(9, 3)),
        Judgement("q", "a", "b", "tie", scores=(6, 6)),
    ]
    board = leaderboard(said, relative_to="b")
    assert matrix(board) == (
        ["won against", "a", "b", "c"],
        [["a", "-", "75.0%", "-"], ["b", "25.0%", "-", "100.0%"], ["c", "-", "0.0%", "-"]],
    )
    header, rows = places(board)
    assert header[-2:] == ["marks, %", "95 %"]
    assert [row[7] for row in rows] == ["140.0", "", "33.3"]  # 14 of 10, and 3 of 9
    marks = [row["marks"] for row in csv.DictReader(io.StringIO(csv_text(board)))]
    assert marks == ["140", "", "33.3333"]
    assert "marks, %" not in places(leaderboard(said))[0]


def test_what_is_not_defined_is_said_in_words():
    board = leaderboard([Judgement("p", "a", "b", "tie", judge=judge) for judge in "xy"])
    told = "\n".join(facts(board))
    assert "2 judges say the same of 100.0% of 1 pairs, Fleiss' kappa not defined" in told
    assert "x and y rank alike: Kendall not defined, Spearman not defined" in told
    assert "order " not in told and "length " not in told
