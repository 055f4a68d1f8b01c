"""Teach the embedded base a preference in every way, run by run; the same command goes on where it stopped.

    python benchmarks/alignment/run.py                every run that has no result yet
    python benchmarks/alignment/run.py --list         what there is to do
    python benchmarks/alignment/run.py --only dpo     runs whose name holds all of these
    python benchmarks/alignment/run.py --steps 3      a trial, which leaves the results alone
    python benchmarks/collect.py alignment            raw runs -> results.csv, curves.csv
    python benchmarks/alignment/table.py              these -> RESULTS.md, curves.svg

Each run is a process of its own (one.py) and writes runs/bench/alignment/NAME.json; its folder stays in
runs/alignment/kept, because other runs start from it, and its output goes to runs/alignment/log.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import work
from columns import RESULTS


def main() -> int:
    return work.run_all(__doc__, Path(__file__).with_name("one.py"), RESULTS, grid.cells, prepare)


def prepare(cells: Sequence[grid.Cell]) -> None:
    """Do nothing: runs share the folders of other runs, and those come first."""


if __name__ == "__main__":
    sys.exit(main())
