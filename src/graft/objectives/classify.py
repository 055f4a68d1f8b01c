"""Classification: cross-entropy of the adapter's task head.

L = − Σ_rows log softmax(W·pool(h) + b)[label]
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from graft.objectives.lm import Loss, symmetric_kl

if TYPE_CHECKING:
    from graft.base import Base
    from graft.data.order import Batch


def classification(base: "Base", batch: "Batch") -> Loss:
    """Sum of row losses (a scalar), and {"tokens", "correct"}: rows, and those whose best class is right."""
    return _loss(class_logits(base, batch), batch)


def consistent_classification(base: "Base", batch: "Batch", weight: float, before_pass: Callable[[], None]) -> Loss:
    """The mean loss of two passes, and weight · ½(KL(p₁‖p₂) + KL(p₂‖p₁)) of every row."""
    before_pass()
    first = class_logits(base, batch)
    before_pass()
    second = class_logits(base, batch)
    (loss, metrics), (other, _) = _loss(first, batch), _loss(second, batch)
    return (loss + other) / 2 + weight * symmetric_kl(first, second).sum(), metrics


def class_logits(base: "Base", batch: "Batch") -> torch.Tensor:
    """Of the adapter's task head, (B, classes)."""
    keywords = dict(batch.inputs)
    logits: torch.Tensor = base(keywords.pop("input_ids"), **keywords)[0]
    return logits


def _loss(logits: torch.Tensor, batch: "Batch") -> Loss:
    loss = F.cross_entropy(logits, batch.labels, reduction="sum")
    return loss, {"tokens": float(len(logits)), "correct": float((logits.argmax(-1) == batch.labels).sum())}
