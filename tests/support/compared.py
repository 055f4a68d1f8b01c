"""Recipes of runs on rows that compare answers, for the tests of their stages."""

from pathlib import Path
from typing import Any


def recipe(home: Path, output: Path, stage: Any, rows: str, lr: float, **changes: Any) -> dict[str, Any]:
    """Return a recipe of three short epochs on home/ROWS.jsonl.  changes: of its keys, groups are merged."""
    settings: dict[str, Any] = {
        "model": str(home / "model"),
        "dtype": "fp32",
        "stage": stage,
        "method": {"name": "lora", "r": 4, "target_modules": "all-linear"},
        "data": {"train": str(home / f"{rows}.jsonl"), "eval": 0.25, "max_length": 64},
        "train": {
            "epochs": 3, "batch_size": 8, "micro_batch_size": 4, "lr": lr, "save_every": 2, "warmup": 0.0,
        },
        "output": str(output),
    }  # fmt: skip
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    return settings
