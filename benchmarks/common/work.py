"""Runs as processes side by side; what is finished is kept, so the same command goes on where it stopped."""

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from results import RAW, Row, Table, machine, write_raw

TRIAL = "trial"  # the folder of trial runs, inside that of the raw runs


class Cell(Protocol):
    """One run.  setting: a frozen dataclass with `steps`."""

    setting: Any
    name: str


Cells = Callable[[Mapping[str, Row]], Iterator[Any]]  # the runs that can be named while these are known


def run_all(
    description: str | None, script: Path, table: Table, cells: Cells,
    prepare: Callable[[Sequence[Any]], None],
) -> int:  # fmt: skip
    """Carry out every run that has no result yet. Return how many failed.

    script: carries out one of them.  prepare: writes what runs share, once, before they run side by side.
    """
    options = _options(description)
    raw = table.raw / TRIAL if options.steps else table.raw

    def finished() -> dict[str, Row]:
        return table.known(raw, committed=not options.steps)

    def chosen(known: Mapping[str, Row]) -> list[Any]:
        return [cell for cell in cells(known) if all(part in cell.name for part in options.only)]

    if options.list:
        known = finished()
        for cell in chosen(known):
            print("done" if cell.name in known else "todo", "", cell.name)
        return 0
    steps = ["--steps", str(options.steps)] if options.steps else []
    tried: set[str] = set()
    failed = 0
    while True:
        known = finished()
        done = tried if options.again else known.keys() | tried
        todo = [cell for cell in chosen(known) if cell.name not in done]
        if not todo:
            return failed
        prepare(todo)
        print(f"{len(todo)} runs to do", flush=True)
        tried |= {cell.name for cell in todo}
        names = [cell.name for cell in todo]
        how = {"jobs": options.jobs, "threads": options.threads, "more": steps}
        failed += side_by_side(script, names, RAW.parent / table.benchmark, **how)


def run_one(
    description: str | None, table: Table, cells: Cells, describe: Callable[[Any], dict[str, Any]],
    carry_out: Callable[[Any, Path], dict[str, Any]],
) -> None:  # fmt: skip
    """Carry out the run that the command line names, in this process, and write its raw file.

    carry_out: (cell, empty folder) -> measured facts; the folder is removed afterwards.
    """
    import torch  # late: `run.py --list` does without it

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("name", help="as `run.py --list` prints it")
    parser.add_argument("--steps", type=int, help="fewer steps, for a trial")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    raw = table.raw / TRIAL if options.steps else table.raw
    known = table.known(raw, committed=not options.steps)
    cell = next((cell for cell in cells(known) if cell.name == options.name), None)
    if cell is None:
        parser.error(f"there is no run {options.name!r}, or its rate is not known yet; see run.py --list")
    if options.steps:
        cell = replace(cell, setting=replace(cell.setting, steps=options.steps))
    folder = RAW.parent / table.benchmark / "runs" / f"{cell.name}.{cell.setting.steps}"
    # What a broken run left must go: the memory and the speed of its rest would not be those of a whole run.
    shutil.rmtree(folder, ignore_errors=True)
    load = os.getloadavg()[0]
    begun = time.perf_counter()
    facts = carry_out(cell, folder)
    spent = {"wall_s": time.perf_counter() - begun, "load": [load, os.getloadavg()[0]]}
    about = {"name": cell.name, **describe(cell)}
    write_raw(raw / f"{cell.name}.json", {"cell": about, **spent, **facts, "machine": machine()})
    shutil.rmtree(folder, ignore_errors=True)


def _options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], help="runs whose name holds all of these")
    parser.add_argument("--again", action="store_true", help="repeat finished runs too")
    parser.add_argument("--list", action="store_true", help="print the runs and whether they are done")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs side by side; more than one leaves out speeds"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument(
        "--steps", type=int, help="fewer steps, for a trial; raw runs go to a folder of their own"
    )
    return parser.parse_args()


def side_by_side(
    script: Path, todo: Sequence[str], folder: Path, *, jobs: int, threads: int, more: Sequence[str] = ()
) -> int:
    """Carry out `script NAME *more` for each name in order, `jobs` at a time. Return how many failed.

    Each is a process of its own, forked from one that has imported the script and computed nothing: importing
    torch takes as long as a short run.  folder: for logs and caches.
    """
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    paths = [str(script.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= limits | {"TOKENIZERS_PARALLELISM": "false", "GRAFT_CACHE": str(folder / "cache")}
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([script.stem])
    logs = folder / "log"
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(todo)
    running = {}
    failed = 0
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            log = logs / f"{name}.txt"
            process = processes.Process(target=_carry_out, args=(script.stem, [name, *more], log))
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
    """Call the script's `main` as if it were started with these words; what it prints goes to the log."""
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = [module, *words]
    import_module(module).main()
