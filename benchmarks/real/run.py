"""The comparison on real data, run by run; what is finished is kept, so the same command goes on where it stopped.

    python benchmarks/real/run.py --jobs 2            every run that has no result yet, two at a time
    python benchmarks/real/run.py --list              what there is to do
    python benchmarks/real/run.py --only e2e .lora.   runs whose name holds all of these
    python benchmarks/real/table.py                   results/*.json -> RESULTS.md

Each run is a process of its own (one.py) and leaves results/NAME.json; what it says lies in runs/real/log.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import tasks
import work

HERE = Path(__file__).parent
RESULTS, TRIAL = HERE / "results", tasks.WORK / "trial"


def main() -> int:
    words = work.words(__doc__)
    words.add_argument(
        "--steps", type=int, help=f"fewer steps, for a trial; results go to {TRIAL.relative_to(tasks.ROOT)}"
    )
    asked = words.parse_args()
    results = TRIAL if asked.steps else RESULTS
    chosen = {cell.name: cell for cell in grid.cells() if all(part in cell.name for part in asked.only)}
    todo = [name for name in chosen if not (results / f"{name}.json").exists()]
    if asked.list:
        print("\n".join(f"{'todo' if name in todo else 'done'}  {name}" for name in chosen))
        return 0
    prepare([chosen[name] for name in todo])
    print(f"{len(chosen) - len(todo)} of {len(chosen)} runs are done, {len(todo)} to do", flush=True)
    steps = ["--steps", str(asked.steps)] if asked.steps else []
    more = [str(results), *steps]
    return work.side_by_side(
        HERE / "one.py", todo, tasks.WORK, jobs=asked.jobs, threads=asked.threads, more=more
    )


def prepare(cells: Sequence[grid.Cell]) -> None:
    """Write the rows of every base and task once, before processes that need them run side by side."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer  # late: --list and --help are quick

    for setting in {(cell.setting.base, cell.setting.task): cell.setting for cell in cells}.values():
        tokenizer = AutoTokenizer.from_pretrained(tasks.model_folder(setting.base), local_files_only=True)
        tasks.stored(setting.base, setting.task, tokenizer, setting.context)


if __name__ == "__main__":
    sys.exit(main())
