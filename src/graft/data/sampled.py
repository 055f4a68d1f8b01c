"""Answers that a model wrote itself: their tokens, and numbers about every token, as rows to learn from.

    tokens of all answers, one after the other     3 tokens | 2 tokens | ...                      N in all
    numbers["old"], numbers["reference"], ...      a number for each of them
    rewards["..."]                                 a number for each answer

Answers to one prompt are neighbours. Batches of them have the prompt once, where rows are packed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from graft.data.answer_batches import AnswerBatch, AnswerBatches
from graft.data.encode import Example

TOKENS, ENDS, ENDED, PROMPTS = "tokens", "ends", "ended", "prompts"  # in files
NUMBER, REWARD = "number.", "reward."  # begin the names of the others there


@dataclass
class Sampled:
    """The answers to some prompts.

    prompts: the example of each prompt.  places: their indices among the rows of the run.
    answers: ids, with the token that ended the text, if one did; `group` answers to each prompt.
    ended: whether the model ended each answer itself.
    numbers: (N,) fp32 by name, for every token of all answers.  rewards: (A,) fp32 by name.
    """

    prompts: Sequence[Example]
    places: Sequence[int]
    answers: Sequence[Sequence[int]]
    ended: Sequence[bool]
    numbers: dict[str, Tensor] = field(default_factory=dict)
    rewards: dict[str, Tensor] = field(default_factory=dict)

    @property
    def group(self) -> int:
        """How many answers each prompt has."""
        return len(self.answers) // len(self.prompts)

    def lengths(self) -> Tensor:
        """Return how many tokens each answer has, (A,)."""
        return torch.tensor([len(answer) for answer in self.answers])

    def groups(self) -> Tensor:
        """Return the number of its prompt for each answer, (A,)."""
        return torch.arange(len(self.prompts)).repeat_interleave(self.group)

    def examples(self) -> list[Example]:
        """Return one example for each prompt, with all its answers and their numbers."""
        return [self.example(prompt, range(self.group)) for prompt in range(len(self.prompts))]

    def example(self, prompt: int, chosen: Sequence[int]) -> Example:
        """Return a prompt as a ranking of some of its answers.

        chosen: their places among the prompt's answers, the best first where a stage compares them.
        """
        own = [prompt * self.group + place for place in chosen]
        spans = [slice(self._ends[answer], self._ends[answer + 1]) for answer in own]
        answers = [self.answers[answer] for answer in own]
        ends = list(accumulate(map(len, answers)))
        numbers = {
            name: [value for span in spans for value in values[span].tolist()]
            for name, values in self.numbers.items()
        }
        parts = {"answers": [token for answer in answers for token in answer], "ends": ends}
        return replace(self.prompts[prompt], parts=parts, numbers=numbers)

    @cached_property
    def _ends(self) -> list[int]:
        """Where each answer begins among the tokens, and where the last one ends."""
        return [0, *accumulate(map(len, self.answers))]

    # Files

    def tensors(self) -> dict[str, Tensor]:
        """Return everything but the prompts' own ids, for saving."""
        flat = [token for answer in self.answers for token in answer]
        return {
            TOKENS: torch.tensor(flat, dtype=torch.int32),
            ENDS: self.lengths().cumsum(0),
            ENDED: torch.tensor(self.ended, dtype=torch.uint8),
            PROMPTS: torch.tensor(self.places, dtype=torch.int64),
            **{NUMBER + name: values.float().cpu() for name, values in self.numbers.items()},
            **{REWARD + name: values.float().cpu() for name, values in self.rewards.items()},
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], rows: Sequence[Example]) -> "Sampled":
        """Return what `tensors` gave.  rows: of the run, among which the prompts are."""
        tokens, ends = tensors[TOKENS].tolist(), [0, *tensors[ENDS].tolist()]
        places = tensors[PROMPTS].tolist()
        return cls(
            [rows[place] for place in places],
            places,
            [tokens[a:b] for a, b in pairwise(ends)],
            [bool(value) for value in tensors[ENDED].tolist()],
            _named(tensors, NUMBER),
            _named(tensors, REWARD),
        )


def _named(tensors: Mapping[str, Tensor], begin: str) -> dict[str, Tensor]:
    return {name.removeprefix(begin): t for name, t in tensors.items() if name.startswith(begin)}


class SampledBatches(AnswerBatches):
    """Turn answers that a model wrote into batches with their numbers.

    counts: what the loss of a step is divided by: "tokens", "answers", or the "pairs" that are compared.
    numbers: names of the numbers that batches have.  longest: tokens of an answer, for memory planning.
    """

    def __init__(
        self, *arguments: Any, counts: str, numbers: Sequence[str], longest: int, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.counts = counts
        self.numbers = tuple(numbers)
        self.longest = longest

    def padded(self, examples: Sequence[Example]) -> AnswerBatch:
        return self._told(super().padded(examples), examples)

    def packed(self, groups: Sequence[Sequence[Example]]) -> AnswerBatch:
        return self._told(super().packed(groups), [example for group in groups for example in group])

    def full(self, rows: int, length: int) -> AnswerBatch:
        count = min(self.longest, length - 1)
        prompt = [0] * (length - count)
        ends = [count * (place + 1) for place in range(self.answers)]
        parts = {"answers": [0] * ends[-1], "ends": ends}
        numbers = {name: [0.0] * ends[-1] for name in self.numbers}
        example = Example(prompt, prompt, parts=parts, numbers=numbers)
        return self.packed([[example]] * rows) if self.packs else self.padded([example] * rows)

    def _told(self, batch: AnswerBatch, examples: Sequence[Example]) -> AnswerBatch:
        numbers = {
            name: torch.tensor([value for example in examples for value in example.numbers[name]])
            for name in self.numbers
            if all(name in example.numbers for example in examples)
        }
        return replace(batch, tokens=self._counted(batch), numbers=numbers)

    def _counted(self, batch: AnswerBatch) -> int:
        counted = {"tokens": len(batch.labels), "answers": len(batch.last), "pairs": batch.tokens}
        return counted[self.counts]
