"""One run of the comparison, in this process: python benchmarks/real/one.py NAME [--steps N]"""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import internals
import ours
import tasks
import work
from columns import RESULTS


def main() -> None:
    work.run_one(__doc__, RESULTS, grid.cells, describe, carry_out)


def carry_out(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    """Train and test with the cell's tool; method "none" tests the base, and the answers that need no
    model."""
    recipe = internals.read(cell.recipe(folder))
    if cell.method == "none":
        return ours.score(cell, recipe, ours.untrained(recipe)) | {"baselines": ours.baselines(cell)}
    if cell.tool == "graft":
        return ours.train(recipe) | ours.score(cell, recipe, internals.open_model(recipe.output))
    from peer import (
        Peer,
    )  # late: PEFT and bitsandbytes take seconds to import, and our runs must not need them

    peer = Peer(cell, recipe)
    return peer.train() | peer.score()


def describe(cell: grid.Cell) -> dict[str, Any]:
    """Return the run in words and numbers, with the counts of its rows."""
    s = cell.setting
    return {
        "base": s.base, "task": s.task, "rows": cell.rows, "method": cell.method, "tool": cell.tool,
        "seed": cell.seed, "steps": s.steps, "batch_size": s.batch_size, "lr": cell.lr,
        "counts": tasks.test_of(cell.material())[1],
    }  # fmt: skip


if __name__ == "__main__":
    main()
