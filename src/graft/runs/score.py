"""Score what was opened, on held-out rows, and find prompts to ask it."""

import json
from collections.abc import Sequence
from pathlib import Path

from graft import seedling
from graft.data import Row, load_rows
from graft.data.read import sources, taken
from graft.data.rows import as_chat
from graft.errors import UsageError, listed, notice
from graft.evaluate import HeldOut, Scored, Table, before_after, evaluate
from graft.recipe import Recipe, read
from graft.runs.build import feed
from graft.runs.open import Opened
from graft.stages.stage import find, stage_of


def evaluation_set(opened: Opened, recipe: Recipe, rows: Sequence[Row]) -> HeldOut:
    """Return rows as evaluation needs them: encoded for losses and classes, and as prompts for texts."""
    base = opened.base
    stage = stage_of(recipe)
    head = base.adapters[opened.adapter].head if opened.adapter else None
    labels = head.labels if head is not None else ()
    encoder = stage.encoder(base.tokenizer, base.family, recipe.data, labels)
    size = recipe.evaluate.batch_size
    examples = encoder(rows).examples
    if opened.by_template:
        rows = [as_chat(row) for row in rows]
    writing = {"max_new_tokens": recipe.evaluate.max_new_tokens, "batch_size": size}
    return HeldOut(Scored(feed(base, recipe, examples, size, size), stage), rows, writing)


def held_rows(recipe: Recipe) -> list[Row]:
    """Return the rows to score a recipe on: its test rows, else its eval rows; at most evaluate.limit."""
    loaded = load_rows(seedling.located(recipe.data), stage_of(recipe).accepts(), seed=recipe.train.seed)
    return (loaded.test or loaded.eval or [])[: recipe.evaluate.limit]


def score(opened: Opened, recipe: Recipe, data: str | None = None) -> Table:
    """Return the recipe's metrics without and with the adapter; a table without columns if there are no rows.

    data: rows to score on, as `data.train` of a recipe names them; by default those of `held_rows`.
    """
    rows = held_rows(recipe) if data is None else _rows_of(data, recipe)
    if not rows:
        return Table({}, [])
    held = evaluation_set(opened, recipe, rows)
    metrics = recipe.evaluate.metrics
    if opened.adapter is None:
        return Table({"model": evaluate(opened.base, held, metrics)}, [])
    return before_after(opened.base, held, metrics, adapter=opened.adapter)


def _rows_of(data: str, recipe: Recipe) -> list[Row]:
    """Return the rows of other data, read as the recipe reads its own; at most evaluate.limit.

    Of a folder these are its test rows, else its validation rows, by the names of its files.
    """
    given = recipe.data.model_copy(update={"train": data, "eval": None, "test": None})
    located = seedling.located(given)
    settings = located.model_copy(update={"train": sources(located.train, "test")})
    for sentence in taken(data, settings.train):
        notice(f"scored on {listed(settings.train)}; {sentence}")
    return load_rows(settings, stage_of(recipe).accepts()).train[: recipe.evaluate.limit]


def scoring_recipe(opened: Opened, stage: str | None, metrics: Sequence[str], limit: int | None) -> Recipe:
    """Return the recipe to score by: the run's with these changes; a new one for a model that is no run."""
    changes = [f"evaluate.metrics={json.dumps(list(metrics))}"] if metrics else []
    changes += [f"evaluate.limit={limit}"] if limit else []
    changes += [f"stage={stage}"] if stage else []
    if opened.recipe is not None:
        return read(opened.recipe, changes)
    objective = find(stage or "sft").objective_of(opened.base.family)
    return read({"model": opened.base.name, "objective": objective}, changes)


def scores_of(name: str) -> dict[str, float]:
    """Return the scores of the trained model that a run's folder holds; empty for anything else."""
    path = Path(name) / "evaluation.json"
    columns = json.loads(path.read_text(encoding="utf-8"))["columns"] if path.exists() else {}
    return dict(list(columns.values())[-1]) if columns else {}


def prompts_of(opened: Opened, limit: int) -> list[str]:
    """Return prompts to compare models by: the recipe's samples, else what its held-out rows ask.

    Raises UsageError for a model that is no run.
    """
    recipe = opened.recipe
    if recipe is None:
        given = "the first model is no run, so there are no prompts"
        raise UsageError(given, "--prompt TEXT or --prompts FILE", "give prompts, or name a run first")
    if recipe.train.samples:
        return recipe.train.samples[:limit]
    return stage_of(recipe).questions(held_rows(recipe))[:limit]
