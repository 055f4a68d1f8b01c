"""Read what the folders of runs record: state, settings, scores. Loads no model, and needs no torch.

A folder that is damaged is no reason to fail: what cannot be read is named in `RunRecord.damage`.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft import storage
from graft.errors import CheckpointError, GraftError, UsageError
from graft.recipe import Recipe, read
from graft.recipe.chain import last_finished
from graft.recipe.stages import stage_cards
from graft.runs.result import SCORES
from graft.storage.lock import holder

MARKS = ("identity.json", "finished.json", SCORES)  # of a run's folder; a chain's folder has none of them
TAIL = 1 << 16  # bytes at the end of metrics.jsonl in which the last step stands
PATHS = {
    "path of the base": "model",
    "path of the training rows": "data.train",
    "path of the held-out rows": "data.eval",
    "path of the template": "data.template",
}


@dataclass(frozen=True)
class RunRecord:
    """What the folder of one run says of it.

    state: "finished", "running", "stopped" (which the same command continues) or "damaged".
    step, of: the last step that is recorded, and how many there will be; None where nobody knows.
    loss: of the last step.  before, after: scores without and with what was trained.
    rows: fingerprint of the held-out rows behind the scores, "" without.  scored: how many they are.
    settings: those that decide the steps, by dotted key; `method` and `stage` are names.
    identity: all that must be equal at every start of the run, also fingerprints of base and rows.
    changed: when something was last recorded, in seconds since 1970.  holder: the process that works on it.
    damage: what cannot be read, a sentence each.
    """

    folder: Path
    state: str
    step: int | None = None
    of: int | None = None
    loss: float | None = None
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    rows: str = ""
    scored: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    changed: float = 0.0
    size_bytes: int = 0
    holder: str | None = None
    damage: tuple[str, ...] = ()

    @property
    def main(self) -> str | None:
        """The name of the metric that the recipe names first; None without scores."""
        wanted = self.recipe.evaluate.metrics if self.recipe is not None else ()
        return next((name for name in (*wanted, *self.after) if name in self.after), None)


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, begun or finished."""
    if any((folder / mark).is_file() for mark in MARKS):
        return True
    return (folder / "recipe.yaml").is_file() and (folder / "checkpoints").is_dir()


def runs_below(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs in a folder, however deep, and the folder itself if it is one.

    Raises UsageError if there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}",
            "a folder with runs in it",
            "check the path; the usual one is runs",
        )
    for place, inner, _ in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if is_run(Path(place)):
            inner.clear()
            yield Path(place)


def several(name: str) -> list[str]:
    """Return the runs in a folder that is none itself, as a sweep's; else the name alone.

    A folder of several stages is one run: its last stage.
    """
    folder = Path(name)
    known = ("recipe.yaml", "config.json", "adapter_config.json")
    if not folder.is_dir() or is_run(folder) or any((folder / file).exists() for file in known):
        return [name]
    return [str(run) for run in runs_below(folder)] or [name]


def record_of(name: str | Path) -> RunRecord | None:
    """Return the record of a run; None for anything else, such as a model."""
    try:
        folder = Path(last_finished(str(name)))
    except UsageError:  # a damaged recipe, or stages of which none has finished
        folder = Path(name)
    return read_run(folder) if is_run(folder) else None


def read_run(folder: Path) -> RunRecord:
    """Return the record of a run's folder."""
    damage: list[str] = []
    recipe = _recipe(folder, damage)
    identity = _sealed(folder / "identity.json", damage)
    finished = _sealed(folder / "finished.json", damage)
    evaluation = _sealed(folder / SCORES, damage)
    step, loss = _last_step(folder / "metrics.jsonl")
    done = "steps" in finished and (folder / "adapter").is_dir()
    if done:
        step, loss = finished["steps"], finished.get("loss")
    by = holder(folder)
    columns = [*evaluation.get("columns", {}).values()] if _is_table(evaluation.get("columns")) else []
    found: Any = evaluation.get("coverage")
    coverage: dict[str, Any] = found if isinstance(found, dict) else {}
    state = "running" if by else "damaged" if damage else "finished" if done else "stopped"
    return RunRecord(
        folder,
        state,
        step,
        step if done else _total(folder, recipe),
        loss,
        columns[0] if len(columns) > 1 else {},
        columns[-1] if columns else {},
        str(coverage.get("fingerprint") or ""),
        coverage.get("scored"),
        _settings(identity, recipe),
        identity,
        recipe,
        _changed(folder),
        _size(folder),
        by,
        tuple(damage),
    )


