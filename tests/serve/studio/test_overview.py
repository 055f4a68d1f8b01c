"""The list of runs, and the facts of one, over HTTP."""

import json
import os
import shutil
from time import perf_counter

import pytest

pytest.importorskip("httpx")
from report_folder import write_lines, write_run
from starlette.testclient import TestClient

from graft.runs.table import recorded
from graft.serve.app import bare_app
from graft.serve.studio import overview
from graft.serve.studio.app import Studio, add_studio
from graft.serve.studio.overview import POINTS, Runs, sparkline
from graft.storage import commit, write


@pytest.fixture
def home(tmp_path):
    write_run(tmp_path / "one")
    write_run(tmp_path / "sweep" / "two", steps=20, train={"epochs": 2, "batch_size": 8, "lr": 2e-3})
    return tmp_path


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    app = bare_app()
    home = tmp_path_factory.mktemp("none")
    add_studio(app, Studio(home, home / "votes.sqlite3"))
    return app


@pytest.fixture
def client(app, home):
    app.state.studio.home = home
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def test_every_run_is_listed_with_what_its_folder_says(client):
    runs = {run["name"]: run for run in client.get("/studio/api/runs").json()["runs"]}
    assert sorted(runs) == ["one", "sweep~two"]
    one = runs["one"]
    assert (one["state"], one["step"], one["of"], one["loss"]) == ("finished", 12, 12, 0.2)
    assert (one["model"], one["method"], one["stage"], one["data"]) == (
        "seedling",
        "LoRA (r 4)",
        "sft",
        "rows.jsonl",
    )
    assert one["score"] == {"metric": "perplexity", "before": 100.0, "after": 4.0, "lower": True}
    assert one["curve"] == [float(f"{2 / step:.5g}") for step in range(1, 13)]
    assert one["started"] == "2026-11-30T06:11:08+00:00" and one["bytes"] > 2048 and one["damage"] == []


def test_a_run_is_read_again_only_where_its_files_have_changed(home, monkeypatch):
    runs, read = Runs(home), []
    whole = overview.read_run
    monkeypatch.setattr(overview, "read_run", lambda folder: read.append(folder.name) or whole(folder))
    runs.all()
    runs.all()
    assert sorted(read) == ["one", "two"]
    with open(home / "one" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 13, "loss": 0.1}) + "\n")
    runs.all()
    assert sorted(read) == ["one", "one", "two"]
    shutil.rmtree(home / "one")
    assert [run["name"] for run in runs.all()[0]] == ["sweep~two"]


def test_a_small_curve_of_a_long_run_shows_its_course(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": i, "loss": 1000.0 - i, "lr": 1e-3} for i in range(20_000)])
    curve = sparkline(path)
    assert len(curve) in range(POINTS - 2, POINTS + 1) and curve == sorted(curve, reverse=True)
    assert curve[0] > 990 and curve[-1] < -18_900


def test_a_damaged_folder_is_listed_with_its_damage(client, home):
    (home / "one" / "finished.json").write_text("{")
    (home / "one" / "metrics.jsonl").write_bytes(b"\xff\xfe{\n[1]\n")
    one = client.get("/studio/api/runs/one").json()
    assert one["state"] == "damaged" and one["damage"] == ["finished.json is damaged"]


FILES = ("data_report.json", "evaluation.json", "finished.json", "metrics.jsonl", "notes.json", "recipe.yaml",
         "samples.md", "timing.jsonl")  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"\xff{", b'{"a": 1}', b"null"])
def test_no_content_of_a_file_is_a_defect(client, home, content):
    for file in FILES:
        (home / "one" / file).write_bytes(content)
        for where in ("runs/one", "runs/one/curves", "compare?run=one&run=sweep~two"):
            assert client.get(f"/studio/api/{where}").status_code == 200, (where, file)
    assert len(client.get("/studio/api/runs").json()["runs"]) == 2


def test_an_empty_folder_has_no_runs(tmp_path):
    assert Runs(tmp_path / "none").all() == ([], 0)


