"""Read a recipe from a command line: a file or a run's folder, options, then `key=value` words."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import graft
from graft.cli.misuse import ALIKE, did_you_mean
from graft.cli.say import talk
from graft.errors import UsageError, close_to

if TYPE_CHECKING:
    from graft.recipe import Recipe
    from graft.recipe.chain import Chain

READS = re.compile(r"^    layouts(: ClassVar)? = \(", re.MULTILINE)  # as every stage declares


def _stage_names() -> list[str]:
    """Return the names of the stages by a look at their files: recipes are too slow to import for a help."""
    files = [file for folder in graft.__path__ for file in Path(folder, "stages").glob("*.py")]
    return sorted({file.stem for file in files if READS.search(file.read_text(encoding="utf-8"))})


STAGES = ", ".join(_stage_names())  # for the help

# Settings for typer: words that it does not know are changes of the recipe.
WORDS = {"ignore_unknown_options": True, "allow_extra_args": True}


def recipe_of(
    recipe: str | None,
    words: Sequence[str],
    options: dict[str, str | None],
    known: Sequence[str] = (),
) -> "Recipe | Chain":
    """Return the recipe, of one stage or of several, that a command line means, and print its notices.

    recipe: the first word that typer does not know.  words: the others.
    options: {recipe key: value} of known options.  known: all options of the verb, for misspelt ones.
    Raises UsageError with everything that is wrong.
    """
    from graft.recipe import read  # late: pydantic, which no --help needs
    from graft.recipe.chain import read_chain
    from graft.recipe.words import SYNONYMS

    words = words if recipe is None else [recipe, *words]
    _require_known(words, options.get("method"), known)
    recipe, words = separated(words)
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


def _require_known(words: Sequence[str], method: str | None, options: Sequence[str]) -> None:
    """Raise UsageError for a word such as --modle that is neither an option nor a key of a recipe.

    Keys with a point are left to the recipe, which knows them with their section.
    """
    from graft.recipe import Recipe
    from graft.recipe.words import SYNONYMS

    for word in words:
        name = _key(word.partition("=")[0][2:])
        if not word.startswith("--") or "." in name or name in {*Recipe.model_fields, *SYNONYMS, "stages"}:
            continue
        option = word.partition("=")[0]
        raise UsageError(
            f"unknown option {option}",
            "an option, or --key value with a key of a recipe",
            did_you_mean(_meant(name, method, options), "`graft train --keys` lists the keys"),
        )


def _meant(name: str, method: str | None, options: Sequence[str]) -> list[str]:
    """Return the options or keys that a word is like: those that end with it, else the most similar one."""
    from graft.recipe import explain
    from graft.recipe.methods import method_help
    from graft.recipe.words import SYNONYMS

    ours, of_method = list(explain()), list(method_help({"name": method or "lora"}))
    for keys in (ours, of_method):
        if same := [f"--{key}" for key in keys if key.rpartition(".")[2] == name]:
            return same
    written = {option.lstrip("-"): option for option in options}
    leaves = {key.rpartition(".")[2]: f"--{key}" for key in [*of_method, *ours]}
    leaves |= {word: f"--{word}" for word in SYNONYMS}
    alike = close_to(name, [*written, *leaves], likeness=ALIKE)
    return [{**leaves, **written}[found] for found in alike]


def separated(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the recipe among the words, None if there is none, and all changes as key=value.

    A change is written as `--key value`, `--key=value` or `key=value`, and `--key` alone sets it to true; the
    first word that is none of these names the recipe.
    """
    left, changes, others = list(words), list[str](), list[str]()
    while left:
        word = left.pop(0)
        key, equals, value = word[2:].partition("=")
        if not word.startswith("--"):
            (changes if "=" in word else others).append(word)
        elif equals:
            changes.append(f"{_key(key)}={value}")
        elif not left or left[0].startswith("--"):
            changes.append(f"{_key(key)}=true")
        else:
            changes.append(f"{_key(key)}={left.pop(0)}")
    return (others[0] if others else None), changes + others[1:]


def _key(written: str) -> str:
    """Return the key that an option names: `--max-steps` is max_steps, as options are often written.

    The names of stages, which come first in a longer key, may have hyphens of their own.
    """
    first, point, rest = written.partition(".")
    return f"{first}.{rest.replace('-', '_')}" if point else written.replace("-", "_")


def _stem(options: dict[str, str | None]) -> str:
    """Return a run's name, made of its data and its method."""
    data = Path(options.get("data.train") or "data").name.partition(".")[0].replace("seedling:", "")
    return f"{data}-{options.get('method') or 'lora'}"
