"""Classification: cross-entropy of the adapter's task head.

L = − Σ_rows log softmax(W·pool(h) + b)[label]           one label per text
L = − Σ_rows Σ_words log softmax(W·h_t + b)[tag]         one tag per word, t its first token
"""

from typing import TYPE_CHECKING

from torch.nn import functional as F

from graft.data import IGNORED
from graft.objectives.lm import Loss

if TYPE_CHECKING:
    from graft.base import Base
    from graft.data.order import Batch


def classification(base: "Base", batch: "Batch") -> Loss:
    """Sum of the losses of rows or words (a scalar), and {"tokens", "correct"}: how many, and how many are right."""
    keywords = dict(batch.inputs)
    logits = base(keywords.pop("input_ids"), **keywords)[0]  # (B, classes), or (B, T, classes)
    loss = F.cross_entropy(logits.flatten(0, -2), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
    live, right = batch.labels != IGNORED, logits.argmax(-1) == batch.labels
    return loss, {"tokens": float(live.sum()), "correct": float((right & live).sum())}
