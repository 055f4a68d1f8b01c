"""What a run's folder holds, read for its page: whatever is missing or damaged is named, and left out."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.errors import UsageError, notice
from graft.recipe import Recipe, read
from graft.runs.hear import kept_notes
from graft.runs.result import SCORES, recorded_scores
from graft.storage import read_lines

METRICS, TIMING, DATA, SETTINGS, END = (
    "metrics.jsonl",
    "timing.jsonl",
    "data_report.json",
    "recipe.yaml",
    "finished.json",
)


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run's folder.

    metrics, timing: the lines of the two files.  evaluation, data, finished: empty where there is none.
    recipe: None where it cannot be read; settings: its text.  absent: what is not there or not whole.
    """

    folder: Path
    metrics: Sequence[Mapping[str, Any]] = ()
    timing: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    finished: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    settings: str = ""
    samples: str = ""
    notes: Sequence[str] = ()
    absent: Sequence[str] = ()

    @property
    def columns(self) -> Mapping[str, Mapping[str, float]]:
        """The scores: {"before": {metric: value}, "after": ...}."""
        found = self.evaluation.get("columns")
        return found if isinstance(found, dict) else {}

    @property
    def coverage(self) -> Mapping[str, Any]:
        """Which rows the scores are about."""
        found = self.evaluation.get("coverage")
        return found if isinstance(found, dict) else {}

    @property
    def started(self) -> bool:
        """Whether the folder holds anything of a run."""
        return bool(self.metrics or self.settings)


def files_of(folder: Path) -> RunFiles:
    """Read a run's folder. Damage is told by a notice."""
    absent: list[str] = []
    metrics, timing = (_lines(folder / name, absent) for name in (METRICS, TIMING))
    data, finished = (_facts(folder / name, absent) for name in (DATA, END))
    if (evaluation := recorded_scores(folder)) == {}:
        absent.append(f"{SCORES} is {'damaged' if (folder / SCORES).exists() else 'missing'}")
    recipe, settings = None, _text(folder / SETTINGS)
    with contextlib.suppress(UsageError):  # missing, damaged, or with settings that this Graft does not know
        recipe = read(folder) if settings.strip() else None
    if recipe is None:
        absent.append(f"{SETTINGS} is {'not readable' if (folder / SETTINGS).exists() else 'missing'}")
    return RunFiles(
        folder=folder,
        metrics=metrics,
        timing=timing,
        evaluation=evaluation,
        data=data,
        finished=finished,
        recipe=recipe,
        settings=settings,
        samples=_text(folder / "samples.md"),
        notes=kept_notes(folder / "notes.json"),
        absent=absent,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _facts(path: Path, absent: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one, with a notice, if it is damaged."""
    if not path.is_file():
        absent.append(f"{path.name} is missing")
        return {}
    try:
        facts = json.loads(_text(path))
        if isinstance(facts, dict):
            return facts
    except (ValueError, RecursionError):
        pass
    notice(f"{path} is damaged: the report goes without it")
    absent.append(f"{path.name} is damaged")
    return {}


def _lines(path: Path, absent: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        absent.append(f"{path.name} is missing")
        return []
    records, bad = read_lines(path)
    if bad:
        notice(f"{bad:,} lines of {path} cannot be read: the report goes without them")
        absent.append(f"{bad:,} lines of {path.name} cannot be read")
    return records
