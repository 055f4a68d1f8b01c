"""One run, in this process: python benchmarks/preference/one.py NAME [--steps N]

A comparison is Graft's run and TRL's from one start, then the held-out pairs by both; Graft's run is `graft
train` in a process of its own. A run on answers of the model's own is in own.py.
"""

import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import internals
import material
import ours
import own
import starts
import work
from columns import RESULTS

import graft

GRAFT = [sys.executable, "-c", "from graft.cli import main; main()"]


def main() -> None:
    work.run_one(__doc__, RESULTS, grid.cells, describe, carry_out)


def describe(cell: grid.AnyCell) -> dict[str, Any]:
    """Return the run in words and numbers."""
    s = cell.setting
    if isinstance(cell, grid.OwnCell):
        return own.describe(cell)
    facts = material.facts(s.data, cell.seed)
    return {
        "part": s.stage, "data": s.data, "seed": cell.seed, "steps": s.steps, "batch_size": s.batch_size,
        "lr": s.lr, "context": s.context,
        **{key: facts[key] for key in ("read", "left_out", "train", "test")},
    }  # fmt: skip


def carry_out(cell: grid.AnyCell, folder: Path) -> dict[str, Any]:
    """Train and test: by both tools, or by Graft on its own answers."""
    if isinstance(cell, grid.OwnCell):
        return own.carry_out(cell, folder)
    start = starts.start_of(cell, folder)
    recipe = internals.read(cell.recipe(start, folder / "graft"))
    trained = by_command(recipe, folder)
    opened = internals.open_model(recipe.output)
    order = starts.order_of(recipe, opened.base)
    mine = internals.pair_margins(opened, recipe, cell.rows("test"))
    peer, theirs = by_trl(cell, start, order, folder)
    lengths = longer_wins(cell, opened.base.tokenizer)
    groups = material.facts(cell.setting.data, cell.seed)["groups"]
    return {
        "graft": trained | {"margins": mine}, "trl": peer | {"margins": theirs},
        "groups": groups, "longer_wins": lengths,
    }  # fmt: skip


def by_command(recipe: graft.Recipe, folder: Path) -> dict[str, Any]:
    """Carry the recipe out by `graft train`; return {losses, step_seconds}."""
    shutil.rmtree(recipe.output, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.yaml(), encoding="utf-8")
    subprocess.run([*GRAFT, "train", str(folder / "recipe.yaml")], check=True)
    return ours.train(recipe)  # it has ended: this reads what it left


def by_trl(
    cell: grid.Cell, start: Path, order: list[int], folder: Path
) -> tuple[dict[str, Any], list[float]]:
    """Train by TRL's trainer; return {losses, step_seconds}, and the margins of the held-out pairs."""
    import theirs  # late: TRL takes seconds to import, and our runs must not need it

    rows = material.rows(cell.rows("pairs"))
    timed = theirs.Timed()
    made = theirs.trainer(
        cell.setting.stage, Path(grid.model()), start, [rows[k] for k in order], setting=cell.setting,
        beta=grid.BETA, centring=grid.CENTRING, folder=folder / "trl", callbacks=[timed],
    )  # fmt: skip
    made.train()
    held = theirs.margins(made, cell.setting.stage, material.rows(cell.rows("test")), grid.BETA)
    return {"losses": made.losses, "step_seconds": timed.seconds}, held


def longer_wins(cell: grid.Cell, tokenizer: Any) -> float:
    """Return the share of held-out pairs whose better answer has more tokens: a judgement without a model."""
    points = []
    for row in material.rows(cell.rows("test")):
        chosen, rejected = (len(tokenizer(row[side])["input_ids"]) for side in ("chosen", "rejected"))
        points.append((1 + (chosen > rejected) - (chosen < rejected)) / 2)
    return statistics.mean(points)


if __name__ == "__main__":
    main()
