"""Check every family of text models that the installed transformers has, and write what works with what.

    python benchmarks/families/run.py                     all families, then results.csv and RESULTS.md
    python benchmarks/families/run.py --only gpt2 t5      these, which replace their rows
    python benchmarks/families/run.py --wrong             those whose row in results.csv is not right
    python benchmarks/families/run.py --jobs 4            side by side

Each family is a process of its own (one.py), so that one that crashes or hangs is a row like the others. Raw
runs go to runs/bench/families, output to runs/families/log. Exits with 1 if anything is WRONG or a CRASH.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
import one
import table
import work
from columns import CELLS, RESULTS
from results import RAW, Row, machine, write_csv, write_raw


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], help="names of families; all by default")
    parser.add_argument("--wrong", action="store_true", help="families with a cell that is WRONG or a CRASH")
    parser.add_argument("--jobs", type=int, default=1, help="families side by side")
    options = parser.parse_args()
    known = one.families.families()
    if unknown := set(options.only) - set(known):
        parser.error(f"no family {', '.join(sorted(unknown))} in the installed transformers")
    names = options.only or list(known)
    if options.wrong:
        found = {family for family, _, _ in wrong_cells(RESULTS.read())}
        names = [name for name in names if name in found]
    for name in names:
        (RESULTS.raw / f"{name}.json").unlink(missing_ok=True)
    script = Path(__file__).with_name("one.py")
    work.side_by_side(script, names, RAW.parent / "families", jobs=options.jobs, threads=1)
    for name in names:
        if not (RESULTS.raw / f"{name}.json").exists():
            ended = f"CRASH the process ended, or gave no answer in {one.SECONDS} s"
            about = {"family": name, "task": known[name].task, "machine": machine()}
            write_raw(RESULTS.raw / f"{name}.json", {**about, "cells": {"transformers": ended}})
    if len(names) == len(known):  # families that transformers has no longer leave the table
        write_csv(RESULTS.path, RESULTS.key, RESULTS.facts, [])
    RESULTS.merge(RESULTS.raw)
    table.write(RESULTS.read(), Path(__file__).parent)
    return report(names)


def report(names: list[str]) -> int:
    """Print what is wrong with these families; return 1 if anything is."""
    rows = [row for row in RESULTS.read() if row["family"] in names]
    wrong = wrong_cells(rows)
    for family, column, cell in wrong:
        print(f"{family:<22} {column:<12} {cell}")
    print(f"{len(rows)} families, {len(wrong)} cells WRONG or CRASH; {RESULTS.path.parent / 'RESULTS.md'}")
    return 1 if wrong else 0


def wrong_cells(rows: list[Row]) -> list[tuple[str, str, str]]:
    """Return (family, column, cell) of all that is neither right nor refused."""
    cells = [(row["family"], column, str(row.get(column, ""))) for row in rows for column in CELLS]
    return [found for found in cells if found[2].startswith(("WRONG", "CRASH"))]


if __name__ == "__main__":
    sys.exit(main())
