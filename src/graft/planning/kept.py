"""Keep what a plan is reckoned from, so that the same question is answered again without torch.

    key = SHA-256 of: settings that matter, files of the model, processor and measured speeds, Graft itself

Tracing a run takes torch and transformers, whose import alone costs seconds. What is kept are facts, not the
verdict: the memory that is free now is asked now. Anything unreadable counts as absent, and a cache that
cannot be written is no error.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import graft
from graft import storage
from graft.errors import notice
from graft.planning.costs import Facts, facts_of
from graft.planning.estimate import Plan, Room, estimate
from graft.planning.machine import main_memory, resident
from graft.planning.seconds import Rates
from graft.recipe import Recipe
from graft.sizes import MIB

FORMAT = 1
MOST = 200  # files; the oldest go
FRESH = 512 * MIB  # a process that has done nothing before its run has no more
TRAIN = (
    "epochs", "max_steps", "batch_size", "micro_batch_size", "optimizer", "paged_budget_mb",
    "gradient_checkpointing", "dropout", "compile",
)  # fmt: skip
ENVIRONMENT = ("GRAFT_DTYPE", "GRAFT_KERNELS", "GRAFT_KERNELS_LIBRARY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGES = ("torch", "transformers", "tokenizers")
GPUS = ("/dev/nvidia0", "/dev/kfd")


@dataclass(frozen=True)
class Kept:
    """What is known of a run.

    dtype: the one that the plan came to, why: in words.  free: another one may be better in less memory.
    facts: by number format and whether activations are computed again, "bf16" and "bf16 again".
    process: bytes of the process.  may_recompute: checkpointing is auto.  told: notices.
    """

    dtype: str
    why: str
    free: bool
    process: int
    may_recompute: bool
    facts: dict[str, Facts] = field(default_factory=dict)
    rates: dict[str, Rates] = field(default_factory=dict)
    told: Sequence[str] = ()


def kept_plan(recipe: Recipe) -> Plan | None:
    """Return the plan of a recipe whose facts are kept; None if it has to be traced. No torch is imported."""
    kept = load(recipe)
    if kept is None:
        return None
    here = resident()
    process = min(kept.process, FRESH)  # facts may come from a process that had loaded other things
    planned = again(kept, Room(main_memory(here) - here + process, "cpu", process))
    if planned is not None:
        for text in kept.told:
            notice(text)
    return planned


def again(kept: Kept, room: Room) -> Plan | None:
    """Return the plan in this room; None if it depends on facts that are not kept."""
    facts = kept.facts[kept.dtype]
    planned = estimate(facts, room, kept.rates.get(kept.dtype))
    if not planned.fits and kept.free:
        return None
    if not planned.fits and kept.may_recompute:
        facts_again = kept.facts.get(recomputed(kept.dtype))
        if facts_again is None:
            return None
        planned = estimate(facts_again, room, kept.rates.get(kept.dtype))
    return named(planned, kept.dtype, kept.why)


def recomputed(dtype: str) -> str:
    """Return the name of the facts in a number format with checkpointing."""
    return f"{dtype} again"


def named(planned: Plan, dtype: str, why: str) -> Plan:
    """Return a plan that says its number format."""
    return Plan(**{**vars(planned), "dtype": dtype, "why": why})


def load(recipe: Recipe) -> Kept | None:
    """Return what is kept of a recipe; None if there is nothing that can be read."""
    path = _path(recipe)
    if path is None:
        return None
    try:
        read = storage.read_json(path)
        facts = {word: facts_of(values) for word, values in read["facts"].items()}
        rates = {word: Rates(**values) for word, values in read["rates"].items()}
        return Kept(**{**read, "facts": facts, "rates": rates})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save(recipe: Recipe, kept: Kept) -> None:
    """Keep what is known of a recipe, unless its model is no folder on this disk."""
    path = _path(recipe)
    if path is None:
        return
    with contextlib.suppress(OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(path, asdict(kept))
        files = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in files[:-MOST]:
            old.unlink(missing_ok=True)


def folder() -> Path:
    """Return the folder of all that is kept: in GRAFT_CACHE if that is set, else in the user's cache."""
    return _home() / "plans"


def _home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GRAFT_CACHE") or Path(home) / "graft")


def _path(recipe: Recipe) -> Path | None:
    """Return the file of a recipe; None for a model of the hub, and on a machine with a GPU."""
    model = recipe.model
    if isinstance(model, str) and model != "seedling" and not Path(model).expanduser().is_dir():
        return None
    if any(Path(gpu).exists() for gpu in GPUS):
        return None
    try:
        key = hashlib.sha256(storage.encode(_depends(recipe))).hexdigest()
        return folder() / f"{key[:32]}.json"
    except (OSError, RuntimeError):
        return None


def _depends(recipe: Recipe) -> dict[str, Any]:
    """Return everything that facts depend on, as far as it can be known without reading weights."""
    settings = recipe.model_dump(mode="json")
    del settings["output"]  # what a run writes changes no plan
    named = [name for name in _texts(settings) if name != "seedling"]
    return {
        "format": FORMAT,
        "settings": {key: value for key, value in settings.items() if key != "train"},
        "train": {key: settings["train"][key] for key in TRAIN},
        "files": {name: found for name in named if (found := _stamps(name))},
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "cores": os.cpu_count(),
        "processor": _processor(),
        "speeds": _stamps(str(_home() / "machine")),
        "packages": {name: _version(name) for name in PACKAGES},
        "graft": [graft.__version__, _source()],
    }


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in settings: any of them may name a file or a folder."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (*_texts(key), *_texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _stamps(name: str) -> list[Any]:
    """Return name, size and time of change of a file, or of the files of a folder; none if there is none."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = Path(name[:2] + name[2:].partition(":")[0]).expanduser()  # "C:" begins a path of Windows
        if path.is_file():
            return [[path.name, path.stat().st_size, path.stat().st_mtime_ns]]
        if name and path.is_dir():
            files = sorted(file for file in (*path.glob("*"), *path.glob("adapter/*")) if file.is_file())
            return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return []


def _processor() -> str:
    """Return a hash of the processor's name and instructions, "" where the system does not tell them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return ""
    told = [line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _source() -> str:
    """Return a hash of Graft's own files by size and time of change."""
    root = Path(graft.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".1"))
    facts = [[str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
