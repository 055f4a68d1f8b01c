"""The file of votes: each counted once, kept when it was acknowledged, undone in time, never misread."""

import json
import multiprocessing
import os
import signal
import sqlite3
import threading

import pytest

pytest.importorskip("fastapi")
from arena_votes import battle

from graft.errors import UsageError
from graft.serve.failures import ApiError
from graft.serve.studio import votes as module
from graft.serve.studio.votes import MIGRATIONS, UNDO_S, Contestant, Votes

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["graft.serve.studio.votes"])


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def votes(tmp_path):
    store = Votes(tmp_path / "votes.sqlite3", Clock())
    yield store
    store.close()


def test_a_vote_is_counted_once(votes):
    votes.keep(battle("x"))
    first = votes.vote("x", "a", key="k", voter="me", reason="shorter", tags=["style", "length", "style"])
    votes._clock.now += 5
    assert votes.vote("x", "a", key="k", voter="me", reason="shorter", tags=["length", "style"]) == first
    assert votes.all() == [first]
    assert first.tags == ("length", "style")
    assert first.battle == battle("x")


@pytest.mark.parametrize("again", [("x", "b", "k"), ("y", "a", "k")])
def test_a_key_of_another_vote_is_refused(votes, again):
    votes.keep(battle("x"))
    votes.keep(battle("y"))
    votes.vote("x", "a", key="k")
    with pytest.raises(ApiError, match="another vote") as refused:
        votes.vote(again[0], again[1], key=again[2])
    assert refused.value.status == 409
    assert len(votes.all()) == 1


def test_a_battle_has_one_vote(votes):
    votes.keep(battle("x"))
    votes.vote("x", "a", key="k")
    with pytest.raises(ApiError, match="its names are known"):
        votes.vote("x", "b", key="other")


def test_a_battle_that_is_not_kept_cannot_be_voted_on(votes):
    with pytest.raises(ApiError) as refused:
        votes.vote("nothing", "a", key="k")
    assert refused.value.status == 404


def test_a_vote_is_undone_in_time_and_not_later(votes):
    for name in ("x", "y"):
        votes.keep(battle(name))
        votes.vote(name, "a", key=name)
    votes._clock.now += UNDO_S
    undone = votes.undo("x", "x")
    assert undone.undone_at == votes._clock.now
    votes._clock.now += 1
    assert votes.undo("x", "x") == undone  # the same answer again
    with pytest.raises(ApiError, match="10 seconds") as late:
        votes.undo("y", "y")
    assert late.value.status == 409
    assert [vote.undone_at for vote in votes.all()] == [undone.undone_at, None]
    assert sum(votes.met().values()) == 1


def test_only_who_voted_undoes(votes):
    votes.keep(battle("x"))
    votes.vote("x", "a", key="k")
    with pytest.raises(ApiError, match="no such vote"):
        votes.undo("x", "guess")


def test_an_undone_battle_is_not_voted_on_again(votes):
    votes.keep(battle("x"))
    votes.vote("x", "a", key="k")
    votes.undo("x", "k")
    with pytest.raises(ApiError, match="its names are known"):
        votes.vote("x", "b", key="other")


def test_a_voter_is_kept_as_a_hash_of_this_file_alone(tmp_path):
    seen = []
    for number in (1, 2):
        store = Votes(tmp_path / f"{number}.sqlite3")
        for name in ("x", "y"):
            store.keep(battle(name))
            seen.append(store.vote(name, "tie", key=name, voter="somebody@example.org").voter)
        store.close()
        assert b"somebody" not in b"".join(path.read_bytes() for path in tmp_path.glob(f"{number}.sqlite3*"))
    assert seen[0] == seen[1] and seen[2] == seen[3] and seen[0] != seen[2]


def test_pairs_are_counted_whatever_their_sides(votes):
    votes.keep(battle("x", "one", "two"))
    votes.keep(battle("y", "two", "one"))
    votes.keep(battle("z", "one", "two", flagged=True))
    for name in "xyz":
        votes.vote(name, "a", key=name)
    assert votes.met() == {frozenset([Contestant("one", "d-one"), Contestant("two", "d-two")]): 2}


@pytest.mark.parametrize("text", ["'; DROP TABLE votes; --", '" OR 1=1', "\x00 %s ? :key", "ünï 🦀"])
def test_no_text_is_read_as_sql(votes, text):
    votes.keep(battle(text, text, "two", prompt=text, answers=(text, "other")))
    vote = votes.vote(text, "b", key=text, voter=text, reason=text, tags=[text])
    assert votes.all() == [vote]
    assert (vote.battle.prompt, vote.reason, vote.tags) == (text, text, (text,))
    assert votes.undo(text, text).undone_at is not None


def test_the_file_is_as_durable_as_sqlite_makes_it(votes):
    assert votes._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert votes._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert votes._connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    with pytest.raises(sqlite3.IntegrityError), votes._turn() as connection:
        row = ["no battle", "k", "a", "", "[]", "", 0.0, None]
        connection.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)


def test_a_file_of_a_newer_graft_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "votes.sqlite3"
    Votes(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="newer Graft"):
        Votes(path)
    assert path.read_bytes() == before


def test_an_older_file_is_brought_to_this_version(tmp_path, monkeypatch):
    path = tmp_path / "votes.sqlite3"
    old = Votes(path)
    old.keep(battle("x"))
    kept = old.vote("x", "a", key="k")
    old.close()
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE notes (battle TEXT)",)))
    new = Votes(path)
    assert new.all() == [kept]
    assert new._connection.execute("SELECT COUNT(*) FROM notes").fetchone() == (0,)
    assert new._pragma("user_version") == len(MIGRATIONS) + 1
    new.close()


@pytest.mark.parametrize("content", [b"not a database, whatever its name says" * 40, "tables"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "votes.sqlite3"
    if content == "tables":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE customers (name TEXT)")
        connection.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="To do"):
        Votes(path)
    assert path.read_bytes() == before


def test_threads_vote_at_once(votes):
    def several(number):
        for count in range(10):
            name = f"{number}-{count}"
            votes.keep(battle(name))
            votes.vote(name, "tie", key=name)

    threads = [threading.Thread(target=several, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(vote.key for vote in votes.all()) == sorted(f"{n}-{c}" for n in range(6) for c in range(10))


def _votes_until_killed(path, pipe):
    """Vote, and tell of each vote when it was taken; each is sent twice, as by a client that tries again."""
    store, number = Votes(path), 0
    while True:
        name = f"{os.getpid()}-{number}"
        store.keep(battle(name))
        for _ in range(2):
            store.vote(name, "a", key=name)
            os.write(pipe.fileno(), f"{json.dumps(name)}\n".encode())
        number += 1


def test_a_killed_process_loses_no_vote_that_it_acknowledged(tmp_path):
    path, acknowledged = tmp_path / "votes.sqlite3", []
    for _ in range(2):
        read, write = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_votes_until_killed, args=(path, write))
        process.start()
        write.close()
        told = b""
        while told.count(b"\n") < 100:
            told += os.read(read.fileno(), 1 << 16)
        os.kill(process.pid, signal.SIGKILL)
        while more := os.read(read.fileno(), 1 << 16):
            told += more
        process.join()
        assert process.exitcode == -signal.SIGKILL
        acknowledged += [json.loads(line) for line in told.split(b"\n")[:-1]]
    store = Votes(path)
    kept = [vote.key for vote in store.all()]
    store.close()
    assert len(kept) == len(set(kept))
    assert set(acknowledged) <= set(kept)
    assert len(set(kept) - set(acknowledged)) <= 2  # taken, and killed before it could tell
