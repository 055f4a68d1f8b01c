"""Runs as processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from graft.errors import UsageError
from graft.runs.records import read_run
from graft.serve.studio import processes
from graft.serve.studio.processes import Refusal, job_of, log_tail, origin_of, resume, start, stop
from graft.storage.lock import holding

RECIPE = {"model": "seedling", "data": {"train": "seedling:descriptions"}, "train": {"max_steps": 4}}
# What stands for graft: it holds the folder as a run does, says so, and ends when it is asked to.
RUN = """
import signal, sys, time
from pathlib import Path
from graft.storage.lock import locked
print("words", *sys.argv[1:2], flush=True)
name = Path(sys.argv[2])
folder = name.parent.parent / name.stem if name.suffix == ".yaml" else name
with locked(folder):
    (folder / "recipe.yaml").touch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("at work", flush=True)
    while True:
        time.sleep(0.05)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home whose runs are stand-ins; those that are left are killed."""
    monkeypatch.setattr(processes, "PROGRAM", (sys.executable, "-c", RUN))
    yield tmp_path
    for name, job in processes.jobs(tmp_path).items():
        if job.lives:
            os.kill(job.pid, signal.SIGKILL)
            until(lambda name=name: not job_of(tmp_path, name).lives)


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def begun(home, name="one"):
    folder = start(home, RECIPE, name)
    until(lambda: holding(folder) is not None and "at work" in log_tail(home, name))
    return folder


def test_a_started_run_has_a_session_and_a_log_of_its_own(home):
    folder = begun(home)
    pid = holding(folder)
    assert pid == job_of(home, "one").pid and os.getsid(pid) == pid != os.getsid(0)
    assert log_tail(home, "one").splitlines() == ["words train", "at work"]
    assert job_of(home, "one").command == f"graft train {home / '.studio' / 'one.yaml'}"


def test_the_recipe_is_kept_as_it_was_given(home):
    from graft.recipe import read

    start(home, RECIPE | {"output": "elsewhere"}, "one", {"votes": 3})
    kept = read(home / ".studio" / "one.yaml")
    assert kept == read(RECIPE | {"output": str(home / "one")})
    assert origin_of(home, "one") == {"votes": 3}


def test_a_run_is_stopped_by_whoever_asks_its_lock(home):
    folder = begun(home)
    assert stop(folder) == job_of(home, "one").pid
    until(lambda: not job_of(home, "one").lives)
    assert holding(folder) is None
    with pytest.raises(Refusal, match="no process of this machine works on one"):
        stop(folder)


def test_a_killed_run_counts_as_ended_and_goes_on_when_it_is_asked(home):
    folder = begun(home)
    with pytest.raises(Refusal, match="one is at work"):
        resume(home, "one", folder)
    stop(folder, at_once=True)
    until(lambda: not job_of(home, "one").lives)
    resume(home, "one", folder)
    until(lambda: holding(folder) is not None)
    assert job_of(home, "one").command == f"graft train {folder}"


def test_nobody_is_signalled_whose_number_only_stands_in_an_old_lock(home):
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        folder = home / "one"
        folder.mkdir()
        note = {"pid": bystander.pid, "host": os.uname().nodename, "started": "2026-11-30 06:11:08"}
        (folder / ".lock").write_text(json.dumps(note))
        for at_once in (False, True):
            with pytest.raises(Refusal, match="no process"):
                stop(folder, at_once=at_once)
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", ".studio", "files", "-r", "x" * 65, "a b", "é", "a\0"],
)
def test_a_name_that_is_none_is_refused_and_nothing_is_written(home, name):
    with pytest.raises(UsageError, match="as the name of a run"):
        start(home, RECIPE, name)
    assert list(home.iterdir()) == []


def test_a_wrong_recipe_is_refused_and_nothing_is_written(home):
    with pytest.raises(UsageError, match=r"train\.lr"):
        start(home, RECIPE | {"train": {"lr": -1.0}}, "one")
    assert list(home.iterdir()) == []


def test_a_name_is_given_once(home):
    begun(home)
    with pytest.raises(Refusal, match="there is a run one already"):
        start(home, RECIPE, "one")
    (home / "two").mkdir()
    with pytest.raises(Refusal, match="there is a run two already"):
        start(home, RECIPE, "two")


def test_only_so_many_runs_are_at_work(home, monkeypatch):
    monkeypatch.setattr(processes, "MOST", 1)
    begun(home)
    with pytest.raises(Refusal, match="1 runs are at work: one"):
        start(home, RECIPE, "two")


def test_a_run_that_fails_at_once_leaves_its_reason(home, monkeypatch):
    monkeypatch.setattr(processes, "PROGRAM", (sys.executable, "-c", "print('no room'); raise SystemExit(1)"))
    start(home, RECIPE, "one")
    until(lambda: not job_of(home, "one").lives)
    assert log_tail(home, "one") == "no room\n"
    start(home, RECIPE, "one")  # the name is free: nothing was written under it


def test_a_long_log_is_shown_from_a_whole_line_on(home):
    (home / ".studio").mkdir()
    lines = [f"\x1b[32mline {i}\x1b[0m" for i in range(5000)]
    (home / ".studio" / "one.log").write_text("\n".join(lines))
    shown = log_tail(home, "one").splitlines()
    assert shown == [f"line {i}" for i in range(5000)][-len(shown) :] and 500 < len(shown) < 1500


SERVER = """
import sys
from pathlib import Path
import uvicorn
from graft.serve.app import bare_app
from graft.serve.studio.app import Studio, add_studio
home = Path(sys.argv[1])
app = bare_app()
add_studio(app, Studio(home, home / "votes.sqlite3"))
print(app.state.token, flush=True)
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
import asyncio
async def serve():
    work = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await work
