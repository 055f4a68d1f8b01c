"""Language modelling: the loss of the next, the hidden or the target token.

    L = − Σ_{t in M} log p(x_t | context)        M: positions whose label is not −100

One function serves causal, masked and encoder-decoder models, pretraining and supervised fine-tuning: they
differ only in the labels that the data layer made, and in the shift by one that causal models need, which is
done here only.
Only supervised positions reach the head, a chunk at a time: full logits never exist. Under a frozen linear
head the gradient of its input is computed at once; where more happens at the head (an adapter, or what some
models do to logits), a chunk's logits are computed again in backward.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from graft.data.batches import supervised_positions
from graft.data.encode import IGNORED
from graft.errors import ModelError
from graft.kernels import loss as fused

if TYPE_CHECKING:
    from graft.base.base import Base
    from graft.data.batches import Batch

CHUNK = 1024  # positions whose logits exist at one time
GRAIN = 128  # their number is padded to a multiple: every new shape costs a compiled kernel
# The summed loss, and sums to report: numbers, or tensors of one number that are read only when needed.
Loss = tuple[torch.Tensor, dict[str, Any]]
# (logits (passes, N, V), labels) -> a number for each row, and whether its label is the most probable token.
Score = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def language_modelling(base: "Base", batch: "Batch") -> Loss:
    """Return the loss of all supervised tokens (a scalar), and {"tokens", "correct"}, which count them."""
    return chunked_loss(base, *supervised(base, batch))


def consistent_modelling(
    base: "Base", batch: "Batch", weight: float, before_pass: Callable[[], None]
) -> Loss:
    """Return the mean loss of two passes plus weight · ½(KL(p₁‖p₂) + KL(p₂‖p₁)), summed over positions."""
    states = []
    for _ in range(2):
        before_pass()
        hidden, labels = supervised(base, batch)
        states.append(hidden)
    return chunked_loss(base, torch.stack(states), labels, weight)


def supervised(base: "Base", batch: "Batch") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states that enter the head, (N, D), and the labels, (N,), of the supervised positions."""
    causal = base.family == "causal"
    if causal and base.looks_ahead:
        raise ModelError(
            f"{type(base.model).__name__} reads the tokens that it should predict: it is not causal",
            "a model that reads from left to right, or a masked language model",
            "choose another model, or classify with this one",
        )
    positions = batch.supervised
    if positions is None:
        positions = supervised_positions(batch.labels, causal=causal)
    hidden = base.hidden(**forward_keywords(batch)).flatten(0, 1)
    # The state at a position of a causal model predicts the next token.
    return hidden[positions - 1 if causal else positions], batch.labels.flatten()[positions]


def chunked_loss(base: "Base", hidden: torch.Tensor, labels: torch.Tensor, consistency: float = 0.0) -> Loss:
    """Return the loss of states that enter the head, computed in chunks.

    hidden: (N, D), or (2, N, D) of two passes; all rows belong to the adapter in use.  labels: (N,).
    consistency: weight of the symmetric KL of the two passes, which is added to their mean loss.
    """
    if hidden.ndim == 2:
        logprobs, hits = token_logprobs(base, hidden, labels)
        return -logprobs.sum(), {"tokens": float(len(labels)), "correct": hits.sum()}

    def score(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        targets = wanted.repeat(len(logits))
        loss = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(len(logits), -1).mean(0)
        divergence = symmetric_kl(*logits).where(wanted != IGNORED, 0.0)
        return loss + consistency * divergence, logits[0].argmax(-1) == wanted

    losses, hits = _in_chunks(base, hidden, labels, score)
    return losses.sum(), {"tokens": float(len(labels)), "correct": hits.sum()}


def token_logprobs(
    base: "Base", hidden: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p of each label, (N,) in fp32 or wider, and whether it is the most probable token, (N,).

    hidden: (N, D), states that enter the head; all rows belong to the adapter in use.  labels: (N,); rows
    without one (-100) get 0 and False. Full logits never exist, and gradients reach `hidden` and what is
    trained at the head.  temperature: logits are divided by it.
    """
    head = None if torch.compiler.is_compiling() else base.plain_head()
    if head is not None and head.weight.dtype == hidden.dtype:
        return fused.token_logprobs(hidden, head.at(temperature), labels)

    def score(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits / temperature if temperature != 1.0 else logits
        return -F.cross_entropy(logits[0], wanted, reduction="none"), logits[0].argmax(-1) == wanted

    return _in_chunks(base, hidden[None], labels, score)


def _in_chunks(
    base: "Base", hidden: torch.Tensor, labels: torch.Tensor, score: Score
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `score` makes of the logits of all rows, a chunk of which exist at one time.

    hidden: (passes, N, D). In backward a chunk's logits are computed again.
    """
    # Captured: in backward another adapter may be in use.
    adapters = [base.active] * len(hidden)

    def scored(states: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = base.logits(states, adapters)
        return score(logits.to(torch.promote_types(logits.dtype, torch.float32)), wanted)

    count = len(labels)
    filler = -count % GRAIN
    hidden = F.pad(hidden, (0, 0, 0, filler))
    labels = F.pad(labels, (0, filler), value=IGNORED)
    parts = [
        checkpoint(scored, states, wanted, use_reentrant=False)
        if torch.is_grad_enabled()
        else scored(states, wanted)
        for states, wanted in zip(hidden.split(CHUNK, dim=1), labels.split(CHUNK), strict=True)
    ]
    values, hits = (torch.cat(columns)[:count] for columns in zip(*parts, strict=True))
    return values, hits


def symmetric_kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return ½(KL(p‖q) + KL(q‖p)) = ½ Σ (p − q)(log p − log q) of two predictions as logits (..., V)."""
    log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def token_scores(loss: float, sums: dict[str, float]) -> dict[str, float]:
    """Return loss (per token), perplexity, token_accuracy and tokens.  sums: of "correct" and "tokens"."""
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),  # a float has no room beyond that
        "token_accuracy": sums["correct"] / sums["tokens"],
        "tokens": sums["tokens"],
    }


def forward_keywords(batch: "Batch") -> dict[str, Any]:
    """Return a batch's inputs as the keywords of `Base.hidden`."""
    keywords = {name: value for name, value in batch.inputs.items() if value is not None}
    return {"ids": keywords.pop("input_ids"), **keywords}
