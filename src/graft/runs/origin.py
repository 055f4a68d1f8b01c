"""What an export says of the run it comes from: its own rows, its settings in words, its scores."""

from collections.abc import Sequence
from pathlib import Path

from graft.errors import GraftError, notice
from graft.recipe import Recipe, read
from graft.runs.open import Opened
from graft.runs.own_rows import own_rows, rows_in
from graft.runs.result import RunResult, has_finished, result_of
from graft.shipping.origin import Origin
from graft.shipping.prompts import Prompts
from graft.shipping.provenance import last_name


def origin_of(opened: Opened) -> Origin | None:
    """Return the run that was opened, or whose adapter was; None for a model or another adapter.

    A notice says so if its rows cannot be read.
    """
    folder = opened.folder or _run_of(opened)
    if folder is None:
        return None
    recipe = opened.recipe or read(folder)
    training, scored = {"stage": recipe.stage_name, "method": _method(recipe)}, ""
    scores: dict[str, dict[str, float]] = {}
    if has_finished(folder):
        result = result_of(folder, recipe)
        training |= _training(recipe, result)
        scores = result.scores
        scored = f"{result.coverage.get('scored', '?')} of {result.coverage.get('of', '?')} held-out rows"
    names = _names(recipe)
    hub = [name.removeprefix("hub:").partition(":")[0] for name in names if name.startswith("hub:")]
    shown = [name if name.startswith(("hub:", "seedling:")) else last_name(name) for name in names]
    return Origin(folder, _rows(opened, folder), training, scores, scored, shown, hub)


def _run_of(opened: Opened) -> Path | None:
    """Return the run's folder in which the adapter lies that answers; None if it lies elsewhere."""
    place = opened.base.adapters[opened.adapter].folder if opened.adapter else None
    inside = place is not None and place.name == "adapter" and (place.parent / "recipe.yaml").is_file()
    return place.parent if place is not None and inside else None


def _rows(opened: Opened, folder: Path) -> Prompts | None:
    """Return the run's rows to measure with; None where they cannot be read, which is told."""
    try:
        if opened.recipe is not None:
            return own_rows(opened.recipe, opened.base, opened.adapter)
        return rows_in(folder, opened.base, opened.adapter)
    except (GraftError, OSError) as error:
        given = error.given if isinstance(error, GraftError) else str(error)
        notice(f"the rows of {folder} cannot be read ({given}): 8 fixed texts are measured instead")
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
