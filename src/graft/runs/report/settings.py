"""The settings of a run on its page: first those that are not the usual ones, then the whole recipe."""

from typing import Any

from graft.errors import UsageError
from graft.recipe import Recipe, read
from graft.recipe.text import inline
from graft.runs.report.html import folded, paragraph, table, verbatim

SAID = ("output", "stage.name", "method.name")  # what stands on top of the page


def settings(recipe: Recipe | None, text: str) -> str:
    """Return the settings of a run, in HTML.  text: of its recipe.yaml."""
    whole = verbatim(text)
    if recipe is None:
        return paragraph("recipe.yaml is not a recipe that this Graft can read.") + whole
    rows = [(key, _plain(given), _plain(usual)) for key, given, usual in changed(recipe)]
    said = table(rows, ("setting", "in this run", "usual"))
    said = said if rows else paragraph("Every setting has its usual value.")
    return said + folded("Every setting, as recipe.yaml", whole)


def changed(recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """Return the settings that differ from those of a recipe of the same stage and methods that says no more:
    key, value here, value there."""
    given, usual = _flat(recipe), _flat(_usual(recipe))
    return [
        (key, value, usual.get(key))
        for key, value in given.items()
        if key not in SAID and value != usual.get(key)
    ]


def _usual(recipe: Recipe) -> Recipe:
    """Return the recipe that names the same stage and methods, and nothing else."""
    methods = [{"name": method["name"]} for method in recipe.methods]
    said: dict[str, Any] = {"stage": recipe.stage_name}
    said |= {"method": methods if isinstance(recipe.method, list) else methods[0]} if methods else {}
    try:
        return read(said)
    except UsageError:  # a method that needs a setting
        return Recipe()


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return all settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in recipe.model_dump().items():
        grouped = isinstance(value, dict) and key != "model" and value
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if grouped else {key: value}
    return flat


def _plain(value: Any) -> str:
    """Return a value as recipe.yaml has it."""
    return inline(value)
