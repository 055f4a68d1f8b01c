"""Every method on two real tasks, run by run; what is finished is kept, so the same command goes on where it stopped.

    python benchmarks/methods/run.py --jobs 2                  every run that has no result yet, two at a time
    python benchmarks/methods/run.py --list                    what there is to do
    python benchmarks/methods/run.py --only laptop .lora.      runs whose name holds all of these
    python benchmarks/methods/table.py                         results/*.json -> RESULTS.md, quality.svg

First some rates of every line at one seed, then the other seeds and PEFT's at the best. Each run is a process of its
own (one.py) and leaves results/NAME.json; what it says lies in runs/methods/log.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import rows
import tasks
import work

import graft

HERE = Path(__file__).parent
RESULTS, TRIAL = HERE / "results", grid.WORK / "trial"


def main() -> int:
    words = work.words(__doc__)
    words.add_argument(
        "--steps", type=int, help=f"fewer steps, for a trial; results go to {TRIAL.relative_to(tasks.ROOT)}"
    )
    asked = words.parse_args()
    results = TRIAL if asked.steps else RESULTS
    for line in grid.LINES:
        if missing := grid.absent(line):
            print(f"skipped  {line}: there is no method {' or '.join(missing)}", flush=True)
    if asked.list:
        known = [cell.name for cell in chosen(results, asked.only)]
        print(
            "\n".join(
                f"{'done' if (results / f'{name}.json').exists() else 'todo'}  {name}" for name in known
            )
        )
        return 0
    tried: set[str] = set()
    failed = 0
    while todo := [c for c in chosen(results, asked.only) if c.name not in tried and undone(results, c)]:
        prepare(todo)
        print(f"{len(todo)} runs to do", flush=True)
        tried |= {cell.name for cell in todo}
        failed += work.side_by_side(
            HERE / "one.py", [cell.name for cell in todo], grid.WORK, jobs=asked.jobs, threads=asked.threads,
            more=[str(results), *(["--steps", str(asked.steps)] if asked.steps else [])],
        )  # fmt: skip
    return failed


def chosen(results: Path, parts: Sequence[str]) -> list[grid.Cell]:
    """The runs that can be named now and whose name holds all parts."""
    return [cell for cell in grid.cells(results) if all(part in cell.name for part in parts)]


def undone(results: Path, cell: grid.Cell) -> bool:
    """Whether the run has no result."""
    return not (results / f"{cell.name}.json").exists()


def prepare(cells: Sequence[grid.Cell]) -> None:
    """Write the rows of every task and train what is fused, once, before processes that need them run side by side."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer  # late: --list and --help are quick

    fused = {member.name: member for cell in cells for member in cell.members()}.values()
    for cell in {cell.setting.task: cell for cell in [*cells, *fused]}.values():
        rows.store(cell, AutoTokenizer.from_pretrained(cell.setting.folder, local_files_only=True))
    for member in fused:
        graft.run(
            member.recipe(member.folder())
        )  # goes on where it stopped, and does nothing once it is done


if __name__ == "__main__":
    sys.exit(main())
