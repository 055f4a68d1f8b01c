"""Perplexity and what falls out of the same forwards: loss per token, token accuracy, classes.

    PPL = exp( Σ NLL / Σ tokens )        over the whole corpus, never a mean of batches

Tokens are those the stage supervises: for causal models every token but a row's first, for masked models the hidden
ones, for encoder-decoders the target's, for supervised fine-tuning the answers'. Rows longer than max_length were cut
into windows by the data layer (stride = window), the start token is in the context where training has it, and logits
are reduced in fp32.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from graft.data import IGNORED
from graft.data.feed import Feed
from graft.errors import DataError
from graft.generate.generate import evaluating
from graft.objectives import BY_STAGE

if TYPE_CHECKING:
    from graft.base.base import Base

Progress = Callable[[str, int, int], None]  # (what, done, total)


def silent(what: str, done: int, total: int) -> None:
    """The observer of those who do not want to watch."""


def perplexity(base: "Base", feed: Feed, progress: Progress = silent) -> dict[str, float]:
    """{"loss", "perplexity", "token_accuracy", "tokens"} of the adapter in use on every row of the feed.

    loss: nats per supervised token. Raises DataError where nothing is supervised.
    """
    loss, tokens, correct = 0.0, 0.0, 0.0
    objective, steps = BY_STAGE[feed.stage], feed.steps_per_epoch
    with torch.no_grad(), evaluating(base):
        for step in range(steps):
            for batch in feed.step(0, step):
                if batch.tokens:
                    nll, found = objective(base, batch.to(base.device))
                    loss += float(nll)
                    tokens += found["tokens"]
                    correct += found["correct"]
            progress("perplexity", step + 1, steps)
    if not tokens:
        raise DataError(
            "no token of the evaluation rows is supervised", "at least one", "check data.eval and max_length"
        )
    return {
        "loss": loss / tokens,
        "perplexity": math.exp(min(loss / tokens, 700)),  # beyond that a float has no room
        "token_accuracy": correct / tokens,
        "tokens": tokens,
    }


def classes(base: "Base", feed: Feed, progress: Progress = silent) -> tuple[list[Any], list[Any]]:
    """(predicted, true) class of every row of a classification feed, by the head of the adapter in use.

    Of tagged rows a list with one class per word.
    """
    predicted: list[Any] = []
    true: list[Any] = []
    steps = feed.steps_per_epoch
    with torch.no_grad(), evaluating(base):
        for step in range(steps):
            for batch in (b.to(base.device) for b in feed.step(0, step)):
                keywords = dict(batch.inputs)
                logits = base(keywords.pop("input_ids"), **keywords)[0]
                predicted += _labelled(logits.argmax(-1), batch.labels)
                true += _labelled(batch.labels, batch.labels)
            progress("classes", step + 1, steps)
    return predicted, true


def _labelled(found: torch.Tensor, labels: torch.Tensor) -> list[Any]:
    """Rows of `found`; where rows are sequences, only what `labels` supervises."""
    if labels.ndim == 1:
        return found.tolist()
    return [row[live].tolist() for row, live in zip(found, labels != IGNORED, strict=True)]
