"""A folder of runs as a studio has it: two short ones of the seedling."""

from pathlib import Path

import graft


def recipe(output: Path, **changes) -> dict:
    """Return the recipe of a run of twelve steps on the seedling's own rows."""
    return {
        "model": "seedling",
        "method": {"name": "lora", "r": 4},
        "data": {"train": "seedling:descriptions", "test": "seedling:descriptions-held-out"},
        "train": {"max_steps": 12, "eval_every": 4, "save_every": 6, "lr": 3e-3},
        "evaluate": {"metrics": ["perplexity"], "limit": 8},
        "output": str(output),
    } | changes


def write_runs(home: Path, **changes) -> None:
    """Train the runs `first` and `second` into a folder; the second one with another method."""
    graft.run(recipe(home / "first", **changes))
    graft.run(recipe(home / "second", **{"method": "ia3"} | changes))
