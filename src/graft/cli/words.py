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
    from graft.recipe.chain import Chain

STAGES = ", ".join(stage_cards())  # for the help

# Settings for typer: words that it does not know are changes of the recipe.
WORDS = {"ignore_unknown_options": True, "allow_extra_args": True}


def recipe_of(recipe: str | None, words: Sequence[str], options: dict[str, str | None]) -> "Recipe | Chain":
    """Return the recipe, of one stage or of several, that a command line means, and print its notices.

    recipe: the first word that typer does not know.  words: the others.
    options: {recipe key: value} of known options.
    Raises UsageError with everything that is wrong.
    """
    from graft.recipe import read  # late: pydantic, which no --help needs
    from graft.recipe.chain import read_chain
    from graft.recipe.words import SYNONYMS

    recipe, words = _separated(words if recipe is None else [recipe, *words])
    changes = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    changes += words
    if recipe is None and not changes:
        raise UsageError(
            "no recipe is given",
            "a recipe.yaml, or --model and --data",
            "start from a file in recipes/, or from `graft train --keys`",
        )
    names_output = {"output", *(word for word, key in SYNONYMS.items() if key == "output")}
    if recipe is None and not any(change.partition("=")[0] in names_output for change in changes):
        changes.append(f"output=runs/{_stem(options)}")
    notices: list[str] = []
    source = recipe if recipe is not None else {}
    chosen = read_chain(source, changes, notices) or read(source, changes, notices)
    for notice in notices:
        talk(f"note    {notice}")
    return chosen


def _separated(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the recipe among the words, None if there is none, and all changes as key=value.

    A change is written as `--key value`, `--key=value` or `key=value`; the first word that is none of these
    names the recipe.
    """
    left, changes, others = list(words), list[str](), list[str]()
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            (changes if "=" in word else others).append(word)
        elif "=" in word or not left or left[0].startswith("--"):
            changes.append(word[2:])
        else:
            changes.append(f"{word[2:]}={left.pop(0)}")
    return (others[0] if others else None), changes + others[1:]


def _stem(options: dict[str, str | None]) -> str:
    """Return a run's name, made of its data and its method."""
    data = Path(options.get("data.train") or "data").name.partition(".")[0].replace("seedling:", "")
    return f"{data}-{options.get('method') or 'lora'}"
