"""What the values of a form mean: they are the words of a command line, `train.lr` and `1e-4`.

The reader of recipes reads them, and what is wrong is told by its sentences, each at its field.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.core.cards import REQUIRED, cards
from graft.core.presets import PRESETS, presets_of, spelt
from graft.errors import GraftError
from graft.recipe import Recipe, checked, explain
from graft.recipe.methods import method_help
from graft.recipe.stages import stage_cards

TEXTS = ("model", "data.train", "data.test", "data.template", "adapter")  # of which every letter counts
OF_FUNCTIONS = ("objective", "rewards", "judge", "metrics")  # keys whose values may be FILE.py:FUNCTION
KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){0,3}")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
# YAML can say a thing again by its name: a few words would then become gigabytes.
NAMED = re.compile(r"(^|[\s\[{,:])[&*]\S")


@dataclass
class Understood:
    """What a form means.

    recipe: None if something is wrong.  problems: by dotted key, "" for the form.  words: of a command line.
    """

    recipe: Recipe | None
    problems: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def understood(values: Mapping[str, str], output: Path) -> Understood:
    """Return what a form means.  values: by dotted key, empty ones left out.  output: the run's folder."""
    given = {key: text.strip() for key, text in values.items() if text.strip()}
    problems = {key: problem for key, text in given.items() if (problem := _unreadable(key, text))}
    words = [f"{key}={json.dumps(text) if key in TEXTS else text}" for key, text in given.items()]
    typed = [*(f"{key}={text}" for key, text in given.items()), f"output={output}"]
    notices: list[str] = []
    found = None
    if not problems:
        try:
            found, wrong = checked({}, words, notices, {"output": str(output)})
        except GraftError as error:
            wrong = {"": str(error)}
        except (ValueError, RecursionError) as error:
            wrong = {"": f"the values cannot be read: {str(error)[:200]}"}
        problems = _sentences(wrong, _method(given))
    if found is not None:
        problems = _missing_rows(found) | _functions(found.model_dump())
    return Understood(None if problems else found, problems, notices, typed)


def offered() -> dict[str, Any]:
    """Return what a form offers: methods with settings and presets, stages, keys with help and default."""
    usual = _usual("lora")
    methods = [
        {
            "name": card.name,
            "title": card.title,
            "settings": [
                {"name": s.name, "type": s.words, "help": s.help, "usual": _plain(s.default)}
                for s in card.settings.values()
            ],
            "presets": {name: str(preset) for name, preset in presets_of(card.name).items()},
        }
        for card in cards().values()
    ]
    return {
        "methods": methods,
        "stages": [{"name": card.name, "title": card.title} for card in stage_cards().values()],
        "keys": {key: {"help": help, "usual": usual.get(key)} for key, help in explain().items()},
    }


def _unreadable(key: str, text: str) -> str:
    """Return why a value is not even read; "" where it is."""
    if not KEY.fullmatch(key) or key == "output":
        return f"{key[:80]!r} is no key of this form. Expected: one such as train.lr. To do: leave it out."
    if not text.isprintable() and CONTROL.search(text):
        return f"{key} has letters that no file can hold. Expected: plain text. To do: type it again."
    if key not in TEXTS and NAMED.search(text):
        return f"{key} has & or *, marks of YAML. Expected: a plain value. To do: write it out."
    return ""


def _missing_rows(recipe: Recipe) -> dict[str, str]:
    """Return what is wrong with the files of rows that a recipe names."""
    if not recipe.data.train:
        said = "no rows are named. Expected: a file, a folder or seedling:NAME. To do: choose some."
        return {"data.train": said}
    data = recipe.data
    train = [data.train] if isinstance(data.train, str) else data.train or []
    others = [("data.eval", data.eval), ("data.test", data.test)]
    named = [("data.train", name) for name in train] + [(k, v) for k, v in others if isinstance(v, str)]
    wrong = {}
    for key, name in named:
        if not name.startswith("seedling:") and not _there(name):
            todo = "To do: check the path, or upload the file."
            wrong[key] = f"there is no file {name[:200]}. Expected: rows on this machine. {todo}"
    return wrong


def _functions(values: Mapping[str, Any], inside: str = "") -> dict[str, str]:
    """Return which keys name functions of somebody's own: a page must not be a way to run programs."""
    wrong: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in OF_FUNCTIONS:
            wrong |= _functions(value, f"{inside}{key}.")
        elif key in OF_FUNCTIONS and ":" in json.dumps(list(value) if isinstance(value, Mapping) else value):
            todo = "To do: start this run on the command line, graft train."
            said = "names a function of your own. Expected: what Graft has."
            wrong[f"{inside}{key}"] = f"{inside}{key} {said} {todo}"
    return wrong


def _there(name: str) -> bool:
    """Return whether rows of this name may be there: a file, a folder, or a name of the hub."""
    try:
        path = Path(name).expanduser()
        return path.exists() or (name.count("/") == 1 and not path.suffix and not name.startswith("."))
    except (OSError, ValueError, RuntimeError):
        return False


def _method(given: Mapping[str, str]) -> str:
    """Return the method that a form is about; of a preset, the one that it stands for."""
    name = given.get("method.name") or given.get("method") or "lora"
    preset = PRESETS.get(spelt(name))
    return str(preset.methods[0]["name"]) if preset is not None else name


def _sentences(wrong: Mapping[str, str], method: str) -> dict[str, str]:
    """Return what is wrong by field, in three parts: what was given, what was expected, what to do."""
    help, usual = explain() | method_help({"name": method}), _usual(method)
    told = {}
    for key, problem in wrong.items():
        remedy = f"leave it empty: {json.dumps(usual[key])} is usual" if key in usual else "correct it"
        expected = help.get(key) or "a known key with a value of its kind"
        told[key] = f"{key} {problem}. Expected: {expected}. To do: {remedy}." if key else problem
    return told


def _usual(method: str) -> dict[str, Any]:
    """Return the default of every key, with those of a method."""
    defaults = Recipe().model_dump()
    flat = {key: value for key, value in defaults.items() if not isinstance(value, dict)}
    for section in ("data", "train", "evaluate"):
        flat |= {f"{section}.{key}": value for key, value in defaults[section].items()}
    card = cards().get(method)
    for setting in card.settings.values() if card is not None else ():
        if setting.default is not REQUIRED:
            flat[f"method.{setting.name}"] = _plain(setting.default)
    return flat


def _plain(value: Any) -> Any:
    """Return a default as JSON has it; None for a setting without one."""
    if value is REQUIRED:
        return None
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
