"""The result of a finished run, as its folder records it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft import storage
from graft.errors import CheckpointError, notice
from graft.recipe import Recipe

SCORES = "evaluation.json"


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    folder, adapter: its folder and the adapter's.  loss: of the last step.
    tokens: supervised ones, of all steps.
    scores: {"before": {metric: value}, "after": ...}.  coverage: which rows they are about, and how many.
    model: the folder of a model that started from random weights.
    notes: what the observer was told by `note`.  trained: False if the run had ended before.
    earlier: results of the stages before it, of a recipe with several.
    """

    folder: Path
    adapter: Path
    steps: int
    loss: float | None
    tokens: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    model: Path | None = None
    coverage: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list, compare=False)
    trained: bool = field(default=True, compare=False)
    earlier: tuple["RunResult", ...] = field(default=(), compare=False)

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        paths = {
            "folder": str(self.folder),
            "adapter": str(self.adapter),
            "model": str(self.model) if self.model else None,
        }
        counts = {"steps": self.steps, "trained": self.trained, "loss": self.loss, "tokens": self.tokens}
        rows = {"scores": self.scores, "coverage": self.coverage}
        return {**paths, **counts, **rows, "notes": self.notes}


def result_of(folder: Path, recipe: Recipe) -> RunResult:
    """Return the result that a finished run's folder records."""
    finished = storage.read_record(folder / "finished.json") or {}
    evaluation = recorded_scores(folder)
    return RunResult(
        folder=folder,
        adapter=folder / "adapter",
        steps=finished["steps"],
        loss=finished["loss"],
        tokens=finished["tokens"],
        scores=evaluation["columns"],
        coverage=evaluation["coverage"],
        model=folder / "model" if recipe.fresh else None,
    )


def has_finished(folder: Path) -> bool:
    """Return whether a run's folder holds an adapter, and a sound record that training has ended."""
    try:
        finished = storage.read_record(folder / "finished.json") is not None
    except CheckpointError:  # the training loop tells of it
        finished = False
    return finished and (folder / "adapter").exists()


def recorded_scores(folder: Path) -> dict[str, Any]:
    """Return what a run's folder records of its scores; empty if it records nothing, or is damaged."""
    try:
        return storage.read_record(folder / SCORES) or {}
    except CheckpointError as error:
        notice(f"{error.given}: its scores are not used; graft train {folder} makes it again")
        return {}
