"""Memory and time, predicted and measured, run by run; the same command goes on where it stopped.

    python benchmarks/memory/run.py                every run that has no result yet
    python benchmarks/memory/run.py --memory       two steps of each, without times: they count while the
                                                   machine is busy, too
    python benchmarks/memory/run.py --list         what there is to do
    python benchmarks/memory/run.py --only 15m     runs whose name holds all of these
    python benchmarks/collect.py memory            raw runs -> results.csv
    python benchmarks/memory/table.py              results.csv -> RESULTS.md

Each run is a process of its own (one.py), which starts `graft plan` and `graft train`, and writes
runs/bench/memory/NAME.json; its output goes to runs/memory/log.
"""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import work
from columns import RESULTS

MEMORY = "--memory"


def main() -> int:
    if MEMORY in sys.argv:
        sys.argv.remove(MEMORY)
        os.environ["GRAFT_BENCH_MEMORY"] = "1"
    script = Path(__file__).with_name("one.py")
    return work.run_all(__doc__, script, RESULTS, grid.cells, lambda todo: None)


if __name__ == "__main__":
    sys.exit(main())
