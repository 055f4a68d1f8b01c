"""What both tools start from: rows, a tuned adapter, for reward a new head, and the order of the rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grid
import internals
import material
import sums

import graft


def prepare(cells: Sequence[grid.AnyCell]) -> None:
    """Write the rows of every fold, tune the adapters from which the runs start, and those that pay, once."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer  # late, so that --list is quick

    tokenizer = AutoTokenizer.from_pretrained(grid.model(), local_files_only=True)
    for cell in cells:
        setting = cell.setting
        if setting.data == "sums":
            sums.write(cell.rows("asked").parent)
            continue
        material.stored(setting.data, tokenizer, setting.context)
        if isinstance(setting, grid.Own):
            material.stored_prompts(setting.data, cell.seed, tokenizer, setting.context - setting.new)
    for cell in {cell.tuned: cell for cell in cells}.values():
        _once(cell.tuned, cell.supervised())
    for cell in cells:
        if isinstance(cell, grid.OwnCell) and cell.setting.data != "sums":
            _once(Path(cell.paying), cell.reward())


def _once(run: Path, recipe: dict[str, Any]) -> None:
    """Carry out a recipe that several runs start from, unless that has been done."""
    if not (run / "finished.json").exists():
        print(f"training a start: {run.name}", flush=True)
        graft.run(recipe)


def start_of(cell: grid.Cell, folder: Path) -> Path:
    """Return the folder of the adapter that a run starts from; a new head is added in `folder`."""
    if cell.setting.stage != "reward":
        return cell.tuned / "adapter"
    return graft.run(cell.headed(folder / "headed")).adapter


def order_of(recipe: graft.Recipe, base: Any) -> list[int]:
    """Return the numbers of the rows in the order in which all steps see them, from 0."""
    feed, _ = internals.training_feed(recipe, base)
    sources: list[str] = []
    for step in range(recipe.train.max_steps or 0):
        for batch in feed.step(*divmod(step, feed.steps_per_epoch)):
            sources += batch.sources
    return [internals.line_of(source) - 1 for source in sources]
