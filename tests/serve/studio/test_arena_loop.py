"""The loop closed: blind votes, the rows of them, a run of its own process, and the same voter again."""

import threading

import pytest

pytest.importorskip("uvicorn")
from arena_votes import Arena
from served import write_adapters
from studio_server import studio_server

from graft.models.load import load
from graft.runs.records import read_run
from graft.seedling.preferences import prompts
from graft.serve.security import Keys
from graft.serve.studio.processes import job_of, log_tail, origin_of

TOKENS = 48


def vote_for_shorter_answers(voter, asked, contestants):
    """Let a voter who likes short answers vote once on each prompt."""
    for prompt in asked:
        battle, (a, b), _ = voter.fight(prompt, contestants=contestants, max_tokens=TOKENS, temperature=1.0)
        verdict = "tie" if len(a) == len(b) else "a" if len(a) < len(b) else "b"
        answer = voter.vote(battle, verdict, tags=["length"])
        assert answer.status_code == 200, answer.text


@pytest.mark.slow
def test_what_is_learnt_of_blind_votes_wins_the_next_ones(tmp_path, capsys):
    base = load("seedling", dtype="fp32")
    (old,) = write_adapters(base, tmp_path, 1, scale=0.02)
    asked = [row["prompt"] for row in prompts(220, 5)]
    with studio_server(tmp_path, base, Keys.of(None, "admin-key")) as address:
        voter = Arena(address, voter="likes short answers")
        voter.http.headers["Authorization"] = "Bearer admin-key"
        vote_for_shorter_answers(voter, asked[:120], ["seedling", old])
        started = voter.ask("POST", "/preferences", name="liked", lr=2e-3)
        assert started.status_code == 200, started.text
        while (job := job_of(tmp_path, "liked")) is not None and job.lives:
            threading.Event().wait(0.2)
        assert read_run(tmp_path / "liked").state == "finished", log_tail(tmp_path, "liked")
        loaded = voter.http.post("/v1/load_lora_adapter", json={"lora_name": "liked"})
        assert loaded.status_code == 200, loaded.text
        vote_for_shorter_answers(voter, asked[120:], ["liked", old])
        found = voter.ask("GET", "/leaderboard?tag=length").json()
    places = {place["model"]: place for place in found["places"]}
    assert places["liked"]["low"] > places[old]["high"]
    assert origin_of(tmp_path, "liked")["from"] == "/studio/preferences"
    with capsys.disabled():
        for one in found["places"]:
            print(f"\n{one['model']:9} {one['rating']:.0f} ({one['low']:.0f} to {one['high']:.0f})", end="")
        print(f"\n{found['votes']} votes, {started.json()['train']} pairs")