def _recipe(folder: Path, damage: list[str]) -> Recipe | None:
    """Return the recipe of a run; None if it cannot be read."""
    if not (folder / "recipe.yaml").exists():
        damage.append("recipe.yaml is missing")
        return None
    try:
        if not (folder / "recipe.yaml").read_bytes().strip():  # which would be read as all defaults
            damage.append("recipe.yaml is empty")
            return None
        return read(folder)
    except OSError as error:
        damage.append(f"recipe.yaml cannot be read: {error.strerror}")
        return None
    except GraftError as error:
        damage.append(f"recipe.yaml cannot be read: {error.given.splitlines()[0]}")
        return None


def _sealed(path: Path, damage: list[str]) -> dict[str, Any]:
    """Return the values of a record; none if it is missing or damaged."""
    try:
        found = storage.read_record(path)
    except (CheckpointError, OSError):
        damage.append(f"{path.name} is damaged")
        return {}
    return found if isinstance(found, dict) else {}


def _is_table(columns: Any) -> bool:
    """Return whether a value is a table of scores: {column: {metric: number}}."""
    return isinstance(columns, dict) and all(
        isinstance(column, dict) and all(isinstance(value, int | float) for value in column.values())
        for column in columns.values()
    )


def _last_step(path: Path) -> tuple[int | None, float | None]:
    """Return the last step that a file of metrics records, and the last loss."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None, None
    step = loss = None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the first line of the tail may be cut, and a line be damaged
            continue
        if not isinstance(record, dict):
            continue
        if step is None and isinstance(record.get("step"), int):
            step = record["step"]
        if isinstance(record.get("loss"), int | float):
            loss = float(record["loss"])
            break
    return step, loss


def _total(folder: Path, recipe: Recipe | None) -> int | None:
    """Return how many steps a run will take; None if its folder does not tell."""
    if recipe is None:
        return None
    if recipe.train.max_steps:
        return recipe.train.max_steps
    card = stage_cards().get(recipe.stage_name)
    if card is None or "prompt" in card.layouts:  # it writes the answers that it learns from, in rounds
        return None
    try:
        examples = storage.read_json(folder / "data_report.json")["examples"]
        return math.ceil(recipe.train.epochs * -(-examples // recipe.train.batch_size))
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def _changed(folder: Path) -> float:
    """Return when a run last recorded something."""
    times = [0.0]
    for name in ("finished.json", "metrics.jsonl", "identity.json", "recipe.yaml"):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def _size(folder: Path) -> int:
    """Return the bytes of all files in a folder; one that goes away meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _settings(identity: Mapping[str, Any], recipe: Recipe | None) -> dict[str, Any]:
    """Return the settings that decide a run's steps; without its identity, those of its recipe."""
    known = {PATHS.get(key, key): value for key, value in identity.items()}
    if "method" not in known and recipe is not None:
        known = _by_key(recipe.model_dump(exclude={"evaluate", "output"}))
    flat: dict[str, Any] = {}
    for key, value in known.items():
        if " " in key:  # a fingerprint
            continue
        named = key in ("method", "stage") and isinstance(value, dict)
        flat |= {key: value.get("name")} if named else {key: value}
        if named:
            flat |= {f"{key}.{inner}": setting for inner, setting in value.items() if inner != "name"}
    if "stage.name" in flat:
        flat["stage"] = flat.pop("stage.name")
    return flat


def _by_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe by dotted key; `method` and `stage` stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        grouped = key in ("data", "train")
        flat |= {f"{key}.{inner}": setting for inner, setting in value.items()} if grouped else {key: value}
    return flat
