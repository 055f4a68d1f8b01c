"""Votes become rows that a preference run reads. What becomes none is counted; each row knows its votes."""

import json
from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("uvicorn")
from arena_votes import Arena, battle
from served import write_adapters
from studio_server import studio_server

from graft.data.preparation import load_rows
from graft.models.load import load
from graft.recipe import read
from graft.serve.studio import feedback as module
from graft.serve.studio.pairs import REASONS, select
from graft.serve.studio.votes import Vote, Votes
from graft.stages.stage import stage_of


def vote(number, verdict, *, prompt="Why?", answers=("Yes.", "No."), undone_at=None, turned=False, **more):
    sides = ("two", "one") if turned else ("one", "two")
    fight = battle(f"battle-{number}", *sides, prompt=prompt, answers=answers, **more)
    return Vote(fight, verdict, "", (), "voter", f"key-{number}", 1_000.0 + number, undone_at)


def several(count):
    """Return votes for the left answer on as many prompts."""
    return [vote(i, "a", prompt=f"Why {i}?", answers=(f"Yes {i}.", f"No {i}.")) for i in range(count)]


def accounted(votes, **settings):
    """Return what votes become, after every one was found used or left out."""
    found = select(votes, **settings)
    assert found.used + found.left_out.total() == len(votes)
    assert set(found.left_out) <= set(REASONS)
    return found


