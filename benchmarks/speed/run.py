"""Speed and memory beside the peers, row by row, on an otherwise idle machine.

    python benchmarks/speed/run.py                        every row that has no result yet
    python benchmarks/speed/run.py qlora-160m-512         rows whose name holds one of these words
    python benchmarks/speed/run.py --list                 what there is to do
    python benchmarks/speed/run.py --quick 15m            a trial of few steps, which leaves the results alone
    python benchmarks/speed/run.py --again decode         repeat finished rows
    python benchmarks/speed/run.py --before OTHER/src     beside an older checkout of graft too
    python benchmarks/speed/run.py --rounds 1 15m        one short round, where a side takes minutes
    python benchmarks/collect.py speed                    raw runs -> results.csv
    python benchmarks/speed/table.py                      results.csv -> RESULTS.md, parts.svg

A row writes runs/bench/speed/NAME.json; the output of its sides goes to runs/speed/log. Random weights are
written to a temporary folder (16 GB with the 7B shape), or to `--weights FOLDER`, which keeps them.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
from columns import RESULTS
from results import RAW, write_raw

LEVELS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16")


def main() -> int:
    options = _options()
    raw = RESULTS.raw / "trial" if options.quick else RESULTS.raw
    rows = grid.chosen(options.rows)
    known = RESULTS.known(raw, committed=not options.quick)
    # What was measured on a machine that was not quiet has no speeds, and is measured again.
    done = set() if options.again else {line["row"] for line in known.values() if _counts(line)}
    if options.list:
        for row in rows:
            print(f"{'done' if row.name in done else 'to do':6}{row.name:24}{row.title}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.weights or Path(temporary)
        todo = [row for row in rows if row.name not in done]
        return sum(not _carried_out(row, folder, raw, options) for row in todo)


def _counts(line: dict[str, Any]) -> bool:
    """Return whether a row of results has speeds of a processor like this one."""
    return not line["refused"] and line["cpu"] == processor()["cpu"]


def _carried_out(row: grid.Row, folder: Path, raw: Path, options: argparse.Namespace) -> bool:
    """Measure a row and write its raw file; return whether that went well."""
    print(f"{row.name}: {row.title}", flush=True)
    row = row.beside() if options.before else row
    row = replace(row, sides={name: side for name, side in row.sides.items() if name not in options.without})
    if options.variant:
        row = replace(row, work=row.work | {"variant": options.variant})
    row = row.quick() if options.quick else replace(row, tries=options.tries)
    if options.rounds:
        row = replace(row, rounds=options.rounds, turn=1, warm=min(row.warm, 1))
    patience_s = 0.0 if options.quick else options.patience
    try:
        found = measured(row, folder, options.threads, options.before, patience_s)
        write_raw(raw / f"{row.name}.json", found)
    except Exception:  # a row that fails must not take the others along
        traceback.print_exc()
        return False
    return True


def measured(
    row: grid.Row, folder: Path, threads: int, before: str | None = None, patience_s: float = 0.0
) -> dict[str, Any]:
    """Write the weights, measure the row, and return its raw facts with its numbers."""
    import facts
    import harness
    from results import machine

    logs = RAW.parent / "speed" / "log"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / f"{row.name}.txt").unlink(missing_ok=True)
    _prepare(row, folder)
    begun, load = time.perf_counter(), os.getloadavg()[0]
    found = harness.Run(row, folder, logs, threads, before=before, patience_s=patience_s, say=_say).measure()
    sides = facts.of_row(row, found)
    for name, numbers in sides.items():
        shown = {key: f"{value:.4g}" for key, value in numbers.items() if isinstance(value, float)}
        _say(f"  {name:20}{'  '.join(f'{key} {value}' for key, value in shown.items())}")
    if any(numbers["refused"] for numbers in sides.values()):
        _say("  no speeds: other processes used the machine")
    about = {"wall_s": time.perf_counter() - begun, "load": [load, os.getloadavg()[0]]}
    quiet = sum(r["others"] <= harness.MOST for r in found["rounds"])
    place = machine() | {"threads": threads}
    return {
        "name": row.name, "sides": sides, "quiet": quiet, "machine": place, **about, **processor(), **found
    }  # fmt: skip


def _prepare(row: grid.Row, folder: Path) -> None:
    """Write what the row's sides read."""
    import weights
    from shapes import SHAPES

    folder.mkdir(parents=True, exist_ok=True)
    if row.kind in ("train", "load", "decode"):
        weights.model(SHAPES["tiny"], folder)
        weights.model(SHAPES[row.shape], folder)
        weights.adapter(SHAPES[row.shape], folder)
    if "llama.cpp" in row.sides:
        weights.gguf(SHAPES[row.shape], folder)
    for number in range(max(side.get("adapters", 0) for side in row.sides.values())):
        weights.adapter(SHAPES[row.shape], folder, number, trained=True)


def processor() -> dict[str, str]:
    """Return the processor as a CSV shows it: its name with family and model, and its vector instructions."""
    facts = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", facts.get("CPU part", "unknown"))
    family = f", family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {"cpu": name + family, "isa": " ".join(level for level in LEVELS if level in flags)}


def _say(text: str) -> None:
    print(text, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="words of the rows' names; all rows by default")
    parser.add_argument("--list", action="store_true", help="print the rows and whether they are done")
    parser.add_argument("--again", action="store_true", help="repeat finished rows too")
    parser.add_argument("--quick", action="store_true", help="few steps, as a trial in a folder of its own")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side; all cores")
    parser.add_argument(
        "--patience", type=float, default=120.0, help="seconds that a round may wait for a quiet machine"
    )
    parser.add_argument(
        "--tries", type=int, default=3, help="so many times as many rounds may be begun as must be quiet"
    )
    parser.add_argument(
        "--rounds", type=int, default=0, help="so many rounds, of one unit each: for sides that take minutes"
    )
    parser.add_argument("--without", action="append", default=[], help="a side to leave out")
    parser.add_argument("--variant", help="the tuned peer's number format, instead of a trial of all")
    parser.add_argument("--weights", type=Path, help="keep the random weights in this folder")
    parser.add_argument("--before", help="the source folder of an older checkout, measured beside this one")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
