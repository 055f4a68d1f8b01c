"""Evaluation: perplexity, scores of texts and of classes, before and after; judges and ratings."""

from graft.evaluate.answers import answers
from graft.evaluate.losses import losses
from graft.evaluate.rewards import rewards
from graft.evaluate.tasks import HeldOut, Scored, Table, before_after, cases, evaluate

__all__ = ["HeldOut", "Scored", "Table", "answers", "before_after", "cases", "evaluate", "losses", "rewards"]
