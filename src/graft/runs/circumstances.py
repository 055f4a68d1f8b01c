"""When, with what and where a run was trained, as `timing.jsonl` keeps it: a line at each start and each end.

That file only grows and is no part of what a repeated run must give again. Runs of an older Graft have no
such lines; then what is not known is left out.
"""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from graft.base.base import Base
from graft.recipe import Recipe
from graft.runs.report.curves import is_number
from graft.sizes import MIB
from graft.training.log import Journal

LIBRARIES = {"graft": "graftlm", "torch": "torch", "transformers": "transformers"}


def trained_on(base: Base, adapter: str, recipe: Recipe) -> dict[str, Any]:
    """Return what will be trained: base, its parameters and how they are stored, methods, sites, trained."""
    inserts = base.adapters[adapter]
    return {
        "base": base.name,
        "parameters": base.count(),
        "dtype": recipe.dtype,
        "stored": recipe.dtype if base.quant == "none" else base.quant,
        "methods": [method.name() for method in inserts.methods],
        "sites": len(inserts.inserts),
        "trained": inserts.count(),
    }


def note_start(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write down that training starts here and now.  facts: those of `trained_on`."""
    _add(folder, {"start": {"time": _now(), **facts, "versions": versions(), "machine": machine()}})


def note_end(folder: Path) -> None:
    """Write down that training has ended."""
    _add(folder, {"end": {"time": _now()}})


def versions() -> dict[str, str]:
    """Return the versions of what trains."""
    found = {"python": platform.python_version()}
    for name, distribution in LIBRARIES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:  # a checkout that is not installed
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what a machine is to those who compare speeds; nothing that tells whose it is."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        if name := next(names, ""):
            return name
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Circumstances:
    """What the lines of `timing.jsonl` tell of a run.

    starts: what each start wrote down.  last: when training ended, "" if it has not.
    seconds: of training, with evaluations and checkpoints where that is known.
    speed: mean tokens (or rows) per second.  peak: bytes.  warnings: each once.
    """

    starts: Sequence[Mapping[str, Any]] = ()
    last: str = ""
    seconds: float = 0.0
    speed: float = 0.0
    peak: float = 0.0
    warnings: Sequence[str] = field(default=())

    @property
    def newest(self) -> Mapping[str, Any]:
        """What the last start wrote down; empty for a run of an older Graft."""
        return self.starts[-1] if self.starts else {}


def circumstances(timing: Sequence[Mapping[str, Any]]) -> Circumstances:
    """Return what the lines of a run's `timing.jsonl` tell; lines that are damaged tell nothing."""
    starts: list[Mapping[str, Any]] = []
    last, whole, here, began = "", 0.0, 0.0, None
    for line in timing:
        if isinstance(start := line.get("start"), Mapping):
            starts.append(start)
            whole, here, began = whole + here, 0.0, _moment(start)  # of a start that was killed: its steps
        elif isinstance(end := line.get("end"), Mapping):
            last, ended = str(end.get("time", "")), _moment(end)
            known = began is not None and ended is not None and ended >= began
            whole += (ended - began).total_seconds() if known else here  # type: ignore[operator]
            here, began = 0.0, None
        elif is_number(line.get("seconds")):
            here += line["seconds"]
    steps = [
        line for line in timing if is_number(line.get("seconds")) and is_number(line.get("tokens_per_s"))
    ]
    spent = sum(line["seconds"] for line in steps)
    speed = sum(line["seconds"] * line["tokens_per_s"] for line in steps) / spent if spent else 0.0
    peak = max((line["peak_mb"] for line in timing if is_number(line.get("peak_mb"))), default=0.0)
    told = dict.fromkeys(str(line["warning"]) for line in timing if "warning" in line)
    return Circumstances(starts, last, whole + here, speed, peak * MIB, list(told))


def _add(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "timing.jsonl")
    journal.record(record)
    journal.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _moment(facts: Mapping[str, Any]) -> datetime | None:
    """Return the time in a line; None if it is damaged."""
    try:
        found = datetime.fromisoformat(str(facts.get("time")))
    except ValueError:
        return None
    return found if found.tzinfo else None