def test_a_name_that_no_run_has_is_not_found(client):
    for name in ("three", "..", "one%2F..", "sweep", "sweep%2Ftwo", "%00", "x" * 500):
        for path in ("", "/curves", "/report"):
            assert client.get(f"/studio/api/runs/{name}{path}").status_code == 404, name + path


def test_the_facts_of_a_run_are_those_of_its_folder(client, home):
    one = client.get("/studio/api/runs/one").json()
    assert one["recipe"] == (home / "one" / "recipe.yaml").read_text()
    assert one["command"] == f"graft train {home / 'one'}" and one["seconds"] == 24.0
    assert one["about"]["versions"]["torch"] == "2.8.0"
    assert one["data"]["read"] == 25 and one["data"]["rejects"][0]["source"].endswith("rows.jsonl:7")
    assert one["notes"] == ["data.max_length is 64 here"]
    assert [event["kind"] for event in one["events"]] == ["start", "warning", "end"]
    assert one["scores"]["after"] == {"perplexity": 4.0, "loss": 1.386}
    assert one["adapter"]["bytes"] == 2048 and one["report"] is False


def test_a_checkpoint_is_whole_or_says_what_is_wrong(client, home):
    for step in (10, 20):
        commit(
            home / "one" / "checkpoints" / f"step-{step:06}", lambda folder: write(folder / "state", b"abc")
        )
    (home / "one" / "checkpoints" / "step-000020" / "state").write_bytes(b"abd")
    new, old = client.get("/studio/api/runs/one").json()["checkpoints"]
    assert (new["step"], old["step"], old["wrong"]) == (20, 10, "") and len(old["digest"]) == 12
    assert new["wrong"].startswith("step-000020/state has SHA-256") or new["wrong"].startswith(
        "state has SHA-256"
    )


def test_samples_stand_by_step_and_prompt(client, home):
    write_run(home / "three", train={"samples": ["Hi", "Why?"], "epochs": 1, "batch_size": 8})
    text = "".join(
        f"## step {step}\n\nHi\n\nA{step}\n\n---\n\nWhy?\n\nB{step}\n\n---\n\n" for step in (5, 10)
    )
    (home / "three" / "samples.md").write_text(text)
    samples = client.get("/studio/api/runs/three").json()["samples"]
    assert samples["prompts"] == ["Hi", "Why?"]
    assert samples["steps"] == [{"step": 5, "answers": ["A5", "B5"]}, {"step": 10, "answers": ["A10", "B10"]}]


def test_the_curves_come_with_their_charts_and_then_only_what_is_new(client, home):
    whole = client.get("/studio/api/runs/one/curves").json()
    assert whole["whole"] is True and whole["step"] == 12
    assert whole["series"]["eval_loss"] == [[12], [0.5]] and len(whole["series"]["seconds"][0]) == 12
    loss = next(chart for chart in whole["charts"] if chart["title"] == "Loss")
    assert [name for name, _ in loss["left"]] == ["loss", "loss_mean", "eval_loss"]
    assert "Seconds per step" in [chart["title"] for chart in whole["charts"]]
    with open(home / "one" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 13, "loss": 0.1}) + "\n")
    since = f"since={whole['step']}&generation={whole['generation']}"
    news = client.get(f"/studio/api/runs/one/curves?{since}").json()
    assert news["whole"] is False and news["series"]["loss"] == [[13], [0.1]]
    other = client.get("/studio/api/runs/one/curves?since=12&generation=99").json()
    assert other["whole"] is True and len(other["series"]["loss"][0]) == 13


def test_a_view_that_is_none_is_refused(client):
    for query in ("axis=x", "from=nan", "to=inf", "since=-2", "most=1", "since=x", "generation=1.5"):
        assert client.get(f"/studio/api/runs/one/curves?{query}").status_code == 400, query


