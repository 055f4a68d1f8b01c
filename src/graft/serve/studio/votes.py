"""The file of the votes: pairs of answers that somebody read without names, and what was said of them.

An SQLite file in WAL mode with synchronous=FULL: whoever is told that a vote was taken has it on the disk.
All threads share one connection and take turns by a lock. SQLite lets one write at a time anyway, a turn
takes milliseconds, and no thread can stand in the middle of another's transaction.
"""

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request

from graft.errors import UsageError
from graft.serve.failures import ApiError
from graft.serve.studio.state import studio_of

VERDICTS = ("a", "b", "tie", "bad")
UNDO_S = 10.0
WAIT_S = 20.0  # for another process that writes
MARK = 0x47726674  # SQLite's application_id of our files: "Grft"
_opening = threading.Lock()

# Each entry brings a file one version further. What was published is never changed, only followed.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE battles (
            id TEXT PRIMARY KEY, created REAL NOT NULL, prompt TEXT NOT NULL,
            name_a TEXT NOT NULL, digest_a TEXT NOT NULL, answer_a TEXT NOT NULL,
            name_b TEXT NOT NULL, digest_b TEXT NOT NULL, answer_b TEXT NOT NULL,
            sampling TEXT NOT NULL, flagged INTEGER NOT NULL CHECK (flagged IN (0, 1)))""",
        """CREATE TABLE votes (
            battle TEXT PRIMARY KEY REFERENCES battles (id), key TEXT NOT NULL UNIQUE,
            verdict TEXT NOT NULL CHECK (verdict IN ('a', 'b', 'tie', 'bad')),
            reason TEXT NOT NULL, tags TEXT NOT NULL, voter TEXT NOT NULL,
            created REAL NOT NULL, undone_at REAL)""",
        "CREATE TABLE salt (value TEXT NOT NULL)",
    ),
)

Prompt = str | list[dict[str, Any]]  # a text as it is, or the messages of a conversation


@dataclass(frozen=True, order=True)
class Contestant:
    """A model that answered.  digest: of the adapter's files, or the fingerprint of the base."""

    name: str
    digest: str


@dataclass(frozen=True)
class Battle:
    """Two answers to a prompt.

    sides, answers: of a, then of b.  flagged: an answer names a model, so that votes on it are not blind.
    """

    id: str
    created: float
    prompt: Prompt
    sides: tuple[Contestant, Contestant]
    answers: tuple[str, str]
    sampling: dict[str, Any]
    flagged: bool = False

    @property
    def asked(self) -> str:
        """The prompt as one text."""
        return as_text(self.prompt)


