"""Training in few bits, merging and shipping, run by run; the same command goes on where it stopped.

    python benchmarks/shipping/run.py                    every run that has no result yet
    python benchmarks/shipping/run.py --list             what there is to do
    python benchmarks/shipping/run.py --only seedling    runs whose name holds all of these
    python benchmarks/shipping/run.py --steps 3          a trial, which leaves the results alone
    python benchmarks/collect.py shipping                raw runs -> results.csv
    python benchmarks/shipping/table.py                  results.csv -> RESULTS.md

Each run is a process of its own (one.py) and writes runs/bench/shipping/NAME.json; its output goes to
runs/shipping/log.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import tasks
import work
from columns import RESULTS


def main() -> int:
    return work.run_all(__doc__, Path(__file__).with_name("one.py"), RESULTS, grid.cells, prepare)


def prepare(cells: Sequence[grid.Cell]) -> None:
    """Write the rows and the packed bases once, before processes that need them run side by side."""
    # Late, so that --list and --help are quick.
    import one
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    for cell in {(cell.setting.base, cell.line): cell for cell in cells}.values():
        setting = cell.setting
        if setting.task in tasks.TEXT_TASKS:
            tokenizer = AutoTokenizer.from_pretrained(cell.origin(), local_files_only=True)
            tasks.stored(setting.base, setting.task, tokenizer, setting.context)
        if cell.line in grid.BITS and not cell.packed().exists():
            one.calibrated(cell, cell.origin(), cell.packed(), grid.BITS[cell.line])


if __name__ == "__main__":
    sys.exit(main())
