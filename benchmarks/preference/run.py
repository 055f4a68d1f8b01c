"""Preference tuning beside TRL, run by run; the same command goes on where it stopped.

    python benchmarks/preference/run.py                   every run that has no result yet
    python benchmarks/preference/run.py --list            what there is to do
    python benchmarks/preference/run.py --only dpo hh     runs whose name holds all of these
    python benchmarks/preference/run.py --steps 3         a trial, which leaves the results alone
    python benchmarks/collect.py preference               raw runs -> results.csv
    python benchmarks/preference/table.py                 results.csv -> RESULTS.md

Each run is a process of its own (one.py) and writes runs/bench/preference/NAME.json; its output goes to
runs/preference/log.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import starts
import work
from columns import RESULTS


def main() -> int:
    return work.run_all(__doc__, Path(__file__).with_name("one.py"), RESULTS, grid.cells, starts.prepare)


if __name__ == "__main__":
    sys.exit(main())