def as_text(prompt: Prompt) -> str:
    """Return a prompt as one text: equal prompts are equal texts."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class Vote:
    """What was said of a battle.

    verdict: one of VERDICTS.  voter: a hash.  key: the voter's own.  undone_at: None where the vote counts.
    """

    battle: Battle
    verdict: str
    reason: str
    tags: tuple[str, ...]
    voter: str
    key: str
    created: float
    undone_at: float | None = None

    @property
    def counts(self) -> bool:
        """Whether the leaderboard counts the vote: it was not undone, and was blind."""
        return self.undone_at is None and not self.battle.flagged


class Votes:
    """The votes in a file, which is made where there is none.

    clock: returns seconds since 1970. Raises UsageError for a file of a newer Graft, or of something else.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock, self._lock = path, clock, threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._require_ours()
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._migrate()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise UsageError(
                f"{path} cannot be opened as a file of votes ({error})",
                "an SQLite file that this program has written",
                "move it away, or give another folder of runs",
            ) from None
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def keep(self, battle: Battle) -> None:
        """Keep a battle whose answers have ended."""
        row: list[Any] = [battle.id, battle.created, json.dumps(battle.prompt, ensure_ascii=False)]
        for side, answer in zip(battle.sides, battle.answers, strict=True):
            row += [side.name, side.digest, answer]
        row += [json.dumps(battle.sampling), int(battle.flagged)]
        with self._turn() as connection:
            connection.execute(f"INSERT INTO battles VALUES ({', '.join('?' * len(row))})", row)

    def battle(self, battle_id: str) -> Battle:
        """Return a battle. Raises ApiError for one that is not kept."""
        with self._lock:
            found = self._connection.execute("SELECT * FROM battles WHERE id = ?", [battle_id]).fetchone()
        if found is None:
            raise ApiError(404, "no such pair of answers: ask for a new one", param="battle")
        return _battle(found)

    def vote(
        self,
        battle_id: str,
        verdict: str,
        *,
        key: str,
        voter: str = "",
        reason: str = "",
        tags: Sequence[str] = (),
    ) -> Vote:
        """Count a vote, and return it when it is on the disk. The same vote again returns the first one.

        key: the caller's own name of this vote, which makes it the same one.  voter: whoever votes; a hash of
        it is kept. Raises ApiError for an unknown battle, one that has its vote, and a key of another vote.
        """
        battle = self.battle(battle_id)
        given = [battle_id, key, verdict, reason, json.dumps(sorted(set(tags)), ensure_ascii=False)]
        with self._turn() as connection:
            known = connection.execute("SELECT * FROM votes WHERE key = ?", [key]).fetchone()
            if known is not None and list(known[:5]) != given:
                raise ApiError(409, "this key belongs to another vote", param="key", code="key_used")
            if known is None:
                taken = connection.execute("SELECT 1 FROM votes WHERE battle = ?", [battle_id]).fetchone()
                if taken is not None:
                    raise ApiError(409, "this pair has its vote: its names are known", code="voted")
                row = [*given, self._hash(voter) if voter else "", self._clock(), None]
                connection.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
                known = row
        return _vote(battle, known)

    def undo(self, battle_id: str, key: str) -> Vote:
        """Take a vote back, within UNDO_S seconds.

        It counts nowhere then, and its battle cannot be voted on again: its names are known. The same again
        returns the same. key: with which the vote was made. Raises ApiError where there is no such vote, and
        when it is too late.
        """
        battle = self.battle(battle_id)
        with self._turn() as connection:
            asked = "SELECT * FROM votes WHERE battle = ? AND key = ?"
            found = connection.execute(asked, [battle_id, key]).fetchone()
            if found is None:
                raise ApiError(404, "no such vote", param="battle")
            if found[7] is None:
                if (now := self._clock()) > found[6] + UNDO_S:
                    raise ApiError(409, f"a vote can be undone for {UNDO_S:g} seconds", code="too_late")
                connection.execute("UPDATE votes SET undone_at = ? WHERE battle = ?", [now, battle_id])
                found = (*found[:7], now)
        return _vote(battle, found)

    def all(self) -> list[Vote]:
        """Return every vote with its battle, in order; also those that were undone."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT battles.*, votes.* FROM votes JOIN battles ON battles.id = votes.battle "
                "ORDER BY votes.created, votes.rowid"
            ).fetchall()
        return [_vote(_battle(row[:11]), row[11:]) for row in rows]

    def met(self) -> Counter[frozenset[Contestant]]:
        """Return how many votes count for each pair of models, whatever their sides."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT name_a, digest_a, name_b, digest_b, COUNT(*) FROM votes "
                "JOIN battles ON battles.id = votes.battle WHERE undone_at IS NULL AND NOT flagged "
                "GROUP BY name_a, digest_a, name_b, digest_b"
            ).fetchall()
        counts: Counter[frozenset[Contestant]] = Counter()
        for name_a, digest_a, name_b, digest_b, count in rows:
            counts[frozenset([Contestant(name_a, digest_a), Contestant(name_b, digest_b)])] += count
        return counts

    def _hash(self, voter: str) -> str:
        """Return the hash of a voter: of this file alone, so that no list of names gives it away."""
        (salt,) = self._connection.execute("SELECT value FROM salt").fetchone()
        return hashlib.sha256(f"{salt} {voter}".encode()).hexdigest()[:16]

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection in a transaction that is on the disk when the block ends well."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _require_ours(self) -> None:
        """Raise UsageError for a file of a newer Graft, or with tables of something else."""
        version, mark = self._pragma("user_version"), self._pragma("application_id")
        tables = self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if mark != MARK and (tables or version or mark):
            raise UsageError(
                f"{self.path} holds tables of another program",
                "a file of votes",
                "move it away, or give another folder of runs",
            )
        if version > len(MIGRATIONS):
            raise UsageError(
                f"{self.path} is of a newer Graft (version {version} of its tables)",
                f"at most version {len(MIGRATIONS)}",
                "install the newer Graft, or move the file away",
            )

    def _migrate(self) -> None:
        with self._turn() as connection:  # which version it has, is asked when no other process can change it
            version = self._pragma("user_version")
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    connection.execute(statement)
            if version == 0:
                connection.execute("INSERT INTO salt VALUES (?)", [secrets.token_hex(16)])
                connection.execute(f"PRAGMA application_id = {MARK}")
            connection.execute(f"PRAGMA user_version = {max(version, len(MIGRATIONS))}")


def votes_of(request: Request) -> Votes:
    """Return the votes of a request's studio, which are opened when they are first asked for."""
    state = request.app.state
    with _opening:
        if getattr(state, "votes", None) is None:
            path = studio_of(request).votes
            path.parent.mkdir(parents=True, exist_ok=True)
            state.votes = Votes(path)
        votes: Votes = state.votes
        return votes


def _battle(row: Sequence[Any]) -> Battle:
    number, created, prompt, name_a, digest_a, answer_a, name_b, digest_b, answer_b, sampling, flagged = row
    sides = Contestant(name_a, digest_a), Contestant(name_b, digest_b)
    return Battle(
        number,
        created,
        json.loads(prompt),
        sides,
        (answer_a, answer_b),
        json.loads(sampling),
        bool(flagged),
    )


def _vote(battle: Battle, row: Sequence[Any]) -> Vote:
    _, key, verdict, reason, tags, voter, created, undone_at = row
    return Vote(battle, verdict, reason, tuple(json.loads(tags)), voter, key, created, undone_at)
