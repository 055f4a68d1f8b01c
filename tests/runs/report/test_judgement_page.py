"""The page of judgements has the numbers of the leaderboard, the answers, and nothing that is not escaped."""

import re

import pytest

from graft.evaluate.agreement import length_bias, order_bias
from graft.evaluate.answer_files import Answer
from graft.evaluate.judgements import Judgement
from graft.evaluate.leaderboard import leaderboard
from graft.runs.report.judgements import ALL, ITEMS, judgement_page

TEXTS = {"a": "the longer answer <b>of a</b>", "b": "b's answer"}
ANSWERS = {model: {str(p): Answer(f"{text} to {p}") for p in range(9)} for model, text in TEXTS.items()}


def said(judge, wins, swayed=0):
    """a beats b on the first `wins` of 9 prompts, else b; on the last `swayed` the one shown second wins."""
    judgements = []
    for prompt in range(9):
        better, other = ("1", "2") if prompt < wins else ("2", "1")
        if prompt >= 9 - swayed:
            better = other = "2"
        more = {"judge": judge, "said": f"<i>{judge}</i> & co"}
        judgements.append(Judgement(str(prompt), "a", "b", better, characters=(9, 5), **more))
        judgements.append(Judgement(str(prompt), "b", "a", other, characters=(5, 9), **more))
    return judgements


def page_of(judgements, answers=ANSWERS, **how):
    board = leaderboard(judgements, **how)
    return judgement_page("<title>", board, judgements, answers), board.json()


def section(page, title):
    """Return what stands under a heading."""
    return page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]


def cells(html):
    """Return the cells of the rows."""
    return [re.findall(r"<td[^>]*>([^<]*)", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]


def test_the_numbers_of_the_figures_are_those_of_the_leaderboard():
    page, board = page_of([*said("x", 7, 2), *said("y", 5), *said("z", 6)], by="elo")
    rated = cells(section(page, "Ratings"))[1:]
    assert [row[2] for row in rated] == [f"{place['rating']['value']:.0f}" for place in board["places"]]
    ends = [f"{place['rating']['low']:.0f} … {place['rating']['high']:.0f}" for place in board["places"]]
    assert [row[3] for row in rated] == ends
    won = board["points"][0][1] / board["played"][0][1]
    matrix = cells(section(page, "Points won by the row&#x27;s model against the column&#x27;s"))[1:]
    assert matrix == [["", f"{won:.0%}"], [f"{1 - won:.0%}", ""]]
    alike = cells(section(page, "Agreement of the judges").split("rank alike")[1])[1:]
    for pair in board["agreement"]["kendall"]:
        one, two = ("xyz".index(judge) for judge in pair["judges"])
        assert alike[one][two] == alike[two][one] == f"{pair['value']:.2f}"
    first, longer = section(page, "What sways the judges").split("<table>")[1:]
    assert cells(first)[1][1] == f"{board['order']['first']['value']:.1%}"
    assert cells(longer)[1][1] == f"{board['length']['value']:.1%}"


def test_each_judge_has_what_sways_it_below_that_of_all():
    x, y = said("x", 7, 2), said("y", 5)
    page, _ = page_of([*x, *y])
    first, longer = section(page, "What sways the judges").split("<table>")[1:]
    assert [row[1] for row in cells(first)[2:]] == [f"{order_bias(own).first.value:.1%}" for own in (x, y)]
    assert [row[1] for row in cells(longer)[2:]] == [f"{length_bias(own).value:.1%}" for own in (x, y)]
    assert re.findall(r"<tr><td>(all judges|x|y)</td><td>([\d.]+%)", first)[:3] == [
        (ALL, f"{(7 + 9) / 36:.1%}"),
        ("x", f"{7 / 18:.1%}"),
        ("y", f"{9 / 18:.1%}"),
    ]
    assert "How far two judges rank alike" not in page, "two judges are one number"


def test_the_tables_say_what_graft_rank_says():
    page, board = page_of([*said("x", 7, 2), *said("y", 5)])
    place, agreed = board["places"][0], board["agreement"]
    assert f"<td>{place['model']}</td><td>{place['rating']['value']:.0f}</td>" in page
    assert f"<td>{place['won']['value']:.1%}</td>" in page
    assert f"<td>{agreed['same']:.1%}</td>" in page and f"<td>{agreed['kappa']:.2f}</td>" in page
    assert f"judged  {board['judgements']} times, 9 prompts; 0 without a verdict (0.0%)" in page


def test_the_most_disputed_answers_come_first_with_all_that_was_said_and_are_escaped():
    page, _ = page_of(said("x", 7, 2))
    pairs = section(page, "Pairs of answers, the most disputed first")
    rows = [re.findall(r'<div class="text" dir="auto">([^<]*)', card) for card in pairs.split("<article")[1:]]
    assert [row[0] for row in rows] == ["7", "8", "0", "1", "2", "3", "4", "5", "6"]
    assert tuple(rows[0][1:]) == ("the longer answer &lt;b&gt;of a&lt;/b&gt; to 7", "b&#x27;s answer to 7")
    assert "<summary>better: b 1, a 1</summary>" in pairs and "<summary>better: a 2</summary>" in pairs
    assert "<td>&lt;i&gt;x&lt;/i&gt; &amp; co</td>" in pairs and "<i>" not in page.split("</head>")[1]
    assert "<h1>&lt;title&gt;</h1>" in page


def test_marks_stand_under_the_model_that_got_them():
    judgement = Judgement("p", "b", "a", "1", scores=(8.0, 3.5), judge="x")
    page, _ = page_of([judgement])
    assert "<th>marks of a</th><th>marks of b</th>" in page
    assert "<td>x</td><td>b</td><td>b</td><td>3.5</td><td>8.0</td>" in page


def test_without_answers_the_page_says_how_to_show_them_and_is_short():
    many = [Judgement(str(p), "a", "b", "1") for p in range(2 * ITEMS)]
    page, _ = page_of([*many, Judgement("none", "a", "b", None)], answers={})
    assert page.count("<details>") == ITEMS and "give their files to graft rank with --answers" in page
    assert "What sways" not in page and "Agreement of the judges" not in page
    assert "with --answers" not in page_of(said("x", 7))[0]


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--<script>"])
def test_a_models_name_ends_no_script(name):
    page, _ = page_of([Judgement("p", name, "b", "1", judge=name)], answers={name: {"p": Answer(name)}})
    assert "<script" not in page and "<!--" not in page
