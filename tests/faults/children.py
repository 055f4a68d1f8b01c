"""Commands of graft in processes of their own, forked from one that has imported everything already."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["graft.runs.chain", "graft.cli", "graft.runs.quantise", "victims"]
CONTEXT.set_forkserver_preload(PRELOADED)
LONG_S = 300.0  # a command that takes longer hangs


class Child:
    """A command that is running, or has ended."""

    def __init__(self, process: Any, talk: Path) -> None:
        self._process, self.talk = process, talk
        self.began = time.perf_counter()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def running(self) -> bool:
        return self._process.exitcode is None

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.running():
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Return the exit code; None while the process is running."""
        return self._process.exitcode

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        self.send(signal.SIGKILL)

    def wait(self, timeout_s: float = LONG_S) -> int | None:
        """Return the exit code; None, after killing it, if the process does not end in time."""
        self._process.join(timeout_s)
        if self.running():
            self.kill()
            self._process.join(10)
            return None
        return int(self._process.exitcode)

    def said(self) -> str:
        """Return what it has printed so far."""
        return self.talk.read_text(errors="replace") if self.talk.exists() else ""


def start(
    words: Sequence[str],
    talk: Path,
    environment: Mapping[str, str],
    before: Callable[[], object] | None = None,
) -> Child:
    """Start `graft WORDS`, what it prints into a file.  before: called in the process first."""
    return launch(partial(_graft, list(words)), talk, environment, before)


def launch(
    program: Callable[[], int],
    talk: Path,
    environment: Mapping[str, str],
    before: Callable[[], object] | None = None,
) -> Child:
    """Start a program, which returns its exit code, in a process of its own."""
    talk.parent.mkdir(parents=True, exist_ok=True)
    talk.write_text("")
    process = CONTEXT.Process(target=_run, args=(program, str(talk), dict(environment), before))
    process.start()
    return Child(process, talk)


def _graft(words: list[str]) -> int:
    from graft.cli import call

    return call(words)


def _run(
    program: Callable[[], int], talk: str, environment: dict[str, str], before: Callable[[], object] | None
) -> None:
    os.environ.update(environment)
    file = os.open(talk, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    import torch

    torch.set_num_threads(1)
    if before is not None:
        before()
    code = program()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing of the forked process is left to do, and a second signal must find nobody
