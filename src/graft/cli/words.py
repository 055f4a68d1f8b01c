"""Read a recipe from a command line: a file or a run's folder, options, then `key=value` words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graft.cli.say import talk
from graft.errors import UsageError
from graft.recipe.stages import stage_cards

if TYPE_CHECKING:
    from graft.recipe import Recipe

STAGES = ", ".join(stage_cards())  # for the help

# Settings for typer: words that it does not know are changes of the recipe.
WORDS = {"ignore_unknown_options": True, "allow_extra_args": True}


def recipe_of(recipe: str | None, words: Sequence[str], options: dict[str, str | None]) -> "Recipe":
    """Return the recipe that a command line means, and print its notices.

    recipe: the first word.  words: those that typer does not know.
    options: {recipe key: value} of known options.
    Raises UsageError with everything that is wrong.
    """
    from graft.recipe import read  # late: pydantic, which no --help needs

    words = list(words)
    if recipe is not None and "=" in recipe:
        recipe, words = None, [recipe, *words]  # no file is named: the first word is a change
    changes = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    changes += _changes(words)
    if recipe is None and not changes:
        raise UsageError(
            "no recipe is given",
            "a recipe.yaml, or --model and --data",
            "start from a file in recipes/, or from `graft train --keys`",
        )
    if recipe is None and not any(change.startswith("output=") for change in changes):
        changes.append(f"output=runs/{_stem(options)}")
    notices: list[str] = []
    chosen = read(recipe if recipe is not None else {}, changes, notices)
    for notice in notices:
        talk(f"note    {notice}")
    return chosen


def _changes(words: list[str]) -> list[str]:
    """Return `--key value`, `--key=value` and `key=value` words as key=value."""
    changes = []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            changes.append(word)
        elif "=" in word or not words:
            changes.append(word[2:])
        else:
            changes.append(f"{word[2:]}={words.pop(0)}")
    return changes


def _stem(options: dict[str, str | None]) -> str:
    """Return a run's name, made of its data and its method."""
    data = Path(options.get("data.train") or "data").name.partition(".")[0].replace("seedling:", "")
    return f"{data}-{options.get('method') or 'lora'}"