def test_runs_are_compared_as_the_command_line_compares_them(client, home):
    found = client.get("/studio/api/compare?run=one&run=sweep~two").json()
    names = [str(home / "one"), str(home / "sweep" / "two")]
    assert found["columns"] == [key for key in recorded(names).columns if key != "output"] == ["train.lr"]
    assert found["scores"]["one"]["perplexity"] == [100.0, 4.0]
    assert len(found["curves"]["loss"]["sweep~two"][0]) == 20


def test_runs_that_differ_in_their_seed_have_a_mean_and_a_deviation(client, home):
    for seed, score in ((1, 3.0), (2, 5.0)):
        folder = write_run(home / f"seed-{seed}", train={"seed": seed, "epochs": 2, "batch_size": 8})
        scores = json.loads((folder / "evaluation.json").read_text())
        scores.pop("sha256", None)
        from graft import storage

        scores["columns"]["after"] = {"perplexity": score}
        storage.write_record(folder / "evaluation.json", scores)
    (group,) = client.get("/studio/api/compare?run=seed-1&run=seed-2").json()["groups"]
    assert group["mean"] == {"perplexity": 4.0} and group["deviation"] == {"perplexity": 2**0.5}


def test_a_comparison_of_what_cannot_be_compared_is_refused(client):
    for query in ("", "run=one", "run=one&run=one", "run=one&run=gone", "&".join(["run=one"] * 9)):
        assert client.get(f"/studio/api/compare?{query}").status_code in (400, 404), query


def test_a_report_is_a_page_that_sees_nothing_of_the_studio(client, home):
    (home / "one" / "report.html").write_text("<p>Hello")
    answer = client.get("/studio/api/runs/one/report")
    assert answer.text == "<p>Hello" and answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")


def test_a_report_that_is_a_link_is_not_followed(client, home, tmp_path_factory):
    secret = tmp_path_factory.mktemp("other") / "secret.txt"
    secret.write_text("secret")
    os.symlink(secret, home / "one" / "report.html")
    assert client.get("/studio/api/runs/one/report").status_code == 404


@pytest.mark.parametrize("verb", ["stop", "resume"])
def test_nothing_is_stopped_or_continued_without_the_token(client, verb):
    assert client.post(f"/studio/api/runs/one/{verb}", json={}).status_code == 403


def test_a_run_that_is_not_at_work_cannot_be_stopped(app, client):
    token = {"X-Graft-Token": app.state.token}
    answer = client.post("/studio/api/runs/one/stop", json={}, headers=token)
    assert (
        answer.status_code == 409
        and "no process of this machine works on one" in answer.json()["error"]["message"]
    )


def test_a_long_list_is_read_little_by_little_the_newest_first(home, monkeypatch):
    write_run(home / "three")
    for name, changed in (("one", 300), ("three", 100), ("sweep/two", 200)):
        for path in (home / name).iterdir():
            os.utime(path, (changed, changed))
    monkeypatch.setattr(overview, "PATIENCE_S", 0.0)
    runs = Runs(home)
    told = [([run["name"] for run in listed], unread) for listed, unread in (runs.all() for _ in range(3))]
    assert told == [(["one"], 2), (["one", "sweep~two"], 1), (["one", "sweep~two", "three"], 0)]


@pytest.mark.slow
def test_five_hundred_runs_are_listed_without_being_read_twice(tmp_path, monkeypatch, capsys):
    whole, read, took = overview.read_run, [], []
    first = write_run(tmp_path / "run-0", steps=1000)
    for number in range(1, 500):
        shutil.copytree(first, tmp_path / f"run-{number}")
    monkeypatch.setattr(overview, "read_run", lambda folder: read.append(folder) or whole(folder))
    runs, unread = Runs(tmp_path), 1
    while unread:
        begun = perf_counter()
        listed, unread = runs.all()
        took.append(perf_counter() - begun)
    begun = perf_counter()
    assert len(runs.all()[0]) == len(listed) == 500 and len(read) == 500
    again = perf_counter() - begun
    with capsys.disabled():
        print(f"\n500 runs: first answer {took[0]:.2f} s, all {sum(took):.0f} s, again {1000 * again:.0f} ms")
