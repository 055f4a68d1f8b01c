"""Runs as processes side by side."""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path


def words(description: str | None) -> argparse.ArgumentParser:
    """What the command line of every comparison has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], help="runs whose name holds all of these")
    parser.add_argument("--list", action="store_true", help="print the runs and whether they are done")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    return parser


def side_by_side(
    script: Path, todo: Sequence[str], folder: Path, *, jobs: int, threads: int, more: Sequence[str] = ()
) -> int:
    """Carry out `script NAME *more` for each name in order, `jobs` at a time. Returns how many failed.

    Each is a process of its own, forked from one that has imported the script and computed nothing: importing torch
    takes as long as a short run.  folder: for what they say (log) and prepared rows (cache).
    """
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    paths = [str(script.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= limits | {"TOKENIZERS_PARALLELISM": "false", "GRAFT_CACHE": str(folder / "cache")}
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([script.stem])
    logs = folder / "log"
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, failed = list(todo), {}, 0
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            process = processes.Process(
                target=_carry_out, args=(script.stem, [name, *more], logs / f"{name}.txt")
            )
            process.start()
            running[name] = process, time.perf_counter()
        time.sleep(0.2)
        for name, (process, begun) in list(running.items()):
            if process.exitcode is not None:
                failed += process.exitcode != 0
                word = "done" if process.exitcode == 0 else f"FAILED, see {logs / name}.txt:"
                print(f"{word}  {name}  {time.perf_counter() - begun:.0f} s", flush=True)
                del running[name]
    return failed


def _carry_out(module: str, words: list[str], log: Path) -> None:
    """The script's `main`, as if it were started with these words, all that it says in the log."""
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = [module, *words]
    import_module(module).main()
