"""The leaderboard of votes: ratings beside arithmetic, shared places, bias, tags, CSV without formulas."""

import csv
import io
import math
import random
import time
from dataclasses import replace

import httpx
import pytest

pytest.importorskip("uvicorn")
from arena_votes import Arena, battle
from studio_server import studio_server

from graft.serve.failures import ApiError
from graft.serve.studio.board import FEW, board, csv_text, tally, vote_table
from graft.serve.studio.votes import Contestant, Vote, Votes


def vote(number, first, second, verdict, *, tags=(), prompt=None, undone_at=None, **more):
    fight = battle(str(number), first, second, prompt=prompt or f"p{number}", **more)
    return Vote(fight, verdict, "", tags, "", f"k{number}", 1_000.0 + number, undone_at)


def simulated(count, strengths, seed, left=0.0):
    """Return votes of models with these ratings.  left: rating points that the left side has for free."""
    draw, votes = random.Random(seed), []
    for number in range(count):
        a, b = draw.sample(range(len(strengths)), 2)
        p = 1 / (1 + 10 ** ((strengths[b] - strengths[a] - left) / 400))
        votes.append(vote(number, f"m{a}", f"m{b}", "a" if draw.random() < p else "b"))
    return votes


def test_two_models_are_as_far_apart_as_their_points_say():
    votes = [vote(i, "x", "y", "a" if i < 30 else "b") for i in range(40)]
    places = board(votes)["places"]
    # Bradley-Terry of two: 400 log10(30 / 10)
    assert places[0]["rating"] - places[1]["rating"] == pytest.approx(400 * math.log10(3), abs=0.15)
    assert [(one["model"], one["won"], one["lost"]) for one in places] == [("x", 30, 10), ("y", 10, 30)]


def test_ties_and_both_bad_are_half_a_point_each():
    board_ = board([vote(0, "x", "y", "tie"), vote(1, "y", "x", "bad")])
    assert [one["rating"] for one in board_["places"]] == [1000.0, 1000.0]
    assert board_["matrix"][0][1] == {"votes": 2, "points": 1.0}
    assert board_["bad"] == 1


def test_models_that_no_vote_tells_apart_share_a_place():
    votes = simulated(600, [0, 10, 600], seed=1)
    places = {one["model"]: one["place"] for one in board(votes)["places"]}
    assert places["m2"] == 1
    assert places["m0"] == places["m1"] == 2


def test_votes_that_were_not_blind_or_were_undone_count_nowhere():
    counted = [vote(0, "x", "y", "a")]
    others = [vote(1, "x", "y", "b", flagged=True), vote(2, "x", "y", "b", undone_at=1.0)]
    found = board(counted + others)
    assert found["votes"] == 1
    assert found["unseen"] == {"undone": 1, "flagged": 1}
    assert {**found, "unseen": None} == {**board(counted), "unseen": None}
    assert tally(counted + others) == tally(counted)


def test_a_favoured_side_shows_with_an_interval():
    biased, fair = (board(simulated(800, [0, 0, 0], seed=2, left=left))["left"] for left in (150, 0))
    assert biased["low"] > 0.5
    assert fair["low"] < 0.5 < fair["high"]
    # The interval of a share of independent votes: 1.96 √(p (1 − p) / n), and the bootstrap's own noise.
    wide = 1.96 * math.sqrt(fair["value"] * (1 - fair["value"]) / 800)
    assert (fair["high"] - fair["low"]) / 2 == pytest.approx(wide, rel=0.15)


def test_pairs_with_few_votes_are_named():
    votes = [vote(i, "x", "y", "a") for i in range(FEW)] + [vote(FEW, "x", "z", "b")]
    assert board(votes)["few"] == [["z", "x", 1]]


def test_models_without_a_chain_of_votes_are_put_apart():
    votes = [vote(0, "x", "y", "a"), vote(1, "y", "z", "a"), vote(2, "p", "q", "a")]
    found = board(votes)
    assert [one["model"] for one in found["places"]] == ["x", "y", "z"]
    assert found["apart"] == ["p", "q"]
    assert found["models"] == ["x", "y", "z", "p", "q"]
    assert found["matrix"][3][4] == {"votes": 1, "points": 1.0} and found["matrix"][0][3] is None


def test_of_groups_of_as_many_models_that_with_more_votes_has_the_places():
    votes = [vote(0, "x", "y", "a"), vote(1, "p", "q", "a"), vote(2, "q", "p", "a")]
    assert sorted(one["model"] for one in board(votes)["places"]) == ["p", "q"]


