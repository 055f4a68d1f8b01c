"""Rows that only ask, rewards that a program gives, and recipes of online stages on them, for tests."""

from pathlib import Path
from typing import Any

from tiny_folder import ANIMALS, write_model, write_rows

REWARDS = """
def letters(completions, **columns):
    return [min(text.count("a"), 5) / 5 for text in completions]

def short(completions, wish, **columns):
    return [-len(text) / 50 if wish == "short" else None for text, wish in zip(completions, wish)]

def same(completions, **columns):
    return [1.0 for _ in completions]
"""


def prompts(count: int = 24) -> list[dict[str, Any]]:
    """Return questions, each with a column that a reward reads."""
    return [
        {"prompt": f"Day {i}. What does the {ANIMALS[i % 4]} want? ", "wish": ("short", "any")[i % 2]}
        for i in range(count)
    ]


def write_home(folder: Path) -> Path:
    """Write a tiny model, prompts and rewards into a folder; return it."""
    write_model(folder / "model")
    write_rows(folder / "prompts.jsonl", prompts())
    (folder / "rewards.py").write_text(REWARDS)
    return folder


def recipe(home: Path, output: Path, stage: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a recipe of an online stage.  stage: its name and settings.  changes: groups are merged."""
    settings: dict[str, Any] = {
        "model": str(home / "model"),
        "dtype": "fp32",
        "stage": {
            "rewards": f"{home}/rewards.py:letters", "prompts": 8, "max_new_tokens": 8, "missing_end": 0.0,
            **stage,
        },
        "method": {"name": "lora", "r": 4, "target_modules": "all-linear"},
        "data": {"train": str(home / "prompts.jsonl"), "eval": 0.25, "max_length": 48},
        "train": {
            "max_steps": 8, "batch_size": 4, "micro_batch_size": 2, "lr": 5e-3, "save_every": 2,
            "warmup": 0.0,
        },
        "output": str(output),
    }  # fmt: skip
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    return settings
