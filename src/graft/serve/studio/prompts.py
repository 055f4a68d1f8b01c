"""Prompts for the arena: what the held-out rows of the runs in the studio's folder ask."""

import threading
import warnings
from pathlib import Path

from graft.errors import GraftError, Notice
from graft.recipe import read
from graft.runs.records import runs_below
from graft.runs.score import chosen_rows
from graft.serve.studio.votes import Prompt, as_text
from graft.stages.stage import stage_of

MOST = 200  # prompts of one run
RUNS = 50  # whose rows are read: the latest
_known: dict[tuple[Path, float], list[Prompt]] = {}
_turn = threading.Lock()


def held_out_prompts(home: Path) -> list[tuple[str, Prompt]]:
    """Return (run, prompt) of the rows that runs held out, each prompt once.

    Runs whose rows are gone, damaged or ask nothing are passed over. A run's rows are read once.
    """
    with _turn, warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # the runs told them
        found: dict[str, tuple[str, Prompt]] = {}
        for folder, time in _latest(home):
            if (folder, time) not in _known:
                _known[folder, time] = _asked(folder)
            for prompt in _known[folder, time]:
                found.setdefault(as_text(prompt), (str(folder.relative_to(home)), prompt))
        return list(found.values())


def _latest(home: Path) -> list[tuple[Path, float]]:
    dated = []
    for folder in runs_below(home) if home.is_dir() else ():
        recipe = folder / "recipe.yaml"
        if recipe.is_file():
            dated.append((folder, recipe.stat().st_mtime))
    return sorted(dated, key=lambda one: -one[1])[:RUNS]


def _asked(folder: Path) -> list[Prompt]:
    try:
        recipe = read(folder)
        asked = stage_of(recipe).questions(chosen_rows(recipe).rows)
    except (GraftError, OSError):
        return []
    return [prompt for prompt in asked if isinstance(prompt, str | list)][:MOST]
