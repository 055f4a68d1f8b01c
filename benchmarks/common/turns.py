"""Sides that take turns: every one is a process of its own, which works only when it is told.

A round in which other processes used more than half a core says nothing about speed; `Others` counts them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST = 0.5  # cores that others may use during a round


class Side:
    """The process of one side.

    script: is started with `spec` as JSON, whose "side" is its name; it answers through `pipe.Link`.
    log: where what it prints goes; it may be read when the side has failed.
    """

    def __init__(
        self, script: Path, spec: Mapping[str, Any], environment: Mapping[str, str], log: Path
    ) -> None:
        self.spec = dict(spec)
        self.log = log
        with log.open("a", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [sys.executable, str(script), json.dumps(self.spec)], env=dict(environment), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
            )  # fmt: skip
        self.pid = self._process.pid
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-15:])
            ended = f"{self.spec['side']} ended with {self._process.returncode}"
            raise RuntimeError(f"{ended}, {self.log}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and return the answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> dict[str, Any]:
        """End the process; return its last facts."""
        last = self.ask(do="stop")
        self._process.wait()
        return last

    def kill(self) -> None:
        """End the process whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Others:
    """Measures how many cores processes other than the run's own use (Linux)."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self._last = self._now()

    def cores(self) -> float:
        """Return the mean since the last call; what the machine's host takes away counts too."""
        before, self._last = self._last, self._now()
        wall, busy, own = (now - then for now, then in zip(self._last, before, strict=True))
        return max(0.0, (busy - own) / wall)

    def wait(self, patience_s: float) -> None:
        """Return as soon as others leave the machine alone for a second, at the latest after so many."""
        end = time.perf_counter() + patience_s
        while time.perf_counter() < end:
            self.cores()
            time.sleep(1.0)
            if self.cores() <= MOST:
                return

    def _now(self) -> tuple[float, float, float]:
        tick = os.sysconf("SC_CLK_TCK")
        fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        busy = sum(fields[i] for i in (0, 1, 2, 5, 6, 7))  # all but idle, waiting, and guests counted twice
        own = sum(map(_ticks, [os.getpid(), *self.pids]))
        return time.perf_counter(), busy / tick, own / tick


def _ticks(pid: int) -> int:
    """Return the processor time of a process and of its children that have ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended: its parent's children count it
        return 0
    return sum(map(int, text.rpartition(")")[2].split()[11:15]))


def environment(threads: int) -> dict[str, str]:
    """Return what every side finds in its environment: so many threads, and no network."""
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    return limits | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
