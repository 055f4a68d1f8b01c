"""The result of a finished run, as its folder records it."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from graft import storage
from graft.core import html_card
from graft.errors import CheckpointError, notice
from graft.recipe import Recipe
from graft.runs.telling import in_words
from graft.sizes import duration
from graft.storage import read_lines

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
    about: what was trained, in words.  seconds: of all steps.  writes: whether one can chat with it.

    It shows itself: as lines, and in a notebook as a card with its scores and its loss.
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
    about: str = field(default="", compare=False)
    seconds: float = field(default=0.0, compare=False)
    writes: bool = field(default=True, compare=False)

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

    @property
    def next(self) -> str:
        """The command to go on with."""
        return f"graft {'chat' if self.writes else 'eval'} {self.folder}"

    def __repr__(self) -> str:
        named = self._told() | {"report": str(self.folder / "report.html"), "next": self.next}
        lines = [f"{name:<10}{text}" for name, text in named.items()]
        return "\n".join([f"RunResult {self.about}".rstrip(), *lines])

    def _repr_html_(self) -> str:
        told = {name: escape(text) for name, text in self._told().items() if name != "scores"}
        report = html_card.link(str(self.folder / "report.html"), "report.html")
        told |= {"report": report, "next": html_card.code(self.next)}
        parts = [html_card.spark(self._losses(), "loss"), html_card.facts(told)]
        if self.scores:
            names = dict.fromkeys(name for column in self.scores.values() for name in column)
            rows = [(name, *(shown(column.get(name)) for column in self.scores.values())) for name in names]
            parts.insert(0, html_card.table(rows, ("", *self.scores)))
        parts.append(html_card.lines([f"note: {text}" for text in self.notes]))
        return html_card.card(parts, self.about or self.folder.name)

    def _told(self) -> dict[str, str]:
        """Return the facts that both forms show."""
        names = dict.fromkeys(name for column in self.scores.values() for name in column)
        columns = self.scores.values()
        scores = [f"{name} {in_words([c[name] for c in columns if name in c])}" for name in names]
        counted = f"{self.steps:,}, {self.tokens:,} tokens learnt, {duration(self.seconds)}"
        return {
            "steps": counted + ("" if self.trained else " (had ended before)"),
            **({} if self.loss is None else {"loss": f"{self.loss:.4g}"}),
            **({"scores": "   ".join(scores)} if scores else {}),
            "adapter": str(self.adapter),
            **({"model": str(self.model)} if self.model else {}),
        }

    def _losses(self) -> list[float]:
        """Return the loss of every step, as far as the folder is still there."""
        records, _ = read_lines(self.folder / "metrics.jsonl")
        found = [record.get("loss") for record in records]
        return [float(loss) for loss in found if isinstance(loss, int | float)]


def shown(value: float | None) -> str:
    """Return a score with four digits."""
    return "-" if value is None else f"{value:.4g}"


def result_of(folder: Path, recipe: Recipe) -> RunResult:
    """Return the result that a finished run's folder records."""
    from graft.stages.stage import stage_of  # late: torch, which a table of runs does not need

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
        about=about(recipe),
        seconds=seconds(folder),
        writes=stage_of(recipe).writes,
    )


def about(recipe: Recipe) -> str:
    """Return what a run trains, in words.

    >>> about(Recipe(method={"name": "lora"}, quant="nf4"))
    'sft: lora on seedling in nf4'
    """
    methods = " + ".join(str(method["name"]) for method in recipe.methods)
    model = (
        recipe.model if isinstance(recipe.model, str) else str(recipe.model.config.get("model_type", "new"))
    )
    packed = f" in {recipe.quant}" if recipe.quant != "none" else ""
    return f"{recipe.stage_name}: {methods} on {model}{packed}"


def seconds(folder: Path) -> float:
    """Return the seconds of all steps of a run, with those that were taken again after a kill."""
    records, _ = read_lines(folder / "timing.jsonl")
    return sum(
        float(record["seconds"]) for record in records if isinstance(record.get("seconds"), int | float)
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
