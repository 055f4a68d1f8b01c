"""Training in few bits, merging and shipping, run by run; what is finished is kept: the same command goes on.

    python benchmarks/shipping/run.py --jobs 2           every run that has no result yet, two at a time
    python benchmarks/shipping/run.py --list             what there is to do
    python benchmarks/shipping/run.py --only seedling    runs whose name holds all of these
    python benchmarks/shipping/table.py                  results/*.json -> RESULTS.md

Each run is a process of its own (one.py) and leaves results/NAME.json; what it says lies in runs/shipping/log.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import one
import tasks
import work

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> int:
    asked = work.words(__doc__).parse_args()
    chosen = {cell.name: cell for cell in grid.cells() if all(part in cell.name for part in asked.only)}
    todo = [name for name in chosen if not (RESULTS / f"{name}.json").exists()]
    if asked.list:
        print("\n".join(f"{'todo' if name in todo else 'done'}  {name}" for name in chosen))
        return 0
    prepare([chosen[name] for name in todo])
    print(f"{len(chosen) - len(todo)} of {len(chosen)} runs are done, {len(todo)} to do", flush=True)
    return work.side_by_side(
        HERE / "one.py", todo, grid.WORK, jobs=asked.jobs, threads=asked.threads, more=[str(RESULTS)]
    )


def prepare(cells: Sequence[grid.Cell]) -> None:
    """Write the rows and the packed bases once, before processes that need them run side by side."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer  # late: --list and --help are quick

    for cell in {(cell.setting.base, cell.line): cell for cell in cells}.values():
        setting = cell.setting
        if setting.task in tasks.TEXT_TASKS:
            tokenizer = AutoTokenizer.from_pretrained(cell.origin(), local_files_only=True)
            tasks.stored(setting.base, setting.task, tokenizer, setting.context)
        if cell.line in grid.BITS and not cell.packed().exists():
            one.calibrated(cell, cell.origin(), cell.packed(), grid.BITS[cell.line])


if __name__ == "__main__":
    sys.exit(main())
