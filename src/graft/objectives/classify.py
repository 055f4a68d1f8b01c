"""Classification: cross-entropy of the adapter's task head.

L = − Σ_rows log softmax(W·pool(h) + b)[label]           one label per text
L = − Σ_rows Σ_words log softmax(W·h_t + b)[tag]         one tag per word, t its first token
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from graft.data.encode import IGNORED
from graft.objectives.lm import Loss, symmetric_kl

if TYPE_CHECKING:
    from graft.base.base import Base
    from graft.data.batches import Batch


def classification(base: "Base", batch: "Batch") -> Loss:
    """Return the loss summed over rows or words (a scalar), and {"tokens", "correct"}, which count them."""
    return _loss(class_logits(base, batch), batch.labels)


def consistent_classification(
    base: "Base", batch: "Batch", weight: float, before_pass: Callable[[], None]
) -> Loss:
    """Return the mean loss of two passes plus weight · ½(KL(p₁‖p₂) + KL(p₂‖p₁)) summed over rows or words."""
    before_pass()
    first = class_logits(base, batch)
    before_pass()
    second = class_logits(base, batch)
    loss, metrics = _loss(first, batch.labels)
    second_loss, _ = _loss(second, batch.labels)
    distance = symmetric_kl(first, second)[batch.labels != IGNORED].sum()
    return (loss + second_loss) / 2 + weight * distance, metrics


def class_logits(base: "Base", batch: "Batch") -> torch.Tensor:
    """Return the logits of the adapter's task head: (B, classes), or (B, T, classes)."""
    keywords: dict[str, Any] = dict(batch.inputs)
    logits: torch.Tensor = base(keywords.pop("input_ids"), **keywords)[0]
    return logits


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> Loss:
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    live = labels != IGNORED
    right = logits.argmax(-1) == labels
    return loss, {"tokens": live.sum(), "correct": (right & live).sum()}
