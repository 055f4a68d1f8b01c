"""What an export says of the run it comes from: its own rows, its settings in words, its scores."""

from collections.abc import Sequence

from graft.errors import GraftError, notice
from graft.recipe import Recipe
from graft.runs.open import Opened
from graft.runs.own_rows import own_rows
from graft.runs.result import RunResult, has_finished, result_of
from graft.shipping.origin import Origin
from graft.shipping.prompts import Prompts
from graft.shipping.provenance import last_name


def origin_of(opened: Opened) -> Origin | None:
    """Return the run that was opened, as an export speaks of it; None for a model or an adapter alone.

    A notice says so if its rows cannot be read.
    """
    recipe, folder = opened.recipe, opened.folder
    if recipe is None or folder is None:
        return None
    training, scores, scored = {"stage": recipe.stage_name, "method": _method(recipe)}, {}, ""
    if has_finished(folder):
        result = result_of(folder, recipe)
        training |= _training(recipe, result)
        scores = result.scores
        scored = f"{result.coverage.get('scored', '?')} of {result.coverage.get('of', '?')} held-out rows"
    names = _names(recipe)
    hub = [name.removeprefix("hub:").partition(":")[0] for name in names if name.startswith("hub:")]
    shown = [name if name.startswith(("hub:", "seedling:")) else last_name(name) for name in names]
    return Origin(folder, _rows(opened, recipe), training, scores, scored, shown, hub)


def _rows(opened: Opened, recipe: Recipe) -> Prompts | None:
    """Return the run's rows to measure with; None where they cannot be read, which is told."""
    try:
        return own_rows(recipe, opened.base, opened.adapter)
    except (GraftError, OSError) as error:
        given = error.given if isinstance(error, GraftError) else str(error)
        notice(f"the rows of {opened.folder} cannot be read ({given}): 8 fixed texts are measured instead")
        return None


def _method(recipe: Recipe) -> str:
    return "full model" if recipe.fresh else " + ".join(str(method["name"]) for method in recipe.methods)


def _training(recipe: Recipe, result: RunResult) -> dict[str, str]:
    """Return the facts of a finished run, by name."""
    train = recipe.train
    facts = {
        "steps": f"{result.steps:,} of {train.batch_size} rows",
        "learning rate": f"{train.lr:g}, {train.schedule}",
        "seed": str(train.seed),
        "weights of the base while training": recipe.quant if recipe.quant != "none" else recipe.dtype,
    }
    return facts | ({"loss of the last step": f"{result.loss:.4g}"} if result.loss is not None else {})


def _names(recipe: Recipe) -> Sequence[str]:
    """Return the files or hub names that a recipe trains on, as it writes them."""
    train = recipe.data.train
    return [] if train is None else [train] if isinstance(train, str) else list(train)