def test_the_better_answer_is_the_chosen_one_whatever_its_side():
    found = accounted([vote(0, "a"), vote(1, "b", prompt="How?")], held_out=0)
    assert [one.row for one in found.train] == [
        {"prompt": "Why?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "How?", "chosen": "No.", "rejected": "Yes."},
    ]


def test_conversations_stay_conversations():
    talk = [{"role": "user", "content": "Why?"}]
    (one,) = accounted([vote(0, "b", prompt=talk)], held_out=0).train
    assert one.row == {
        "prompt": talk,
        "chosen": [{"role": "assistant", "content": "No."}],
        "rejected": [{"role": "assistant", "content": "Yes."}],
    }


@pytest.mark.parametrize(
    ("reason", "odd"),
    [
        ("bad", vote(9, "bad")),
        ("empty", vote(9, "a", answers=(" ", "No."))),
        ("flagged", vote(9, "a", flagged=True)),
        ("other form", vote(9, "a", prompt=[{"role": "user", "content": "Why?"}])),
        ("same", vote(9, "a", answers=("Yes.", "Yes. "))),
        ("tie", vote(9, "tie")),
        ("undone", vote(9, "a", undone_at=2.0)),
    ],
)
def test_what_makes_no_pair_is_left_out_with_its_reason(reason, odd):
    found = accounted([*several(3), odd], held_out=0)
    assert len(found.train) == 3
    assert {key: count for key, count in found.left_out.items() if count} == {reason: 1}


def test_a_majority_decides_and_an_even_vote_decides_nothing():
    # The same models and prompt: two votes for `one`, which stands on either side, and one for `two`.
    disputed = [vote(0, "a"), vote(1, "b", answers=("No!", "Yes!"), turned=True), vote(2, "b")]
    found = accounted(disputed, held_out=0)
    assert [one.row["chosen"] for one in found.train] == ["Yes.", "Yes!"]
    assert found.left_out["outvoted"] == 1
    assert accounted(disputed, held_out=0, majority=0.7).left_out["conflicting"] == 3
    assert accounted(disputed[:1] + disputed[2:], held_out=0).left_out["conflicting"] == 2


def test_the_same_row_again_is_merged_and_keeps_its_votes():
    found = accounted(
        [vote(0, "a"), vote(1, "a"), vote(2, "b", answers=("No.", "Yes."), turned=True)], held_out=0
    )
    (one,) = found.train
    assert [own.key for own in one.votes] == ["key-0", "key-1", "key-2"]
    assert (found.used, found.left_out["twice"]) == (1, 2)


def test_both_bad_are_two_bad_answers_for_kto():
    found = accounted([vote(0, "bad"), vote(1, "a", prompt="How?")], objective="kto", held_out=0)
    labels = Counter((one.row["prompt"], one.row["completion"], one.row["label"]) for one in found.train)
    assert labels == Counter(
        [("Why?", "Yes.", False), ("Why?", "No.", False), ("How?", "Yes.", True), ("How?", "No.", False)]
    )


def test_prompts_are_held_out_whole_and_stay_so():
    votes = several(40) + [replace_answers(one) for one in several(40)]
    found = accounted(votes, held_out=0.2)
    held, train = ({one.asked for one in part} for part in (found.held, found.train))
    assert len(held) == 8 and not held & train
    assert len(found.held) == 16
    assert {one.asked for one in accounted(votes[::-1], held_out=0.2).held} == held
    assert not accounted(several(1), held_out=0.5).held


def replace_answers(one):
    a, b = one.battle.answers
    return replace(one, battle=replace(one.battle, id=f"{one.battle.id}-2", answers=(f"{a}!", f"{b}!")))


@pytest.fixture(scope="module")
def base():
    return load("seedling", dtype="fp32")


@pytest.fixture
def place(tmp_path, base, monkeypatch):
    """The folder of a studio with votes, a voter there, and the runs that it was asked to start."""
    store = Votes(tmp_path / "votes.sqlite3")
    for one in [*several(20), vote(20, "tie"), vote(21, "bad", prompt="What?", answers=("x", "y"))]:
        store.keep(one.battle)
        store.vote(one.battle.id, one.verdict, key=one.key, voter="somebody")
    store.close()
    write_adapters(base, tmp_path, 1)
    started = []
    monkeypatch.setattr(module, "start", lambda *given: started.append(given))
    with studio_server(tmp_path, base) as address:
        yield tmp_path, Arena(address), started


def test_a_preview_says_what_would_be_learnt(place):
    _, voter, _ = place
    seen = voter.ask("GET", "/preferences?held_out=0.1").json()
    assert (seen["votes"], seen["used"], seen["train"], seen["held_out"]) == (22, 20, 18, 2)
    assert {one["reason"]: one["votes"] for one in seen["left_out"]} == {"tie": 1, "bad": 1}
    assert seen["rows"][0] == {
        "prompt": "Why 0?", "chosen": "Yes 0.", "rejected": "No 0.", "votes": 1, "from": ["one", "two"],
    }  # fmt: skip
    assert voter.ask("GET", "/preferences?objective=kto&held_out=0").json()["train"] == 42
    assert voter.ask("GET", "/preferences?majority=0.4").status_code == 400


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_one_click_writes_rows_that_graft_reads_their_provenance_and_a_recipe(place, objective):
    home, voter, started = place
    answer = voter.ask("POST", "/preferences", name="liked", objective=objective, lr=1e-3)
    assert answer.status_code == 200, answer.text
    ((where, recipe, name, origin),) = started
    assert (where, name, origin["from"]) == (home, "liked", "/studio/preferences")
    chosen = read({**recipe, "output": str(home / "liked")})
    assert (chosen.model, chosen.dtype, chosen.train.lr) == ("seedling", "fp32", 1e-3)
    assert chosen.stage_name == "preference" and chosen.objective == objective
    loaded = load_rows(chosen.data, stage_of(chosen).accepts())
    assert (len(loaded.train), len(loaded.eval or [])) == (answer.json()["train"], answer.json()["held_out"])
    assert not loaded.rejects
    facts = json.loads((home / ".studio" / "liked.votes" / "provenance.json").read_bytes())
    assert len(facts["rows"]) == len(loaded.train) + len(loaded.eval)
    told = facts["rows"][0]["votes"][0]
    assert told["a"] == {"model": "one", "digest": "d-one"} and told["verdict"] in ("a", "bad")
    assert told["voter"] and "somebody" not in json.dumps(facts)
    assert told["sampling"] == {"max_tokens": 16} and told["voted"] > 0


def test_a_run_goes_on_from_an_adapter_by_its_name(place):
    home, voter, started = place
    assert voter.ask("POST", "/preferences", name="x", start="../../etc").status_code == 404
    assert not (home / ".studio").exists() and not started
    assert voter.ask("POST", "/preferences", name="x", start="lora-0").status_code == 200
    recipe = started[0][1]
    assert recipe["adapter"] == str(home / "lora-0") and "method" not in recipe
    assert read({**recipe, "output": "x"}).adapter == recipe["adapter"]


@pytest.mark.parametrize("name", ["../out", "", ".studio", "a/b", "x" * 65, "a\u0000b"], ids=repr)
def test_no_name_of_a_run_becomes_a_path(place, name):
    home, voter, started = place
    voter.ask("GET", "/preferences")  # which opens the votes
    before = sorted(home.rglob("*"))
    answer = voter.ask("POST", "/preferences", name=name)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "name"
    assert not started and sorted(home.rglob("*")) == before


def test_a_name_that_is_taken_is_refused_and_its_rows_stay(place):
    home, voter, started = place
    assert voter.ask("POST", "/preferences", name="liked").status_code == 200
    rows = (home / ".studio" / "liked.votes" / "train.jsonl").read_bytes()
    answer = voter.ask("POST", "/preferences", name="liked", objective="kto")
    assert answer.status_code == 409
    assert (home / ".studio" / "liked.votes" / "train.jsonl").read_bytes() == rows
    assert len(started) == 1


def test_a_run_that_cannot_start_leaves_no_rows_behind(place, monkeypatch):
    home, voter, _ = place

    def refused(*given):
        raise module.ApiError(409, "too many runs")

    monkeypatch.setattr(module, "start", refused)
    assert voter.ask("POST", "/preferences", name="liked").status_code == 409
    assert not (home / ".studio" / "liked.votes").exists()


def test_without_votes_there_is_nothing_to_learn(tmp_path, base):
    with studio_server(tmp_path, base) as address:
        answer = Arena(address).ask("POST", "/preferences", name="liked")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_pairs")


def test_only_the_pages_of_this_server_start_a_run(place):
    _, voter, started = place
    del voter.http.headers["X-Graft-Token"]
    assert voter.ask("POST", "/preferences", name="liked").status_code == 403
    assert not started