asyncio.run(serve())
"""


def serving(home):
    """Start a server in a process of its own; return it and a client of it."""
    import httpx

    server = subprocess.Popen([sys.executable, "-c", SERVER, str(home)], stdout=subprocess.PIPE, text=True)
    token, port = server.stdout.readline().strip(), server.stdout.readline().strip()
    base = f"http://127.0.0.1:{port}/studio/api"
    return server, httpx.Client(base_url=base, headers={"X-Graft-Token": token}, timeout=60)


@pytest.mark.slow
def test_a_run_outlives_its_server_and_another_server_stops_and_continues_it(tmp_path):
    pytest.importorskip("httpx")
    values = {"data.train": "seedling:descriptions", "data.limit": "200", "train.max_steps": "100000",
              "train.batch_size": "2", "dtype": "fp32", "data.eval": "0"}  # fmt: skip
    first, client = serving(tmp_path)
    try:
        assert client.post("/runs", json={"values": values, "name": "long"}).status_code == 201
        until(lambda: (client.get("/runs/long").json()["step"] or 0) >= 2, 300)
        first.kill()
        first.wait()
        pid, step = holding(tmp_path / "long"), read_run(tmp_path / "long").step
        assert pid is not None
        second, client = serving(tmp_path)
        try:
            facts = client.get("/runs/long").json()
            assert facts["state"] == "running" and str(pid) in facts["holder"]
            until(lambda: client.get("/runs/long").json()["step"] > step + 2, 300)
            assert client.post("/runs/long/stop", json={}).json() == {"pid": pid}
            until(lambda: client.get("/runs/long").json()["state"] == "stopped", 120)
            facts = client.get("/runs/long").json()
            assert [one["wrong"] for one in facts["checkpoints"]][:1] == [""]  # the step that it ended with
            assert facts["checkpoints"][0]["step"] == facts["step"]
            assert client.post("/runs/long/resume", json={}).status_code == 200
            until(lambda: client.get("/runs/long").json()["step"] > facts["step"], 300)
            assert "from step" in str(client.get("/runs/long").json()["events"])
            client.post("/runs/long/stop", json={"at_once": True})
            until(lambda: client.get("/runs/long").json()["state"] == "stopped", 120)
        finally:
            second.kill()
            second.wait()
    finally:
        first.kill()
        if (left := holding(tmp_path / "long")) is not None:
            os.kill(left, signal.SIGKILL)
