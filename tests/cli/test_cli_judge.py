"""graft judge and graft rank: from files of answers to a leaderboard, and bad input in lines."""

import csv
import json
import re

import pytest

from graft.cli import call
from graft.models.files import find

ANSWERS = {
    "one": {"p": "short", "q": "a longer answer", "r": "x"},
    "two": {"p": "quite long", "q": "tiny", "r": "y"},
    "three": {"p": "the longest of all", "q": "mid length", "s": "alone"},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Three files of answers in the folder where the commands run."""
    monkeypatch.chdir(tmp_path)
    for name, answers in ANSWERS.items():
        rows = [{"prompt": prompt, "answer": text} for prompt, text in answers.items()]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_answers_are_judged_and_models_ranked(home, capsys):
    assert call(["judge", "one.jsonl", "two.jsonl", "three.jsonl", "--by", "rule:shorter"]) == 0
    out, err = capsys.readouterr()
    table = [line.split() for line in out.splitlines()]
    # 2 prompts of one and two have a winner, the third is a tie; each is judged twice.
    assert ["one", "two", "2", "2", "2", "0", "50.0%"] in table
    assert "1 answers of three have no partner and are not judged: three.jsonl:3" in err
    assert "wrote   judgements.jsonl (14 judgements by rule:shorter)" in err
    assert err.splitlines()[-1] == "next    graft rank judgements.jsonl"
    assert call(["rank", "judgements.jsonl", "--matrix", "--csv", "board.csv"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["model", "rating", "95", "%", "games", "won", "95", "%"]
    assert [line.split()[:2] for line in lines[1:4]] == [["1", "two"], ["2", "one"], ["3", "three"]]
    assert "judged  14 times, 3 prompts; 0 without a verdict (0.0%), which count nowhere" in lines
    assert any(line.startswith("length  the longer answer gets 0.0%") for line in lines)
    assert err.splitlines()[-1].startswith("next    graft ")
    with (home / "board.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["two", "one", "three"]
    assert [row["games"] for row in rows] == ["5", "5", "4"]


def test_programs_read_the_same_facts(home, capsys):
    assert call(["judge", "one.jsonl", "two.jsonl", "--by", "rule:longer", "--out", "j.jsonl", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pairs"] == [
        {"answers": "one", "against": "two", "wins": 2, "ties": 2, "losses": 2, "no_verdict": 0, "won": 0.5}
    ]
    assert call(["rank", "j.jsonl", "--by", "elo", "--seed", "3", "--json"]) == 0
    board = json.loads(capsys.readouterr().out)
    assert board["by"] == "elo" and {place["model"] for place in board["places"]} == {"one", "two"}


def numbers(page):
    """Return the rating and the interval of each model on a page, as texts."""
    rated = page.read_text().split("<h2>Ratings</h2>")[1].split("</section>")[0]
    return re.findall(r"<tr><td>\d+</td><td>[^<]*</td><td>([^<]*)</td><td>([^<]*)</td>", rated)


def test_the_page_has_the_numbers_of_the_leaderboard_and_the_answers(home, capsys):
    files = ["one.jsonl", "two.jsonl", "three.jsonl"]
    assert call(["judge", *files, "--by", "rule:shorter"]) == 0
    assert "wrote   judgements.report.html" in capsys.readouterr().err
    written = home / "judgements.report.html"
    assert ">the longest of all<" in written.read_text()
    assert call(["rank", "judgements.jsonl", "--seed", "3", "--page", "page.html", "--json"]) == 0
    out, err = capsys.readouterr()
    ratings = [place["rating"] for place in json.loads(out)["places"]]
    told = [(f"{one['value']:.0f}", f"{one['low']:.0f} … {one['high']:.0f}") for one in ratings]
    assert numbers(home / "page.html") == told
    assert [rating for rating, _ in numbers(written)] == [rating for rating, _ in told], "by another seed"
    assert "wrote   page.html" in err and "the longest of all" not in (home / "page.html").read_text()
    asked = [word for file in files for word in ("--answers", file)]
    assert call(["rank", "judgements.jsonl", "--page", "page.html", *asked]) == 0
    assert ">the longest of all<" in (home / "page.html").read_text()


def test_where_nobody_won_there_is_no_page_and_a_line_says_why(home, capsys):
    (home / "silent.py").write_text("def judge(p, a, b): return None\n")
    assert call(["judge", "one.jsonl", "two.jsonl", "--by", "silent:judge", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["page"] is None and not list(home.glob("*.html"))
    assert "judgements.report.html is not written: no game was decided" in err


def test_a_comparison_shows_what_judges_said(home, capsys):
    """seedling wins p, one wins q in one order, and the other order is a tie."""
    pairs = [("p", "ab", 2), ("p", "ba", 1), ("q", "ab", 1), ("q", "ba", "tie"), ("q", "ab", None)]
    keys = ("prompt", "order", "verdict")
    rows = [
        dict(zip(keys, pair, strict=True), model_a="one", model_b="seedling", judge="x") for pair in pairs
    ]
    (home / "j.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "one").symlink_to(find("seedling"))
    words = ["compare", "one", "seedling", "--prompt", "Day", "--max-new-tokens", "2"]
    assert call([*words, "--judgements", "j.jsonl"]) == 0
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    at = lines.index(["judge x", "one", "seedling"])
    assert lines[at + 1 :] == [
        ["points won", "37.5%", "62.5%"],
        ["95 %", "0.0% … 75.0%", "25.0% … 100.0%"],
        ["prompts won", "1 of 2 (50.0%)", "1 of 2 (50.0%)"],
        ["prompts tied", "0 of 2 (0.0%)", "0 of 2 (0.0%)"],
        ["no verdict", "1 judgements"],
    ]
    assert call([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judgements"] == []
    assert call([*words[:1], "two", *words[2:], "--judgements", "j.jsonl"]) == 2
    assert "j.jsonl has no judgement of two against seedling" in capsys.readouterr().err


def test_a_verdict_that_cannot_be_read_is_written_and_counted(home, capsys):
    (home / "undecided.py").write_text("def judge(p, a, b): return 'hm' if p == 'p' else 1\n")
    assert call(["judge", "one.jsonl", "two.jsonl", "--by", "undecided:judge"]) == 0
    rows = [json.loads(line) for line in (home / "judgements.jsonl").read_text().splitlines()]
    assert [(row["verdict"], row.get("said")) for row in rows[:3]] == [
        (None, "'hm'"),
        (None, "'hm'"),
        (1, None),
    ]
    assert call(["rank", "judgements.jsonl"]) == 0
    assert "2 without a verdict (33.3%)" in capsys.readouterr().out


def test_a_model_answers_the_prompts_of_a_file_and_is_judged(home, capsys):
    words = ["judge", "one.jsonl", "seedling", "--by", "rule:longer", "--max-new-tokens", "4", "--limit", "2"]
    assert call(words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split()[:2] == ["one", "seedling"]
    assert "wrote   2 answers of seedling" in err and "judgements.jsonl (4 judgements" in err
    kept = [json.loads(line) for line in (home / "judgements.answers.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["model"]) for row in kept] == [("p", "seedling"), ("q", "seedling")]
    # Another judge reads what was written.
    again = ["judge", "two.jsonl", "judgements.answers.jsonl", "--by", "rule:shorter", "--out", "j.jsonl"]
    assert call(again) == 0
    assert call([*again[:3], "seedling", *again[3:], "--force"]) == 2
    assert "answers of seedling come from a file and from the model" in capsys.readouterr().err


def test_a_person_judges_and_goes_on_later(home, capsys, monkeypatch):
    typed = ["1", "q", "2", "t"]
    monkeypatch.setattr("builtins.input", lambda: typed.pop(0))
    words = ["judge", "one.jsonl", "two.jsonl", "--by", "me:anna"]
    assert call(words) == 0
    err = capsys.readouterr().err
    assert (
        "1 of 3" in err
        and "q: stop > " in err
        and "wrote   judgements.jsonl (1 judgements by me:anna)" in err
    )
    assert call([*words, "--force"]) == 0
    assert "2 of 3" in (err := capsys.readouterr().err) and "1 of 3" not in err and not typed
    rows = [json.loads(line) for line in (home / "judgements.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == [1, 2, "tie"] and {row["judge"] for row in rows} == {"me:anna"}


BAD = """
judge
judge ./nowhere one.jsonl --by rule:shorter
judge one.jsonl seedling --by rule:shorter --prompts none.txt
judge one.jsonl --by rule:shorter
judge one.jsonl two.jsonl
judge one.jsonl two.jsonl --by shorter
judge one.jsonl two.jsonl --by rule:shortr
judge one.jsonl two.jsonl --by rule:rouge_l
judge one.jsonl two.jsonl --by nothing.of:mine
judge one.jsonl two.jsonl --by rule:shorter --model gpt
judge one.jsonl two.jsonl --by http://127.0.0.1:1/v1
judge one.jsonl two.jsonl --by http://[x --model gpt
judge one.jsonl two.jsonl --by http://127.0.0.1:1/v1 --model gpt --form marks
judge one.jsonl none.jsonl --by rule:shorter
judge one.jsonl two.jsonl --by rule:shorter --out one.jsonl/file
judge one.jsonl two.jsonl --by rule:shorter --out two.jsonl
judge one.jsonl one.jsonl --by rule:shorter
rank
rank none.jsonl
rank one.jsonl
rank one.jsonl --by eloo
rank JUDGED --by eloo
rank JUDGED --relative-to x
rank JUDGED --csv one.jsonl/file
rank JUDGED --page one.jsonl/file
rank JUDGED --page page.html --answers none.jsonl
rank JUDGED --answers one.jsonl
""".strip().splitlines()


@pytest.mark.parametrize("line", BAD)
def test_bad_input_ends_in_lines_and_not_in_a_traceback(line, home, capsys):
    row = {"prompt": "p", "model_a": "a", "model_b": "b", "verdict": 1}
    (home / "judged.jsonl").write_text(json.dumps(row) + "\n")
    before = sorted(home.iterdir())
    code = call([{"JUDGED": "judged.jsonl"}.get(word, word) for word in line.split()])
    err = capsys.readouterr().err
    assert code in (1, 2), err
    assert "Traceback" not in err and "bug in Graft" not in err
    assert "Usage:" in err or all(part in err for part in ("graft: error:", "expected:", "to do:"))
    assert sorted(home.iterdir()) == before
