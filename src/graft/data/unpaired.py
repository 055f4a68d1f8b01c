"""Batches of single answers that are good or bad, beside which lie answers to prompts that are not theirs.

The latter are read without a gradient, for KTO's estimate of how far the model is from its reference. They
are batches of their own: a step reads all of them before it learns from the first answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from graft.data.answer_batches import AnswerBatch, AnswerBatches
from graft.data.encode import IGNORED, Example
from graft.data.rankings import prompt_length


@dataclass(kw_only=True)
class UnpairedBatch(AnswerBatch):
    """A batch of answers that are good or bad.

    mismatched: answers to other prompts; None if there are none.  z0: of the whole step, see
    `objectives.preference.reference_point`; None counts as 0.
    """

    mismatched: AnswerBatch | None = None
    z0: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Any:
        mapped: Any = super().map(change)
        return replace(mapped, mismatched=None if self.mismatched is None else self.mismatched.map(change))


class UnpairedBatches(AnswerBatches):
    """Turn judged answers into batches."""

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        if hasattr(examples, "lengths"):
            return examples.lengths()
        return [len(example.ids) for example in examples]

    def padded(self, examples: Sequence[Example]) -> UnpairedBatch:
        return self._beside(super().padded([_own(example) for example in examples]), examples)

    def packed(self, groups: Sequence[Sequence[Example]]) -> UnpairedBatch:
        own = super().packed([[_own(example) for example in group] for group in groups])
        return self._beside(own, [example for group in groups for example in group])

    def full(self, rows: int, length: int) -> UnpairedBatch:
        alone = AnswerBatches(
            self.tokenizer, self.max_length, pack=self.packs, first_position=self.first_position, answers=1
        )
        batch = alone.full(rows, length)
        batch.good = torch.ones(rows, dtype=torch.long)
        return UnpairedBatch(**vars(batch))

    def _beside(self, own: AnswerBatch, examples: Sequence[Example]) -> UnpairedBatch:
        others = [_other(example) for example in examples if example.parts.get("other")]
        mismatched = AnswerBatches.padded(self, others) if others else None
        return UnpairedBatch(**vars(own), mismatched=mismatched)


def _own(example: Example) -> Example:
    """Return the example without the answer to another prompt."""
    return replace(example, parts={}, reference=example.reference[:1])


def _other(example: Example) -> Example:
    """Return the prompt of the example with the answer to another one."""
    prompt = example.ids[: prompt_length(example)]
    other = example.parts["other"]
    learnt = example.parts.get("learnt") or [1] * len(other)
    labels = [token if use else IGNORED for token, use in zip(other, learnt, strict=True)]
    return Example(
        prompt + other,
        [IGNORED] * len(prompt) + labels,
        example.source,
        target=example.target,
        reference=example.reference[1:],
    )
