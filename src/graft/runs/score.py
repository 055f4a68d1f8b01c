"""Ask and score what was opened: answers to prompts, and metrics on held-out rows."""

import json
from collections.abc import Sequence
from pathlib import Path

from graft import seedling
from graft.data import Row, load_rows
from graft.data.rows import as_chat
from graft.errors import UsageError
from graft.evaluate import HeldOut, Table, before_after, evaluate
from graft.recipe import Recipe, read
from graft.runs.build import feed
from graft.runs.open import Opened
from graft.stages.stage import find, stage_of


def material(opened: Opened, recipe: Recipe, rows: Sequence[Row]) -> HeldOut:
    """Rows as evaluation takes them: encoded for losses and classes, and as prompts for written answers."""
    base = opened.base
    head = base.adapters[opened.adapter].head if opened.adapter else None
    stage = stage_of(recipe)
    labels = head.labels if head is not None else ()
    encoder = stage.encoder(base.tokenizer, base.family, recipe.data, labels)
    size = recipe.evaluate.batch_size
    examples = encoder(rows).examples
    if opened.by_template:
        rows = [as_chat(row) for row in rows]
    return HeldOut(
        feed(base, recipe, examples, size, size),
        stage,
        rows,
        {"max_new_tokens": recipe.evaluate.max_new_tokens, "batch_size": size},
    )


def held_rows(recipe: Recipe) -> list[Row]:
    """The rows that a recipe is judged on: its test rows, else its held-out ones; at most evaluate.limit."""
    loaded = load_rows(seedling.located(recipe.data), stage_of(recipe).accepts(), seed=recipe.train.seed)
    return (loaded.test or loaded.eval or [])[: recipe.evaluate.limit]


def score(opened: Opened, recipe: Recipe, data: str | None = None) -> Table:
    """The recipe's metrics without and with the adapter, on its held rows or those of `data`; no rows, no columns."""
    if data is None:
        rows = held_rows(recipe)
    else:
        other = recipe.data.model_copy(update={"train": data, "eval": None, "test": None})
        rows = load_rows(seedling.located(other), stage_of(recipe).accepts()).train[: recipe.evaluate.limit]
    if not rows:
        return Table({}, [])
    held, metrics = material(opened, recipe, rows), recipe.evaluate.metrics
    if opened.adapter is None:
        return Table({"model": evaluate(opened.base, held, metrics)}, [])
    return before_after(opened.base, held, metrics, adapter=opened.adapter)


def judged_by(opened: Opened, stage: str | None, metrics: Sequence[str], limit: int | None) -> Recipe:
    """The recipe to score by: the run's own with these changes, or one for a model that is no run."""
    changes = [f"evaluate.metrics={json.dumps(list(metrics))}"] if metrics else []
    changes += [f"evaluate.limit={limit}"] if limit else []
    changes += [f"stage={stage}"] if stage else []
    if opened.recipe is not None:
        return read(opened.recipe, changes)
    objective = find(stage or "sft").objective_of(opened.base.family)
    return read({"model": opened.base.name, "objective": objective}, changes)


def scores_of(name: str) -> dict[str, float]:
    """The scores that a run's folder holds, of the trained model; empty for anything else."""
    path = Path(name) / "evaluation.json"
    columns = json.loads(path.read_text(encoding="utf-8"))["columns"] if path.exists() else {}
    return dict(list(columns.values())[-1]) if columns else {}


def prompts_of(opened: Opened, limit: int) -> list[str]:
    """Prompts to compare by: the recipe's samples, else what its held-out rows ask."""
    recipe = opened.recipe
    if recipe is None:
        raise UsageError(
            "there are no prompts", "--prompt TEXT or --prompts FILE", "give some, or name a run first"
        )
    if recipe.train.samples:
        return recipe.train.samples[:limit]
    return stage_of(recipe).questions(held_rows(recipe))[:limit]
