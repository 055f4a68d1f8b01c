"""A file of the answers that judges gave, so that a judging that was stopped goes on where it was."""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from graft import storage
from graft.errors import notice


class Kept:
    """Answers by what was asked. Each is written to the file as it comes.

    path: the file, a sealed JSON object a line; None keeps answers in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers = {} if path is None or not path.exists() else _read(path)
        self._lock = threading.Lock()

    def get(self, asked: Any) -> str | None:
        """Return the answer to what was asked, a JSON value; None if there is none yet."""
        return self._answers.get(_digest(asked))

    def put(self, asked: Any, answer: str) -> None:
        """Keep an answer. Several threads may do so."""
        with self._lock:
            self._answers[_digest(asked)] = answer
            if self.path is not None:
                _append(self.path, {"key": _digest(asked), "answer": answer})


def _digest(asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """Return the answers in a file, {key: answer}.

    A line that a kill left half-written, or that was changed, is passed over. Those of an older Graft have no
    seal.
    """
    answers, broken = {}, 0
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(storage.unseal(line) or line)
            if entry.keys() != {"key", "answer"}:  # a seal that does not fit is a third key
                raise KeyError(line)
            answers[str(entry["key"])] = str(entry["answer"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            broken += 1
    if broken:
        notice(f"{broken} lines of {path} are not answers; they are asked again")
    return answers


def _append(path: Path, entry: dict[str, str]) -> None:
    """Add a line. It begins with a line break if the line before it is torn."""
    with path.open("ab+") as file:
        torn = b""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = b"" if file.read(1) == b"\n" else b"\n"
        file.write(torn + storage.seal(json.dumps(entry).encode()) + b"\n")
