"""Log-likelihoods of continuations: how likely a model finds given tokens after given tokens.

    log p(y | x) = Σ_t log p(y_t | x, y_<t)        greedy: every y_t is the likeliest token at its place

What public benchmarks ask for: a question with several answers asks for each answer after the same context.
Contexts are cut on the left where the whole is longer than the model reads, as lm-eval's HFLM cuts them: the
last token is scored but not read, so one token more than the model's positions fits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from graft.base.base import Base
from graft.core.positions import first_position
from graft.data.answer_batches import AnswerBatches
from graft.data.answer_groups import Ids, batched
from graft.errors import DataError, notice
from graft.generate.generate import evaluating
from graft.objectives.lm import forward_keywords, token_logprobs

Told = Callable[[int, int], None]  # (done, total)
Scored = tuple[list[int], Tensor, Tensor, Tensor]  # places, log-probabilities, hits and owners of tokens


def silent(done: int, total: int) -> None:
    """Report no progress."""


def loglikelihoods(
    base: Base,
    contexts: Sequence[Ids],
    continuations: Sequence[Ids],
    *,
    limit: int,
    batch_size: int = 8,
    progress: Told = silent,
) -> list[tuple[float, bool]]:
    """Return (log p, greedy) of every continuation after its context, for the adapter in use.

    contexts, continuations: ids, at least one each.  limit: tokens that the model reads.
    batch_size: continuations in one forward. Neighbours with the same context share it, if the base allows
    that.  progress: is called with (continuations that are scored, all).
    Raises DataError for a continuation without tokens, or with more than `limit`.
    """
    pairs = [_cut(*pair, limit) for pair in zip(contexts, continuations, strict=True)]
    longer = sum(len(cut) < len(given) for (cut, _), given in zip(pairs, contexts, strict=True))
    if longer:
        notice(
            f"{longer:,} of {len(pairs):,} contexts lose their beginning: the model reads {limit:,} tokens"
        )
    found = [(0.0, False)] * len(pairs)
    done = 0
    with torch.no_grad(), evaluating(base):
        for places, logprobs, hits, owner in _scored(base, pairs, limit, batch_size):
            zeros = torch.zeros(len(places), dtype=torch.float64)
            sums = zeros.index_add(0, owner, logprobs.double().cpu())
            misses = zeros.index_add(0, owner, (~hits).double().cpu())
            for place, total, missed in zip(places, sums.tolist(), misses.tolist(), strict=True):
                found[place] = (total, missed == 0)
            done += len(places)
            progress(done, len(pairs))
    return found


def _cut(context: Ids, continuation: Ids, limit: int) -> tuple[list[int], list[int]]:
    """Return both, the context without what does not fit in front."""
    if not context or not 1 <= len(continuation) <= limit:
        raise DataError(
            f"a continuation of {len(continuation)} tokens after {len(context)}",
            f"1 to {limit} tokens after at least 1",
            "shorten the rows of this task, or leave them out",
        )
    return list(context[-(limit + 1 - len(continuation)) :]), list(continuation)


def _scored(
    base: Base, pairs: Sequence[tuple[list[int], list[int]]], limit: int, batch_size: int
) -> Iterator[Scored]:
    """Yield the tokens of all continuations, a batch at a time: in shared rows, and those in rows alone."""
    longest = max((len(x) + len(y) for x, y in pairs), default=0)
    share = base.unpackable(min(longest, limit)) is None
    batches = AnswerBatches(
        base.tokenizer, limit, pack=share, first_position=first_position(base.model.config)
    )
    # A continuation in a shared row is read whole, so the last token needs a position of its own.
    shared = [
        i
        for i, (x, y) in enumerate(pairs)
        if share
        and len(x) + len(y) <= limit
        and any(0 <= k < len(pairs) and pairs[k][0] == x for k in (i - 1, i + 1))
    ]
    rest = sorted(set(range(len(pairs))) - set(shared), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    for places, batch in batched(
        batches, [pairs[i][0] for i in shared], [pairs[i][1] for i in shared], batch_size
    ):
        on_device: Any = batch.to(base.device)
        states = base.hidden(**forward_keywords(on_device)).flatten(0, 1)[on_device.states]
        yield [shared[i] for i in places], *token_logprobs(base, states, on_device.labels), batch.owner
    for start in range(0, len(rest), batch_size):
        places = rest[start : start + batch_size]
        yield places, *_alone(base, batches, [pairs[i] for i in places])


def _alone(
    base: Base, batches: AnswerBatches, pairs: Sequence[tuple[list[int], list[int]]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities, hits and owners of the tokens of continuations that have a row each."""
    rows = [[*x, *y[:-1]] for x, y in pairs]
    ids, live = batches.rectangle(rows, batches.pad)
    width = ids.shape[1]
    states = [
        k * width + len(row) - len(y) + t
        for k, (row, (_, y)) in enumerate(zip(rows, pairs, strict=True))
        for t in range(len(y))
    ]
    labels = torch.tensor([token for _, y in pairs for token in y], device=base.device)
    hidden = base.hidden(ids.to(base.device), attention_mask=live.to(base.device)).flatten(0, 1)
    logprobs, hits = token_logprobs(base, hidden[torch.tensor(states, device=base.device)], labels)
    return logprobs, hits, torch.tensor([k for k, (_, y) in enumerate(pairs) for _ in y])
