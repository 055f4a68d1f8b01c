"""Language modelling: the loss of the next, the hidden or the target token.

    L = − Σ_{t in M} log p(x_t | context)        M: positions whose label is not −100

One function for causal, masked and encoder-decoder models, pretraining and supervised fine-tuning: they differ only in
the labels that the data layer made, and in the shift by one that causal models need, done here and only here. Only
supervised positions reach the head, a chunk at a time, recomputed in backward: full logits never exist.
"""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from graft.data import IGNORED

if TYPE_CHECKING:
    from graft.base import Base
    from graft.data.order import Batch

CHUNK = 1024  # positions whose logits exist at one time
GRAIN = 128  # their number is filled up to a multiple: every new shape costs a compiled kernel, which is then kept
Loss = tuple[torch.Tensor, dict[str, float]]


def language_modelling(base: "Base", batch: "Batch") -> Loss:
    """Sum of token losses (a scalar), and {"tokens", "correct"}: supervised positions, and those guessed right."""
    hidden = base.hidden(**_forward_keywords(base, batch))
    labels = batch.labels
    if base.family == "causal":
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    live = labels != IGNORED
    return chunked_loss(base, hidden[live], labels[live])


def chunked_loss(base: "Base", hidden: torch.Tensor, labels: torch.Tensor) -> Loss:
    """hidden (N, D) and labels (N,) of the supervised positions of rows that all use the adapter in use."""
    adapters = [base.active]  # captured: the chunks are recomputed in backward, where another adapter may be in use

    def part(states: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = base.logits(states[None], adapters)[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, wanted, reduction="sum"), (logits.argmax(-1) == wanted).sum()

    total, correct, count = torch.zeros((), device=hidden.device), 0, len(labels)
    filler = -count % GRAIN
    hidden, labels = F.pad(hidden, (0, 0, 0, filler)), F.pad(labels, (0, filler), value=IGNORED)
    for states, wanted in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True):
        loss, hits = (
            checkpoint(part, states, wanted, use_reentrant=False) if torch.is_grad_enabled() else part(states, wanted)
        )
        total, correct = total + loss, correct + int(hits)
    return total, {"tokens": float(count), "correct": float(correct)}


def _forward_keywords(base: "Base", batch: "Batch") -> dict[str, torch.Tensor]:
    keywords = {name: value for name, value in batch.inputs.items() if value is not None}
    return {"ids": keywords.pop("input_ids"), **keywords}
