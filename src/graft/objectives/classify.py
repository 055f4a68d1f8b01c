"""Classification: cross-entropy of the adapter's task head.

L = − Σ_rows log softmax(W·pool(h) + b)[label]
"""

from typing import TYPE_CHECKING

from torch.nn import functional as F

from graft.objectives.lm import Loss

if TYPE_CHECKING:
    from graft.base import Base
    from graft.data.order import Batch


def classification(base: "Base", batch: "Batch") -> Loss:
    """Sum of row losses (a scalar), and {"tokens", "correct"}: rows, and those whose best class is right."""
    keywords = dict(batch.inputs)
    logits = base(keywords.pop("input_ids"), **keywords)[0]
    loss = F.cross_entropy(logits, batch.labels, reduction="sum")
    return loss, {"tokens": float(len(logits)), "correct": float((logits.argmax(-1) == batch.labels).sum())}
