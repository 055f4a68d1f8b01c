"""Evaluation: perplexity, scores of written texts and of classes, before and after in one table."""

from graft.evaluate.answers import answers
from graft.evaluate.losses import losses
from graft.evaluate.tasks import Held, Table, before_after, cases, evaluate

__all__ = ["Held", "Table", "answers", "before_after", "cases", "evaluate", "losses"]
