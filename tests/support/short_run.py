"""The recipe of a run of a few steps on a tiny model, for tests of what hears of runs."""

from pathlib import Path

from tiny_folder import write_model, write_rows


def write_home(home: Path) -> Path:
    """Write a tiny model and its rows into a folder, and return it."""
    write_model(home / "model")
    write_rows(home / "rows.jsonl")
    return home


def short_run(home: Path, output: Path, **train) -> dict:
    """Return the recipe of a run of four steps, with a checkpoint and an evaluation after two of them."""
    steps = {
        "max_steps": 4,
        "batch_size": 4,
        "micro_batch_size": 2,
        "lr": 1e-2,
        "save_every": 2,
        "eval_every": 2,
    }
    return {
        "model": str(home / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(home / "rows.jsonl"), "eval": 0.25, "max_length": 64},
        "train": {**steps, "samples": ["Day 1."], "sample_tokens": 4, **train},
        "output": str(output),
    }
