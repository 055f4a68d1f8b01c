"""Reward modelling: a head on the state of an answer's last token tells how good the answer is.

All pairs of answers to one prompt are compared in one forward. The adapter is saved with its head as `score`,
as PEFT and TRL save theirs: `AutoModelForSequenceClassification` with one label reads it. The formulas are in
`graft.objectives.reward`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.core.method import Method
from graft.data.encode import Example
from graft.data.feed import Feed
from graft.data.rows import compared
from graft.errors import UsageError, notice
from graft.methods.task_head import TaskHead
from graft.objectives.lm import Loss
from graft.objectives.reward import (
    answer_rewards,
    bradley_terry,
    calibration,
    calibration_error,
    centring,
    length_bias,
    reward_sums,
)
from graft.stages.comparing import Comparing
from graft.stages.stage import Points, Start

HEAD = TaskHead(num_labels=1, pool="last", init="unit")


@dataclass(frozen=True)
class Reward(Comparing):
    # by how much reward a better answer has to win for each unit by which its score is higher; 0: scores, and
    # a column of margins, only tell which answer is better
    margin: float = 0.0
    centring: float = 0.01  # weight of (r_chosen + r_rejected)², which keeps rewards near 0; 0: off

    layouts: ClassVar = ("preference", "ranking")
    metrics: ClassVar = ("loss", "accuracy", "margin", "calibration", "length_bias")
    headed: ClassVar = True
    counts: ClassVar = "rows"

    def __post_init__(self) -> None:
        for key in ("margin", "centring"):
            if getattr(self, key) < 0:
                given = f"stage.{key}={getattr(self, key)}"
                raise UsageError(given, "a number of 0 or more", "see `graft train --keys`")

    # The head

    def methods(self, methods: Sequence[Method], labels: Sequence[str], *, tagged: bool) -> list[Method]:
        if other := next((m for m in methods if m.classifies() and not m.is_head()), None):
            raise UsageError(
                f"method {other.name()} brings a head of its own",
                "a method without a head, or with task_head",
                "choose another method: stage reward adds a head with one output",
            )
        own = [replace(HEAD, lr=method.lr) if method.is_head() else method for method in methods]
        return own if any(method.is_head() for method in own) else [*own, HEAD]

    def fit(self, adapter: Adapter, labels: Sequence[str], *, tagged: bool) -> None:
        head = adapter.head
        if head is None or head.num_labels != 1 or head.every_token:
            found = "no task head" if head is None else f"a head of {head.num_labels} classes"
            raise UsageError(
                f"the adapter {adapter.name} has {found}",
                "a task head with one output for each answer",
                "attach it with graft.TaskHead(num_labels=1, pool='last', init='unit')",
            )

    def before_training(
        self, base: Base, start: Start, feeds: Mapping[str, Feed], folder: Path, identity: Mapping[str, Any]
    ) -> Mapping[str, Feed]:
        if not self.margin and any(example.parts.get("scores") for example in feeds["train"].examples):
            notice(
                "scores and margins of the rows only tell which answer is better; with stage.margin=1 "
                "a reward must be higher by as much as the score is"
            )
        return feeds

    # Loss and scores

    def loss(self, base: Any, batch: Any) -> Loss:
        rewards = answer_rewards(base, batch)
        better, worse = batch.pairs()
        chosen, rejected = rewards[better], rewards[worse]
        margin = self.margin * score_margin(batch, better, worse)
        pairs = bradley_terry(chosen, rejected, margin) + self.centring * centring(chosen, rejected)
        return pairs.sum(), reward_sums(rewards, batch.lengths(), better, worse)

    def progress(self, sums: Mapping[str, Any]) -> dict[str, float]:
        names = ("margin", "reward_chosen", "reward_rejected")
        means = {name: sums[name] / sums["tokens"] for name in names}
        return {"accuracy": sums["correct"] / sums["tokens"], **means}

    def scores(self, loss: float, sums: dict[str, Any]) -> dict[str, float]:
        error = calibration_error(sums["calibration"])
        more = {"calibration": error, "length_bias": length_bias(sums), "tokens": sums["tokens"]}
        return {"loss": loss, **self.progress(sums), **more}

    def curves(self, sums: dict[str, Any]) -> dict[str, Points]:
        return {"calibration": calibration(sums["calibration"])}

    def baseline(self, feed: Feed) -> tuple[str, dict[str, float]] | None:
        """Return the accuracy of always choosing the longer answer, or the shorter: what has to be beaten."""
        points = [point for example in feed.examples for point in _longer_wins(example)]
        longer = sum(points) / len(points)
        title = "the longer one" if longer >= 0.5 else "the shorter one"
        return title, {"accuracy": max(longer, 1 - longer)}


def score_margin(batch: Any, better: Any, worse: Any) -> Any:
    """Return by how much the better answer's score is higher, for every pair; 0 where there are no scores."""
    if batch.scores is None:
        return 0.0
    return (batch.scores[better] - batch.scores[worse]).nan_to_num(0.0)


def _longer_wins(example: Example) -> list[float]:
    """Return for every pair of a ranking 1 if the better answer is longer, ½ if both are as long, or 0."""
    ends = example.parts["ends"]
    lengths = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    scores = example.parts.get("scores") or None
    signs = [(lengths[a] > lengths[b]) - (lengths[a] < lengths[b]) for a, b in compared(scores, len(lengths))]
    return [(1 + sign) / 2 for sign in signs]
