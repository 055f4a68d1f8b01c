"""What a run leaves: one file that says where, when and with what it was measured."""

import json
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "graftlm")


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "packages": {name: version(name) for name in PACKAGES},
        "date": date.today().isoformat(),
    }  # fmt: skip


def write(path: Path, facts: dict[str, Any]) -> None:
    """A result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
