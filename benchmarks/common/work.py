"""Runs as processes side by side."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def side_by_side(
    script: Path, todo: Sequence[str], folder: Path, *, jobs: int, threads: int, more: Sequence[str] = ()
) -> int:
    """Start `script NAME *more` for each name in order, `jobs` at a time. Returns how many failed.

    folder: for what they say (log) and prepared rows (cache).
    """
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    env = os.environ | limits | {"TOKENIZERS_PARALLELISM": "false", "GRAFT_CACHE": str(folder / "cache")}
    logs = folder / "log"
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, failed = list(todo), {}, 0
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            with (logs / f"{name}.txt").open("w") as log:
                command = [sys.executable, str(script), name, *more]
                process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
            running[name] = process, time.perf_counter()
        time.sleep(0.2)
        for name, (process, begun) in list(running.items()):
            if process.poll() is not None:
                failed += process.returncode != 0
                word = "done" if process.returncode == 0 else f"FAILED, see {logs / name}.txt:"
                print(f"{word}  {name}  {time.perf_counter() - begun:.0f} s", flush=True)
                del running[name]
    return failed
