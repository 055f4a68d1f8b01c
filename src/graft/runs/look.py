"""Show the rows of a recipe as the model will see them."""

from pathlib import Path

from graft import seedling
from graft.data import DataReport, prepare
from graft.data.report import sample
from graft.models.files import find as find_model
from graft.planning.fit import fitting, positions_taken, require_tokenizer, tokenizer_of_folder
from graft.planning.plan import config_of
from graft.recipe import Recipe
from graft.runs.build import recipe_behind
from graft.stages.stage import stage_of


def look(recipe: Recipe, rows: int, *, each_token: bool = False) -> DataReport:
    """Return the data report of a recipe, with its first rows as the model sees them.

    `data.train` may name a run's folder.  each_token: with a piece for every token, where rows are one text.
    """
    recipe = recipe_behind(recipe)
    if isinstance(recipe.model, str):
        name, folder = recipe.model, find_model(recipe.model)
    else:
        name, folder = recipe.output, Path(recipe.output) / "tokenizer"
    tokenizer = tokenizer_of_folder(folder)
    size = None
    if not (folder.is_dir() and tokenizer is not None and not (folder / "config.json").exists()):
        config = config_of(recipe)  # a folder with a tokenizer alone shows rows too
        size = getattr(config.get_text_config(), "vocab_size", None)
        recipe = fitting(recipe, config, positions_taken(recipe, config))
    require_tokenizer(tokenizer, name, size)
    stage = stage_of(recipe)
    prepared = prepare(seedling.located(recipe.data), tokenizer, stage, vocabulary=size)
    first = prepared.train[:rows]
    prepared.report.samples = [
        sample(example, tokenizer, stage, prepared.labels, each_token=each_token) for example in first
    ]
    return prepared.report
