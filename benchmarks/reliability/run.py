"""Try every kind of fault: crashes, errors of the disk, damaged files, kills, signals, races, hostile input.

    python benchmarks/reliability/run.py                        release level: hours
    python benchmarks/reliability/run.py --level quick          minutes
    python benchmarks/reliability/run.py --part crash flips     these parts
    python benchmarks/reliability/run.py --only later-save      cells by parts of their names
    python benchmarks/reliability/run.py --list                 print the cells, and what came of them

Each cell is a process of its own (one.py) with a low priority. It keeps how far it is: after an interruption
the same command goes on. A cell that has a raw run is not tried again, unless you pass --again. Raw runs go
to runs/bench/reliability; of the quick level, to a folder of its own there that is never collected. Exits
with 1 if a promise of Graft's was broken.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import one

STALLED_S = 1800.0  # without a note of progress, a cell hangs
TRIES = 3  # a cell whose process dies is begun again where it was
NICE = 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", choices=("quick", "release"), default="release")
    parser.add_argument("--part", nargs="+", default=[], help="parts; all by default")
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of cells")
    parser.add_argument("--tool", choices=("graft", "transformers"), help="whose promises; both by default")
    parser.add_argument("--again", action="store_true", help="also cells that have a raw run")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    options = parser.parse_args()
    names = [name for name, cell in one.CELLS.items() if chosen(name, cell, options)]
    if not names:
        parser.error(f"no cell fits; there are {', '.join(one.CELLS)}")
    if not options.list:
        for name in names:
            raw, _ = one.places(name, options.level)
            if options.again:
                raw.unlink(missing_ok=True)
            if not raw.exists():
                carry_out(name, options.level)
    return report(names, options.level)


def chosen(name: str, cell: Any, options: argparse.Namespace) -> bool:
    """Return whether a cell is asked for and has cases at this level."""
    part = not options.part or cell.part in options.part or cell.part.replace(" ", "-") in options.part
    named = not options.only or any(word in name for word in options.only)
    return part and named and options.tool in (None, cell.tool) and cell.counts[options.level] != 0


def carry_out(name: str, level: str) -> None:
    """Try a cell to its end; one whose process dies or hangs again and again is noted as such."""
    raw, progress = one.places(name, level)
    log = one.RESULTS.raw / "log" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{time.strftime('%H:%M:%S')}  {name}", flush=True)
    log.unlink(missing_ok=True)
    ended = ""
    for _ in range(TRIES):
        with log.open("a") as file:
            words = [sys.executable, str(Path(one.__file__)), name, level]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            process = subprocess.Popen(
                words, stdout=file, stderr=file, env=environment, preexec_fn=lambda: os.nice(NICE),
                start_new_session=True,
            )  # fmt: skip
            ended = watched(process, progress)
        if raw.exists():
            return
    print(f"          {ended}: see {log}", flush=True)


def watched(process: subprocess.Popen[bytes], progress: Path) -> str:
    """Wait for a process; end it, and all that it started, if it makes no progress. Return how it ended."""
    seen, since = -1.0, time.monotonic()
    while process.poll() is None:
        time.sleep(1)
        now = progress.stat().st_mtime if progress.exists() else 0.0
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > STALLED_S:
            os.killpg(process.pid, 9)
            process.wait()
            return f"no progress in {STALLED_S:g} s"
    return f"exit code {process.returncode}"


def report(names: list[str], level: str) -> int:
    """Print what came of these cells; return 1 if one of Graft's failed."""
    broken = 0
    for name in names:
        raw, progress = one.places(name, level)
        if not raw.exists():
            state = json.loads(progress.read_text()) if progress.exists() else {}
            print(f"{name:<52}" + (f"{state['done']} of {state['of']} tried" if state else "not tried"))
            continue
        run = json.loads(raw.read_text(encoding="utf-8"))
        counts = "  ".join(f"{verdict} {count}" for verdict, count in sorted(run["verdicts"].items()))
        print(f"{name:<52}{run['tried']:>7}  {counts}")
        for number, case, why in run["failures"][:3]:
            print(f"    {number}: {case}: {why.splitlines()[0][:200] if why else ''}")
        broken += run["tool"] == "graft" and bool(run["verdicts"].get("failed"))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
