"""One run of the comparison, in this process: python benchmarks/real/one.py NAME RESULTS [--steps N]"""

import argparse
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import ours
import result
import tasks
import torch

from graft.recipe import read
from graft.runs.open import open_model


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("name")
    words.add_argument("results", type=Path)
    words.add_argument("--steps", type=int)
    asked = words.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cell = next(cell for cell in grid.cells() if cell.name == asked.name)
    if asked.steps:
        cell = replace(cell, setting=replace(cell.setting, steps=asked.steps))
    folder, begun = tasks.WORK / "runs" / f"{cell.name}.{cell.setting.steps}", time.perf_counter()
    found = carry_out(cell, folder)
    facts = {
        "cell": describe(cell),
        "wall_s": time.perf_counter() - begun,
        **found,
        "machine": result.machine(),
    }
    result.write(asked.results / f"{cell.name}.json", facts)
    shutil.rmtree(folder, ignore_errors=True)


def carry_out(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    """Train and test with the cell's tool; "none" tests the base, and the answers that need no model."""
    recipe = read(cell.recipe(folder))
    if cell.method == "none":
        return ours.score(cell, recipe, ours.untrained(recipe)) | {"baselines": ours.baselines(cell)}
    if cell.tool == "graft":
        return ours.train(recipe) | ours.score(cell, recipe, open_model(recipe.output))
    from peer import (
        Peer,
    )  # late: PEFT and bitsandbytes take seconds to import, and our runs shall not need them

    peer = Peer(cell, recipe)
    return peer.train() | peer.score()


def describe(cell: grid.Cell) -> dict[str, Any]:
    """The run in words and numbers, with the count of its rows."""
    s = cell.setting
    return {
        "name": cell.name, "base": s.base, "task": s.task, "rows": cell.rows, "method": cell.method, "tool": cell.tool,
        "seed": cell.seed, "steps": s.steps, "batch_size": s.batch_size, "lr": cell.lr,
        "counts": tasks.test_of(cell.material())[1],
    }  # fmt: skip


if __name__ == "__main__":
    main()
