"""Show the rows of a recipe as the model will see them."""

from pathlib import Path

from graft import seedling
from graft.data import DataReport, prepare
from graft.data.report import sample
from graft.models.files import find as find_model
from graft.models.tokenizer import tokenizer_in
from graft.recipe import Recipe
from graft.runs.build import recipe_behind
from graft.stages.stage import stage_of


def look(recipe: Recipe, rows: int) -> DataReport:
    """Return the data report of a recipe, with its first rows as the model sees them.

    `data.train` may name a run's folder.
    """
    recipe = recipe_behind(recipe)
    if isinstance(recipe.model, str):
        tokenizer = tokenizer_in(find_model(recipe.model))
    else:
        tokenizer = tokenizer_in(Path(recipe.output) / "tokenizer")
    stage = stage_of(recipe)
    prepared = prepare(seedling.located(recipe.data), tokenizer, stage, seed=recipe.train.seed)
    first = prepared.train[:rows]
    prepared.report.samples = [sample(example, tokenizer, stage, prepared.labels) for example in first]
    return prepared.report
