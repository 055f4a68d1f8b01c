"""The comparison on real data, run by run; the same command goes on where it stopped.

    python benchmarks/real/run.py                    every run that has no result yet
    python benchmarks/real/run.py --list             what there is to do
    python benchmarks/real/run.py --only e2e .lora.  runs whose name holds all of these
    python benchmarks/real/run.py --steps 3          a trial, which leaves the results alone
    python benchmarks/collect.py real                raw runs -> results.csv, answers.csv
    python benchmarks/real/table.py                  these -> RESULTS.md

Each run is a process of its own (one.py) and writes runs/bench/real/NAME.json; its output goes to
runs/real/log.
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
    """Write the rows of every base and task once, before processes that need them run side by side."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer  # late, so that --list is quick

    for setting in {(cell.setting.base, cell.setting.task): cell.setting for cell in cells}.values():
        tokenizer = AutoTokenizer.from_pretrained(tasks.model_folder(setting.base), local_files_only=True)
        tasks.stored(setting.base, setting.task, tokenizer, setting.context)


if __name__ == "__main__":
    sys.exit(main())
