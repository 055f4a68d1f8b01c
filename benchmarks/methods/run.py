"""Every method on two real tasks, run by run; the same command goes on where it stopped.

    python benchmarks/methods/run.py                        every run that has no result yet
    python benchmarks/methods/run.py --list                 what there is to do
    python benchmarks/methods/run.py --only laptop .lora.   runs whose name holds all of these
    python benchmarks/methods/run.py --steps 3              a trial, which leaves the results alone
    python benchmarks/collect.py methods                    raw runs -> results.csv
    python benchmarks/methods/table.py                      results.csv -> RESULTS.md, quality.svg

First come some rates of every line at one seed, then the other seeds and PEFT's runs at the best rate. Each
run is a process of its own (one.py) and writes runs/bench/methods/NAME.json; its output goes to
runs/methods/log.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import rows
import work
from columns import RESULTS

import graft


def main() -> int:
    for line in grid.LINES:
        if missing := grid.absent(line):
            print(f"skipped  {line}: there is no method {' or '.join(missing)}", flush=True)
    return work.run_all(__doc__, Path(__file__).with_name("one.py"), RESULTS, grid.cells, prepare)


def prepare(cells: Sequence[grid.Cell]) -> None:
    """Write the rows of every task and train what is fused, once, before processes that need them run side by
    side."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer  # late, so that --list is quick

    fused = {member.name: member for cell in cells for member in cell.members()}.values()
    for cell in {cell.setting.task: cell for cell in [*cells, *fused]}.values():
        rows.store(cell, AutoTokenizer.from_pretrained(cell.setting.folder, local_files_only=True))
    for member in fused:
        graft.run(member.recipe(member.folder()))  # goes on where it stopped; does nothing once it is done


if __name__ == "__main__":
    sys.exit(main())
