"""Names on a page as a stranger reads them: methods, bases, stages, folders without private paths, dates."""

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from graft.core.cards import cards
from graft.recipe import Recipe
from graft.recipe.stages import stage_cards

SIZES = ("r", "width", "num_virtual_tokens", "tokens", "length")  # settings that say how large an adapter is
STAGES = {
    "sft": "supervised fine-tuning",
    "pretrain": "pretraining",
    "classify": "classification",
    "reward": "training a reward model",
    "preference": "preference learning",
    "online_dpo": "online DPO",
    "best_of_n": "best of n",
}
FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^\s/:;,()'\"]+/)+|\b[A-Za-z]:\\(?:[^\s\\]+\\)+")
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def method_words(method: Mapping[str, Any]) -> str:
    """Return a method as its paper calls it, with its size: `LoRA (r 16)`."""
    known, name = cards(), str(method.get("name", ""))
    title = known[name].cls if name in known else name
    size = next((f"{key.replace('_', ' ')} {method[key]}" for key in SIZES if key in method), "")
    return f"{title} ({size})" if size else title


def methods_words(recipe: Recipe) -> str:
    """Return all methods of a recipe; of one that goes on from an adapter, that."""
    told = " + ".join(map(method_words, recipe.methods))
    return told or f"The adapter {private(recipe.adapter or '')}, trained further"


def base_words(recipe: Recipe) -> str:
    """Return the base as a page names it."""
    if isinstance(recipe.model, str):
        return private(recipe.model)
    return f"a new {recipe.model.config.get('model_type', '')} model of random weights"


def stage_words(recipe: Recipe) -> str:
    """Return what the rows were used for, with the recipe's own word where that is another."""
    name = recipe.stage_name
    title = STAGES.get(name, name.upper())
    several = len(stage_cards()[name].objectives) > 1 if name in stage_cards() else False
    return f"{title} ({recipe.objective if several else name})"


def data_words(recipe: Recipe) -> str:
    """Return where the training rows come from."""
    names = recipe.data.train
    listed = [private(name) for name in ([names] if isinstance(names, str) else names or [])]
    return ", ".join(listed) if len(listed) <= 3 else f"{len(listed)} files"


def private(name: str) -> str:
    """Return a name without the folders of somebody's machine.

    >>> private("/home/anna/rows.jsonl"), private("org/model"), private("data/rows.jsonl")
    ('rows.jsonl', 'org/model', 'data/rows.jsonl')
    """
    path = Path(name)
    return path.name if path.is_absolute() or name.startswith("~") else name


def without_paths(sentence: str) -> str:
    """Return a sentence whose absolute paths have lost their folders.

    >>> without_paths("2 rows cut, first /home/anna/rows.jsonl:3; and/or more")
    '2 rows cut, first rows.jsonl:3; and/or more'
    """
    return FOLDERS.sub("", sentence)


def place(folder: Path) -> str:
    """Return a folder as a command names it: from where we are, else its name alone."""
    if not folder.is_absolute():
        return str(folder)
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else folder.name


def date_words(text: object) -> str:
    """Return the time in a record; "" if it is damaged.

    >>> date_words("2026-11-30T06:11:08+00:00")
    '30 November 2026, 06:11 UTC'
    """
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return ""
    zone = " UTC" if moment.tzinfo and not moment.utcoffset() else ""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}, {moment:%H:%M}{zone}"
