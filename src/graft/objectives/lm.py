"""Language modelling: the loss of the next, the hidden or the target token.

    L = − Σ_{t in M} log p(x_t | context)        M: positions whose label is not −100

One function for causal, masked and encoder-decoder models, pretraining and supervised fine-tuning: they differ only in
the labels that the data layer made, and in the shift by one that causal models need, done here and only here. Only
supervised positions reach the head, a chunk at a time, recomputed in backward: full logits never exist.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from graft.data.batches import supervised_positions
from graft.data.encode import IGNORED

if TYPE_CHECKING:
    from graft.base.base import Base
    from graft.data.batches import Batch

CHUNK = 1024  # positions whose logits exist at one time
GRAIN = 128  # their number is filled up to a multiple: every new shape costs a compiled kernel, which is then kept
# The summed loss, and sums to report: numbers, or tensors of one number, read when they are needed.
Loss = tuple[torch.Tensor, dict[str, Any]]


def language_modelling(base: "Base", batch: "Batch") -> Loss:
    """Sum of token losses (a scalar), and {"tokens", "correct"}: supervised positions, and those guessed right."""
    return chunked_loss(base, *supervised(base, batch))


def consistent_modelling(
    base: "Base", batch: "Batch", weight: float, before_pass: Callable[[], None]
) -> Loss:
    """The mean loss of two passes, and weight · ½(KL(p₁‖p₂) + KL(p₂‖p₁)) of every supervised position."""
    states = []
    for _ in range(2):
        before_pass()
        hidden, labels = supervised(base, batch)
        states.append(hidden)
    return chunked_loss(base, torch.stack(states), labels, weight)


def supervised(base: "Base", batch: "Batch") -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the head, (N, D), and the labels, (N,), of the supervised positions."""
    causal = base.family == "causal"
    places = batch.supervised
    if places is None:
        places = supervised_positions(batch.labels, causal=causal)
    hidden = base.hidden(**_forward_keywords(batch)).flatten(0, 1)
    # The state at a position of a causal model tells the next token.
    return hidden[places - 1 if causal else places], batch.labels.flatten()[places]


def chunked_loss(base: "Base", hidden: torch.Tensor, labels: torch.Tensor, consistency: float = 0.0) -> Loss:
    """hidden (N, D) and labels (N,) of the supervised positions of rows that all use the adapter in use.

    Of two passes hidden is (2, N, D): the loss is their mean, and consistency times their symmetric KL.
    """
    hidden = hidden if hidden.ndim == 3 else hidden[None]
    # Captured: the chunks are recomputed in backward, where another adapter may be in use.
    adapters = [base.active] * len(hidden)

    def part(states: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = base.logits(states, adapters)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.repeat(len(logits)), reduction="sum") / len(
            logits
        )
        if consistency:
            loss = loss + consistency * symmetric_kl(*logits)[wanted != IGNORED].sum()
        return loss, (logits[0].argmax(-1) == wanted).sum()

    total = torch.zeros((), device=hidden.device)
    correct = torch.zeros((), dtype=torch.long, device=hidden.device)
    count = len(labels)
    filler = -count % GRAIN
    hidden, labels = F.pad(hidden, (0, 0, 0, filler)), F.pad(labels, (0, filler), value=IGNORED)
    for states, wanted in zip(hidden.split(CHUNK, dim=1), labels.split(CHUNK), strict=True):
        loss, hits = (
            checkpoint(part, states, wanted, use_reentrant=False)
            if torch.is_grad_enabled()
            else part(states, wanted)
        )
        total, correct = total + loss, correct + hits
    return total, {"tokens": float(count), "correct": correct}


def symmetric_kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """½(KL(p‖q) + KL(q‖p)) = ½ Σ (p − q)(log p − log q) of two predictions given as logits (..., V)."""
    log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def token_scores(loss: float, sums: dict[str, float]) -> dict[str, float]:
    """Return what an evaluation says of a loss per token: loss, perplexity, share of tokens guessed right, tokens."""
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),  # beyond that a float has no room
        "token_accuracy": sums["correct"] / sums["tokens"],
        "tokens": sums["tokens"],
    }


def _forward_keywords(batch: "Batch") -> dict[str, torch.Tensor]:
    keywords = {name: value for name, value in batch.inputs.items() if value is not None}
    return {"ids": keywords.pop("input_ids"), **keywords}
