"""The blind arena over HTTP: answers of two models, nothing that tells which, votes that count once."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

uvicorn = pytest.importorskip("uvicorn")
from arena_votes import Arena, write_asking_run  # noqa: E402
from served import write_adapters  # noqa: E402
from studio_server import studio_server  # noqa: E402

from graft.methods.task_head import TaskHead  # noqa: E402
from graft.models.load import load  # noqa: E402
from graft.serve.studio import arena as module  # noqa: E402
from graft.serve.studio.pairing import CHANCE, names_one, seldom  # noqa: E402
from graft.serve.studio.votes import Contestant  # noqa: E402
from models import randomise  # noqa: E402

PROMPT = "Write a product description.\n\nname: Gentle Echo\ntype: desk fan\n\nDescription:\n"


@pytest.fixture(scope="module")
def base():
    return load("seedling", dtype="fp32")


@pytest.fixture(scope="module")
def place(tmp_path_factory, base):
    """The address of a studio with a base and three adapters that write, and their names and digests."""
    home = tmp_path_factory.mktemp("runs")
    names = write_adapters(base, home, 3)
    head = base.attach("new", TaskHead(num_labels=3))
    randomise(head, 1)
    head.save(home / "classes-only")
    base.detach("new")
    rows = [{"prompt": f"Ask {i}.\n", "completion": "Well."} for i in range(6)]
    write_asking_run(home, rows)
    with studio_server(home, base) as address:
        models = httpx.get(f"{address}/v1/models").json()["data"]
        digests = {one["id"]: one.get("digest") or base.fingerprint() for one in models}
        yield address, names, digests


@pytest.fixture
def arena(place):
    voter = Arena(place[0])
    yield voter
    voter.http.close()


def test_nothing_that_is_sent_before_the_vote_names_a_model(arena, place):
    _, names, digests = place
    page = arena.http.get("/studio/arena")
    script = arena.http.get("/studio/web/arena.js")
    asked = [arena.ask("GET", "/arena"), arena.ask("GET", "/prompts/next")]
    assert all(response.status_code == 200 for response in [page, script, *asked])
    battles = [arena.fight(PROMPT, max_tokens=12) for _ in range(6)]
    refused = [
        arena.ask("POST", "/battles", prompt=PROMPT, contestants=["nobody", names[0]]),
        arena.ask("POST", "/battles", prompt=PROMPT, max_tokens=10**6),
        arena.ask("POST", "/battles", prompt="x " * 40_000),
        arena.ask("POST", "/battles", prompt=PROMPT, temperature=9),
        arena.ask("POST", "/battles"),
        arena.ask("POST", "/votes", battle="unknown-battle", verdict="a", key="12345678"),
    ]
    assert [response.status_code // 100 for response in refused] == [4] * len(refused)
    everything = page.content + script.content + arena.heard
    telling = [*names, "seedling", "classes-only", *digests.values(), *(d[:12] for d in digests.values())]
    assert not [word for word in telling if word.encode() in everything]
    told = arena.vote(battles[0][0], "a").json()  # and the search can find them
    assert {told["a"]["model"], told["b"]["model"]} <= {*names, "seedling"}
    assert told["a"]["model"].encode() in arena.heard


def test_lines_before_the_vote_have_the_same_form_whoever_answers(arena):
    response = arena.ask("POST", "/battles", prompt=PROMPT, max_tokens=8, temperature=0)
    lines = [json.loads(line) for line in response.text.splitlines()]
    forms = {tuple(sorted(line)) for line in lines}
    assert forms <= {("battle",), ("side", "text"), ("cut", "ended", "side"), ("flagged", "ready")}
    assert [line["side"] for line in lines if "ended" in line] in (["a", "b"], ["b", "a"])
    assert response.headers["cache-control"] == "no-store"


def test_answers_are_those_of_the_models_that_are_revealed(arena, place):
    for _ in range(4):
        battle, answers, _ = arena.fight(PROMPT, max_tokens=16, temperature=0)
        told = arena.vote(battle, "tie").json()
        for side, answer in zip("ab", answers, strict=True):
            asked = {"model": told[side]["model"], "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
            alone = httpx.post(f"{place[0]}/v1/completions", json=asked, timeout=60).json()
            assert answer == alone["choices"][0]["text"]


def test_a_conversation_passes_through_the_chat_template(arena, place):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Describe a fan."}]
    battle, answers, _ = arena.fight(messages, max_tokens=8, temperature=0)
    told = arena.vote(battle, "tie").json()
    asked = {"model": told["a"]["model"], "messages": messages, "max_tokens": 8, "temperature": 0}
    alone = httpx.post(f"{place[0]}/v1/chat/completions", json=asked, timeout=60).json()
    assert answers[0] == alone["choices"][0]["message"]["content"]


def test_the_same_key_twice_counts_once_and_says_the_same(arena):
    battle, _, _ = arena.fight(PROMPT, max_tokens=4)
    before = arena.ask("GET", "/arena").json()["votes"]
    first = arena.vote(battle, "a", key="key-of-this", reason="livelier", tags=["style"])
    again = arena.vote(battle, "a", key="key-of-this", reason="livelier", tags=["style"])
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert arena.ask("GET", "/arena").json()["votes"] == before + 1
    assert arena.vote(battle, "b").status_code == 409


def test_many_at_once_with_one_key_count_once(arena):
    battle, _, _ = arena.fight(PROMPT, max_tokens=4)
    before = arena.ask("GET", "/arena").json()["votes"]
    with ThreadPoolExecutor(8) as several:
        answers = list(several.map(lambda _: arena.vote(battle, "b", key="all-the-same").json(), range(16)))
    assert all(answer == answers[0] for answer in answers)
    assert arena.ask("GET", "/arena").json()["votes"] == before + 1


def test_a_vote_is_undone_over_http(arena):
    battle, _, _ = arena.fight(PROMPT, max_tokens=4)
    before = arena.ask("GET", "/arena").json()["votes"]
    assert arena.vote(battle, "a", key="undo-this-one").json()["counts"]
    undone = arena.ask("POST", "/votes/undo", battle=battle, key="undo-this-one")
    assert undone.status_code == 200 and undone.json()["undone"] and not undone.json()["counts"]
    assert arena.ask("GET", "/arena").json()["votes"] == before
    assert arena.ask("POST", "/votes/undo", battle=battle, key="another-key").status_code == 404


def test_only_those_meet_who_are_asked_for(arena, place):
    chosen = sorted(place[1])[:2]
    for _ in range(3):
        battle, _, _ = arena.fight(PROMPT, max_tokens=2, contestants=chosen)
        told = arena.vote(battle, "bad").json()
        assert sorted([told["a"]["model"], told["b"]["model"]]) == chosen


def test_a_model_that_writes_no_text_is_not_drawn(arena, place):
    refused = arena.ask("POST", "/battles", prompt=PROMPT, contestants=["classes-only", place[1][0]])
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "too_few_models"
    assert "classes-only" not in refused.text
    assert arena.ask("GET", "/arena").json()["models"] == 4  # the base and three adapters


def test_an_answer_that_names_a_model_is_flagged_and_its_vote_does_not_count(arena, monkeypatch):
    monkeypatch.setattr(module, "names_one", lambda text, names: True)
    battle, _, flagged = arena.fight(PROMPT, max_tokens=4)
    assert flagged
    told = arena.vote(battle, "a").json()
    assert told["flagged"] and not told["counts"]
    assert arena.ask("GET", "/leaderboard").json()["unseen"]["flagged"] >= 1


def test_a_failure_in_the_middle_names_nobody_and_keeps_nothing(arena, place, monkeypatch):
    async def failing(choices):
        yield choices[0], module.Completion("", [], "stop")
        raise RuntimeError(f"{place[1][0]} broke")

    monkeypatch.setattr(module, "merged", failing)
    response = arena.ask("POST", "/battles", prompt=PROMPT, max_tokens=4)
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[-1]["error"]["code"] == "no_answer"
    assert place[1][0] not in response.text
    assert arena.vote(lines[0]["battle"], "a").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"verdict": "c"}, {"battle": "../x"}, {"key": "short"}, {"tags": ["x"] * 9}, {"tags": [""]},
        {"reason": "x" * 2001}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_vote_of_another_form_is_refused(arena, body):
    response = arena.ask(
        "POST", "/votes", **{"battle": "some-battle", "verdict": "a", "key": "some-key-1", **body}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"]


@pytest.mark.parametrize("path", ["/battles", "/votes", "/votes/undo"])
def test_other_sites_cannot_vote(arena, path):
    del arena.http.headers["X-Graft-Token"]
    assert arena.ask("POST", path, battle="some-battle", key="some-key-1").status_code == 403


def test_prompts_come_from_held_out_rows_those_with_fewest_votes_first(arena):
    def drawn():
        return arena.ask("GET", "/prompts/next").json()

    first = drawn()
    assert first["of"] == 4 and first["prompt"] in {f"Ask {i}.\n" for i in range(2, 6)}
    for _ in range(3):
        battle, _, _ = arena.fight(drawn()["prompt"], max_tokens=1)
        arena.vote(battle, "tie")
    (left,) = {drawn()["prompt"] for _ in range(12)}
    battle, _, _ = arena.fight(left, max_tokens=1)
    arena.vote(battle, "tie")
    assert len({drawn()["prompt"] for _ in range(60)}) > 1  # by chance once in 4^59 not


def test_sides_are_drawn_and_seldom_pairs_come_first():
    able = [Contestant(name, "") for name in "xyz"]
    met = module.Counter({frozenset(able[:2]): 9, frozenset(able[1:]): 9})
    drawn = module.Counter(frozenset(seldom(able, met)) for _ in range(2_000))
    # 1 : 1/100 : 1/100, so 98 % are the pair that never met; fewer than 90 % in 2,000 has no chance.
    assert drawn[frozenset([able[0], able[2]])] > 1_800
    assert type(CHANCE).__name__ == "SystemRandom"


def test_sides_are_random(arena, place):
    left = module.Counter()
    for _ in range(24):
        battle, _, _ = arena.fight(PROMPT, max_tokens=1, contestants=["seedling", place[1][0]])
        left[arena.vote(battle, "tie").json()["a"]["model"]] += 1
    assert len(left) == 2  # by chance one in eight million times not


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("I am SQL Expert.", True), ("sql_expert", True), ("As sql-expert, I", True), ("sqlexpert", True),
        ("a mysql expert", False), ("an expert in sql", False), ("", False), ("v1 of it", False),
    ],
    ids=str,
)  # fmt: skip
def test_names_are_found_in_answers(text, named):
    assert names_one(text, ["sql-expert", "v1"]) is named


def test_the_page_has_no_script_of_its_own_inside(arena):
    page = arena.http.get("/studio/arena")
    assert not re.search(r"<script(?![^>]*src=)", page.text)
