"""Battles that nobody fought, and a voter who asks a studio for some, for tests of votes."""

import json
import re
import secrets

import httpx

from graft.serve.studio.votes import Battle, Contestant


def battle(name, first="one", second="two", *, prompt="Why?", answers=("Yes.", "No."), flagged=False):
    """Return a battle of two models; a model's digest is made of its name."""
    sides = Contestant(first, f"d-{first}"), Contestant(second, f"d-{second}")
    return Battle(name, 1_000.0, prompt, sides, answers, {"max_tokens": 16}, flagged)


class Arena:
    """A voter at a studio.  heard: every byte of every answer."""

    def __init__(self, address, voter="tester"):
        self.http = httpx.Client(base_url=address, timeout=120)
        page = self.http.get("/studio/arena").text
        self.http.headers["X-Graft-Token"] = re.search(r'name="graft-token" content="([^"]*)"', page)[1]
        self.voter, self.heard = voter, b""

    def ask(self, method, path, **body):
        """Return the response to a request below /studio/api."""
        response = self.http.request(method, f"/studio/api{path}", **({"json": body} if body else {}))
        self.heard += response.content + repr(response.headers).encode()
        return response

    def fight(self, prompt, **more):
        """Return (battle, [answer a, answer b], flagged). Raises AssertionError with what went wrong."""
        asked = {"messages": prompt} if isinstance(prompt, list) else {"prompt": prompt}
        response = self.ask("POST", "/battles", **asked, **more)
        assert response.status_code == 200, response.text
        lines = [json.loads(line) for line in response.text.splitlines()]
        assert lines[-1].get("ready"), lines[-1]
        answers = [
            "".join(line.get("text", "") for line in lines if line.get("side") == side) for side in "ab"
        ]
        return lines[0]["battle"], answers, lines[-1]["flagged"]

    def vote(self, battle, verdict, key=None, **more):
        """Return the answer to a vote."""
        key = key or f"key-{secrets.token_hex(8)}"
        body = {"battle": battle, "verdict": verdict, "key": key, "voter": self.voter, **more}
        return self.ask("POST", "/votes", **body)


def write_asking_run(home, rows):
    """Write a run's folder without a model, whose held-out rows ask for something: rows of SFT."""
    folder = home / "asks"
    (folder / "checkpoints").mkdir(parents=True)
    for name, own in (("rows", rows[:2]), ("held", rows[2:])):
        text = "".join(json.dumps(row) + "\n" for row in own)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    recipe = {
        "model": "seedling",
        "data": {"train": str(folder / "rows.jsonl"), "eval": str(folder / "held.jsonl")},
        "output": str(folder),
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
