"""Batches of answers: which states predict the tokens of which answer. Two layouts in memory, equal values.

    padded    prompt answer₁ | prompt answer₂ | ...        every answer in a row of its own
    packed    prompt answer₁ answer₂ ...                   the prompt once; an answer sees it and itself

In the packed layout the positions of every answer begin at the end of the prompt, and several rankings may
share a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graft.data.answers import THOUSANDTHS, prompt_length
from graft.data.batches import Batch, Batches
from graft.data.encode import IGNORED, Example
from graft.data.pack import GRAIN

MISMATCHED = -1  # `AnswerBatch.good` of an answer to another prompt


@dataclass(kw_only=True)
class AnswerBatch(Batch):
    """A micro-batch of answers to prompts: A answers, N tokens of theirs, P pairs that are compared.

    states: (N,) flat positions of the hidden states that predict the tokens.  labels: (N,) these tokens.
    owner: (N,) to which answer each belongs.  row, place: (A,) to which ranking each answer belongs, and its
    place in it, 0 the best.  last: (A,) flat position of the last token of each.
    scores: (A,) fp32, or None where no ranking has any; NaN for a ranking without, if another has some.
    good: (A,) 1 for a good answer, 0 for a bad one, MISMATCHED for one to another prompt; None for rankings.
    reference: (A,) fp32 summed log-probabilities under the reference, or None.
    tokens: what the loss is divided by: pairs that are compared, or judged answers.
    """

    states: Tensor
    owner: Tensor
    row: Tensor
    place: Tensor
    last: Tensor
    scores: Tensor | None = None
    good: Tensor | None = None
    reference: Tensor | None = None

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the better and the worse answer of every pair that is compared, (P,) each."""
        better = (self.row[:, None] == self.row[None]) & (self.place[:, None] < self.place[None])
        if self.scores is not None:
            better &= self.scores[:, None] != self.scores[None]  # NaN is unequal to NaN
        first, second = better.nonzero(as_tuple=True)
        return first, second


class AnswerBatches(Batches):
    """Turn rankings, or judged answers, into batches.

    pack: the packed layout.  first_position: position id of a row's first token.
    answers: how many a ranking has, for memory planning.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, *, pack: bool = False, first_position: int = 0, answers: int = 2
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.packs = pack
        self.first_position = first_position
        self.answers = answers

    def padded(self, examples: Sequence[Example]) -> AnswerBatch:
        raise NotImplementedError

    def packed(self, groups: Sequence[Sequence[Example]]) -> AnswerBatch:
        raise NotImplementedError

    def full(self, rows: int, length: int) -> AnswerBatch:
        raise NotImplementedError
