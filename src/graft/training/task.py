"""What the training loop is given, and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.objectives.sums import accuracy
from graft.training.step import Objective


@dataclass(frozen=True)
class Task:
    """The work of a run.

    feed: has `steps_per_epoch`, and `step(epoch, index) -> micro-batches`, a pure function; or Rollouts.
    objective: (base, batch) -> (loss summed over the supervised tokens, metrics).
    evaluate: step -> metrics; "loss" decides which step is best.
    sample: () -> answers to the sample prompts.
    identity: JSON values (settings, fingerprints of base and data) that must be equal on a resume.
    before_step: (base, micro-batches of a step) -> the same, with what only all of them together tell.
    progress: (metrics of the objective, added up over a step) -> what its line in metrics.jsonl says of them.
    beside: adapters that are trained with it, by the folder of the run in which they are saved.
    noise: whether dropout, noise on embeddings and other random choices of the adapters are on.
    """

    feed: Any
    objective: Objective
    evaluate: Callable[[int], Mapping[str, float]] | None = None
    sample: Callable[[], Sequence[str]] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    before_step: Callable[[Any, Sequence[Any]], Sequence[Any]] = lambda base, batches: batches
    progress: Callable[[Mapping[str, Any]], Mapping[str, float]] = accuracy
    beside: Mapping[str, str] = field(default_factory=dict)
    noise: bool = True


@dataclass(frozen=True)
class Result:
    """A finished run.

    loss: of the last step.  best: {"step", "loss"} of the best evaluation.  adapter: its folder.
    """

    steps: int
    loss: float | None
    tokens: int
    best: dict[str, Any] | None
    adapter: Path
