"""Perplexity, and what the same forwards give: loss per token, token accuracy, classes.

    PPL = exp( Σ NLL / Σ tokens )        over the whole corpus, never a mean of batches

Tokens are those that the stage supervises: for causal models every token but a row's first, for masked models
the hidden ones, for encoder-decoders the target's, for supervised fine-tuning the answers'. Rows longer than
max_length were cut into windows by the data layer (stride = window). The start token is in the context if it
was in training. Logits are reduced in fp32.
"""

from collections.abc import Callable
from typing import Any

import torch

from graft.base.base import Base
from graft.data.encode import IGNORED
from graft.data.feed import Feed
from graft.errors import DataError
from graft.generate.generate import evaluating
from graft.objectives.classify import class_logits
from graft.objectives.sums import add, numbers
from graft.stages.stage import Stage
from graft.storage.signals import check

Progress = Callable[[str, int, int], None]  # (what, rows that are done, rows in all)


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


def losses(base: Base, feed: Feed, stage: Stage, progress: Progress = silent) -> dict[str, float]:
    """Return the stage's scores (`Stage.scores`) on every row of the feed, for the adapter in use.

    Raises DataError if no token is supervised.
    """
    return stage.scores(*summed(base, feed, stage, progress))


def summed(base: Base, feed: Feed, stage: Stage, progress: Progress = silent) -> tuple[float, dict[str, Any]]:
    """Return the mean loss of every row of the feed, and the metrics of the stage's loss, added up.

    Raises DataError if no token is supervised.
    """
    own = stage.summed(base, feed, progress)
    if own is not None:
        return own
    loss = 0.0
    sums: dict[str, Any] = {"tokens": 0.0}
    steps = feed.steps_per_epoch
    with torch.no_grad(), evaluating(base):
        for step in range(steps):
            check()
            for batch in stage.before_step(base, feed.step(0, step)):
                if batch.tokens:
                    summed, metrics = stage.loss(base, batch.to(base.device))
                    loss += float(summed)
                    add(sums, metrics)
            progress("loss", *_rows(feed, step))
    totals = numbers(sums)
    if not totals["tokens"]:
        given = "no token of the evaluation rows is supervised"
        raise DataError(given, "at least one", "check data.eval and data.max_length")
    return loss / totals["tokens"], totals


def classes(base: Base, feed: Feed, progress: Progress = silent) -> tuple[list[Any], list[Any]]:
    """Return (predicted, true) classes of the rows of a feed, by the head of the adapter in use.

    Each has one index per row, or, for tagged rows, a list with one index per word.
    """
    predicted: list[Any] = []
    true: list[Any] = []
    steps = feed.steps_per_epoch
    with torch.no_grad(), evaluating(base):
        for step in range(steps):
            for batch in (b.to(base.device) for b in feed.step(0, step)):
                predicted += _supervised(class_logits(base, batch).argmax(-1), batch.labels)
                true += _supervised(batch.labels, batch.labels)
            progress("classes", *_rows(feed, step))
    return predicted, true


def _supervised(indices: torch.Tensor, labels: torch.Tensor) -> list[Any]:
    """Return each row's class indices; of a sequence only those at positions that `labels` supervises."""
    if labels.ndim == 1:
        return indices.tolist()
    return [row[live].tolist() for row, live in zip(indices, labels != IGNORED, strict=True)]


def _rows(feed: Feed, step: int) -> tuple[int, int]:
    """Return how many rows are done after a step, and how many there are."""
    count = len(feed.examples)
    return min((step + 1) * feed.batch_size, count), count
