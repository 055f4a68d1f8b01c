"""What faults are tried on: a tiny model with rows, small runs of it, and the commands that make them."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tiny_folder import rows, write_model, write_rows

PROMPT = "Day 1. What does the dog want? "
ONLINE = {"name": "grpo", "rewards": "victims:length_reward", "prompts": 4, "group": 2, "max_new_tokens": 4,
          "epochs": 1}  # fmt: skip
SFT: dict[str, Any] = {"stage": "sft"}
KINDS: dict[str, dict[str, Any]] = {
    "sft": {},
    "patience": {"train": {"patience": 2, "eval_every": 1}},
    "grpo": {"stage": ONLINE, "evaluate": {"metrics": []}},
}


def length_reward(completions: list[str], **more: Any) -> list[float]:
    """Pay long answers: a reward that costs nothing to compute."""
    return [float(len(answer)) for answer in completions]


def home(folder: Path) -> Path:
    """Write model/, rows.jsonl and others.jsonl into a folder, once; graft's cache lies in it, too."""
    if not (folder / "others.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder / "model")
        write_rows(folder / "rows.jsonl")
        write_rows(folder / "others.jsonl", rows(32)[24:])
    return folder


def environment(place: Path) -> dict[str, str]:
    """Return the environment of commands that work in a home."""
    return {"GRAFT_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def settings(place: Path, output: Path, kind: str = "sft", **more: Any) -> dict[str, Any]:
    """Return the recipe of a small run with its output.  more: its sections, laid over the usual ones."""
    usual = {
        "model": str(place / "model"), "dtype": "fp32", "method": {"name": "lora", "r": 2},
        "data": {"train": str(place / "rows.jsonl"), "eval": str(place / "others.jsonl")},
        "train": {"max_steps": 6, "batch_size": 4, "save_every": 2, "eval_every": 3, "keep": 1, "lr": 0.01,
                  "samples": [PROMPT], "sample_tokens": 2},
        "evaluate": {"limit": 2, "metrics": ["perplexity"]}, "output": str(output),
    }  # fmt: skip
    for layer in (KINDS[kind], more):
        for key, value in layer.items():
            merged = isinstance(value, dict) and isinstance(usual.get(key), dict)
            usual[key] = {**usual[key], **value} if merged else value
    return usual


def write_recipe(path: Path, recipe: Mapping[str, Any]) -> Path:
    """Write a recipe as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(recipe)))
    return path


def trained(folder: Path) -> dict[str, bytes]:
    """Return the files of a finished run that must be equal whatever happened on the way."""
    names = [
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "metrics.jsonl",
        "samples.md",
    ]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()} | {
        "finished.json": finished(folder)
    }


def finished(folder: Path) -> bytes:
    """Return what finished.json says of the run, sorted."""
    if not (folder / "finished.json").exists():
        return b""
    return json.dumps(json.loads((folder / "finished.json").read_bytes()), sort_keys=True).encode()


def differing(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> str:
    """Return the names of the files that differ, in words; "" if none does."""
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))


def copy(source: Path, target: Path) -> Path:
    """Copy a folder to a place where nothing may be left."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a folder by its path inside."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def litter(folder: Path) -> list[str]:
    """Return the temporary files and folders that are left in a folder."""
    return sorted(
        os.fspath(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.name.startswith((".tmp-", ".partial")) or ".partial-" in p.name
    )
