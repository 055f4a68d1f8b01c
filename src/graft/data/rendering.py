"""The process in which chat templates run, seen from the process that asks it.

A template is a program of whoever published the model: it may never end, or ask for all memory. It runs in a
process of its own (`template_worker`), which is started with the first conversation.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from graft.data.rows import BadRow
from graft.data.sandbox import SECONDS
from graft.data.template_worker import read, send
from graft.errors import DataError

# The paths on which this process finds the package come as arguments.
PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from graft.data import template_worker as w; w.main()"
AT_ONCE = 1 << 20  # bytes of rows in one request
# Where the system does not end a process that takes too long, we do, by the clock on the wall.
WAIT_S = None if hasattr(signal, "setitimer") else 60.0


class Renderer:
    """Asks templates; starts the process when it is needed, and again after it ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that started it: one that was forked off must not share it
        self._numbers: dict[str, int] = {}  # of the templates that it knows

    def answers(self, facts: str, what: str, of: Sequence[dict[str, Any]]) -> list[Any]:
        """Return what a template answers of each row; a BadRow where it does not write the row.

        facts: JSON of the template, see `Writer`.  what: one of `template_worker.ANSWERS`.
        Raises DataError for a template that asks for too much.
        """
        rows = [json.dumps(row, default=_plain).encode() for row in of]
        answers: list[Any] = []
        with self._lock:
            while len(answers) < len(rows):
                end, size = len(answers), 0
                while end < len(rows) and (not size or size + len(rows[end]) <= AT_ONCE):
                    size += len(rows[end])
                    end += 1
                for reply in self._replies(facts, what, rows[len(answers) : end]):
                    answers.append(_answer(reply, of[len(answers)].get("source", "")))
        return answers

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()  # closes the pipes
        self._process = None

    def _replies(self, facts: str, what: str, rows: Sequence[bytes]) -> Iterator[bytes]:
        """Yield the reply to each row; nothing where the process ended instead."""
        done = False
        try:
            requests, replies = self._started()
            head = {"number": len(self._numbers), "facts": facts, "what": what, "rows": len(rows)}
            if facts in self._numbers:
                head |= {"number": self._numbers[facts], "facts": None}
            self._numbers.setdefault(facts, len(self._numbers))
            with contextlib.suppress(OSError):  # of a pipe that is closed, each system has its own
                send(requests, json.dumps(head).encode(), *rows)
            for _ in rows:
                yield self._reply(replies)
            done = True
        finally:  # what a request leaves in the pipe would be taken for the next one's replies
            if not done:
                self.close()

    def _reply(self, replies: IO[bytes]) -> bytes:
        """Return the next reply; nothing where the process ended, or was ended, instead."""
        if WAIT_S is None or self._process is None:
            return read(replies)
        watch = threading.Timer(WAIT_S, self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            return read(replies)
        finally:
            watch.cancel()

    def _started(self) -> tuple[IO[bytes], IO[bytes]]:
        """Return where the process reads and writes."""
        if self._process is None or self._owner != os.getpid():
            self._numbers.clear()
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", PROGRAM, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        assert self._process.stdin and self._process.stdout
        return self._process.stdin, self._process.stdout


def _answer(reply: bytes, source: str) -> Any:
    """Return the answer in a reply; a BadRow where it is one. Raises DataError."""
    excess = f"needs more than {SECONDS:g} s of processor time, or ends the process in which it runs"
    if reply:
        facts = json.loads(reply)
        if "is" in facts:
            return facts["is"]
        if "bad" in facts:
            return BadRow(*facts["bad"])
        excess = facts["too much"]
    raise DataError(
        f"{source or 'a conversation'}: the chat template {excess}",
        "a template that writes a conversation in milliseconds",
        "choose another data.template, or repair the chat_template of the tokenizer",
    )


def _plain(value: Any) -> Any:
    """Return a value that JSON does not have as one that it has: templates see nothing else."""
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)  # a number of NumPy
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else f"<{type(value).__name__}>"


renderer = Renderer()
atexit.register(renderer.close)