def test_a_replaced_adapter_is_another_model():
    old = vote(0, "x", "y", "a")
    fight = replace(old.battle, created=2_000.0, sides=(Contestant("x", "another"), old.battle.sides[1]))
    found = board([old, Vote(fight, "b", "", (), "", "k", 2_000.0)])
    assert sorted(found["models"]) == ["x", "x (d-x)", "y"]


def test_a_tag_chooses_votes_and_an_unknown_one_is_refused_with_the_nearest():
    votes = [vote(0, "x", "y", "a", tags=("style",)), vote(1, "x", "y", "b", tags=("facts", "style"))]
    assert board(votes)["tags"] == [{"tag": "facts", "votes": 1}, {"tag": "style", "votes": 2}]
    assert board(votes, "facts")["places"][0]["model"] == "y"
    with pytest.raises(ApiError, match="'style'"):
        board(votes, "stile")


def test_no_vote_makes_an_empty_board():
    found = board([])
    assert (found["votes"], found["places"], found["left"], found["matrix"]) == (0, [], None, [])


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"], ids=repr)
def test_no_cell_of_a_csv_begins_a_formula(begin):
    evil = f'{begin}HYPERLINK("http://127.0.0.1/")'
    one = vote(0, evil, evil + "2", "a", tags=(evil,), prompt=evil, answers=(evil, evil))
    one = Vote(one.battle, "a", evil, (evil,), evil, "k", 0.0)
    text = csv_text(vote_table([one]))
    rows = list(csv.reader(io.StringIO(text)))
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert sum(cell.startswith(f"'{begin}") for cell in cells) == 8


def test_the_board_and_its_tables_over_http(tmp_path):
    store = Votes(tmp_path / "votes.sqlite3")
    for number in range(4):
        store.keep(battle(f"battle-{number}", "=cmd|' /C calc'!A0", "plain", prompt=f"p{number}"))
        store.vote(f"battle-{number}", "ab"[number % 2], key=f"k{number}", tags=["a b"])
    store.close()
    with studio_server(tmp_path) as address, httpx.Client(base_url=f"{address}/studio/api") as http:
        found = http.get("/leaderboard", params={"tag": "a b"}).json()
        assert found["votes"] == 4
        assert http.get("/leaderboard", params={"tag": "other"}).status_code == 404
        assert http.get("/score").json()["models"][0] == {
            "model": "=cmd|' /C calc'!A0", "won": 2, "tied": 0, "lost": 2,
        }  # fmt: skip
        for name, lines in (("votes.csv", 5), ("leaderboard.csv", 3)):
            table = http.get(f"/{name}")
            assert table.headers["content-type"] == "text/csv; charset=utf-8"
            assert name in table.headers["content-disposition"]
            rows = list(csv.reader(io.StringIO(table.text)))
            assert len(rows) == lines
            assert not any(cell.startswith("=") for row in rows for cell in row)


def test_without_a_model_votes_are_shown_and_none_is_asked_for(tmp_path):
    with studio_server(tmp_path) as address:
        voter = Arena.__new__(Arena)
        voter.http, voter.heard = httpx.Client(base_url=address), b""
        assert voter.ask("GET", "/leaderboard").json()["votes"] == 0
        assert voter.ask("GET", "/arena").json()["error"]["code"] == "no_model"


def test_ten_thousand_votes_are_ranked(capsys):
    votes = simulated(10_000, [0, 40, 80, 120, 160, 200, 240, 280], seed=3)
    begun = time.perf_counter()
    found = board(votes)
    took = time.perf_counter() - begun
    assert [one["model"] for one in found["places"]] == [f"m{i}" for i in reversed(range(8))]
    assert [one["place"] for one in found["places"]] == list(range(1, 9))
    with capsys.disabled():
        print(f"\n10,000 votes on 8 models ranked in {took:.2f} s")


@pytest.mark.slow
def test_intervals_hold_the_true_ratings_as_often_as_they_say(capsys):
    strengths = [-90.0, -30.0, 30.0, 90.0]
    held = total = 0
    for seed in range(200):
        for one in board(simulated(400, strengths, seed))["places"]:
            true = 1000 + strengths[int(one["model"][1:])]
            held += one["low"] <= true <= one["high"]
            total += 1
    with capsys.disabled():
        print(f"\n{held / total:.1%} of {total} intervals hold the true rating")
    assert 0.92 <= held / total <= 0.98
