"""Batches of answers: which states predict the tokens of which answer. Two layouts in memory, equal values.

    padded    prompt answer₁ | prompt answer₂ | ...        every answer in a row of its own
    packed    prompt answer₁ answer₂ ...                   the prompt once; an answer sees it and itself

In the packed layout the positions of every answer begin at the end of the prompt, and several rankings may
share a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from graft.data.batches import Batch, Batches
from graft.data.encode import IGNORED, OTHER, Example
from graft.data.pack import GRAIN, rounded
from graft.data.rankings import THOUSANDTHS, prompt_length
from graft.data.rows import compared

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
    numbers: (N,) by name, one for each token, of answers that the model wrote itself (see `sampled`).
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
    numbers: dict[str, Tensor] = field(default_factory=dict)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the better and the worse answer of every pair that is compared, (P,) each."""
        better = (self.row[:, None] == self.row[None]) & (self.place[:, None] < self.place[None])
        if self.scores is not None:
            better &= self.scores[:, None] != self.scores[None]  # NaN is unequal to NaN
        # The number of pairs is known, so that nothing waits for the device, and tensors without values do.
        first, second = torch.nonzero_static(better, size=self.tokens).T
        return first, second

    def lengths(self) -> Tensor:
        """Return how many tokens of every answer are scored, (A,)."""
        return torch.zeros_like(self.last).index_add(0, self.owner, torch.ones_like(self.owner))


class AnswerBatches(Batches):
    """Turn rankings, or judged answers, into batches.

    pack: the packed layout.  first_position: position id of a row's first token.
    answers: how many a ranking has, for memory planning.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        *,
        pack: bool = False,
        first_position: int = 0,
        answers: int = 2,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.packs = pack
        self.first_position = first_position
        self.answers = answers

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        return [_size(example, packed=self.packs) for example in examples]

    def padded(self, examples: Sequence[Example]) -> AnswerBatch:
        answers = [said for row, example in enumerate(examples) for said in _answers(example, row)]
        ids, live = self.rectangle([said.prompt + said.ids for said in answers], self.pad)
        begins = [k * ids.shape[1] + len(said.prompt) for k, said in enumerate(answers)]
        ahead = [begin - 1 for begin in begins]
        inputs = {"input_ids": ids, "attention_mask": live}
        return _batch(inputs, examples, answers, begins, ahead)

    def packed(self, groups: Sequence[Sequence[Example]]) -> AnswerBatch:
        examples = [example for group in groups for example in group]
        row = count()
        lines = [_Line([_answers(example, next(row)) for example in group]) for group in groups]
        width = max(len(line.ids) for line in lines)
        # One ranking may be longer than max_length, which each of its answers is not.
        width = rounded(width, self.max_length if width <= self.max_length else width + GRAIN)

        def filled(rows: Sequence[list[int]], fill: int = 0) -> Tensor:
            return torch.tensor([row + [fill] * (width - len(row)) for row in rows])

        document = filled([line.document for line in lines])
        branch = filled([line.branch for line in lines])
        same = document[:, :, None] == document[:, None, :]
        seen = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
        inputs = {
            "input_ids": filled([line.ids for line in lines], self.pad),
            "attention_mask": (same & seen).tril()[:, None],
            "position_ids": filled([line.positions for line in lines]) + self.first_position,
        }
        begins = [k * width + at for k, line in enumerate(lines) for at in line.begins]
        ahead = [k * width + at for k, line in enumerate(lines) for at in line.ahead]
        answers = [said for line in lines for own in line.rankings for said in own]
        return _batch(inputs, examples, answers, begins, ahead)

    def full(self, rows: int, length: int) -> AnswerBatch:
        total = rows * self.answers
        if self.packs:
            width = self.answers * length
            inputs = self.full_inputs(rows, width)
            inputs["attention_mask"] = torch.ones(rows, 1, width, width, dtype=torch.bool)
            inputs["position_ids"] = torch.arange(length).repeat(self.answers).expand(rows, width)
        else:
            inputs = self.full_inputs(total, length)
        states = torch.arange(total * length).view(total, length)[:, 1:] - 1
        number = torch.arange(total)
        return AnswerBatch(
            inputs=inputs,
            labels=inputs["input_ids"].view(total, length)[:, 1:].flatten(),
            tokens=rows,
            sources=[],
            states=states.flatten(),
            owner=number[:, None].expand(total, length - 1).flatten(),
            row=number // self.answers,
            place=number % self.answers,
            last=number * length + length - 1,
            reference=torch.zeros(total),
        )


@dataclass
class _Answer:
    """One answer of a batch.  learnt: which of its ids are scored.  row: of the batch's examples."""

    prompt: list[int]
    ids: list[int]
    learnt: list[int]
    row: int
    place: int
    good: int = 0


@dataclass
class _Line:
    """One row of the packed layout, and its columns: ids, positions, document and branch of each.

    rankings: the answers of each prompt.  document: the prompt's number, from 1; 0 is filling.
    branch: 0 for a prompt, else the number of the answer.  begins: where each answer begins.
    ahead: the last column of the prompt before it.
    """

    rankings: list[list[_Answer]]
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, answers in enumerate(self.rankings, 1):
            prompt = answers[0].prompt
            self._add(prompt, 0, number, 0)
            self.ahead += [len(self.ids) - 1] * len(answers)
            for branch, said in enumerate(answers, 1):
                self.begins.append(len(self.ids))
                self._add(said.ids, len(prompt), number, branch)

    def _add(self, ids: list[int], first: int, document: int, branch: int) -> None:
        """Append ids whose positions begin at `first`."""
        self.ids += ids
        self.positions += range(first, first + len(ids))
        self.document += [document] * len(ids)
        self.branch += [branch] * len(ids)


def _answers(example: Example, row: int) -> list[_Answer]:
    """Return the answers of a ranking, or of a judged example: its own and that to another prompt."""
    parts = example.parts
    if example.target is None:
        ids, ends = parts["answers"], parts["ends"]
        learnt = parts.get("learnt") or [1] * len(ids)
        begins = [0, *ends[:-1]]
        spans = enumerate(zip(begins, ends, strict=True))
        return [_Answer(example.ids, ids[a:b], learnt[a:b], row, place) for place, (a, b) in spans]
    start = prompt_length(example)
    prompt, labels = example.ids[:start], example.labels[start:]
    own = [int(label != IGNORED) for label in labels]
    answers = [_Answer(prompt, example.ids[start:], own, row, 0, example.target)]
    if other := parts.get(OTHER):
        answers.append(_Answer(prompt, other, parts.get("learnt") or [1] * len(other), row, 1, MISMATCHED))
    return answers


def _size(example: Example, *, packed: bool) -> int:
    """Return the tokens that an example takes: those of all its answers, with the prompt once or for each."""
    parts = example.parts
    if example.target is not None:
        other = len(parts.get(OTHER, ()))
        twice = prompt_length(example) if other and not packed else 0
        return len(example.ids) + other + twice
    prompts = 1 if packed else len(parts["ends"])
    return prompts * len(example.ids) + len(parts["answers"])


def _batch(
    inputs: dict[str, Tensor],
    examples: Sequence[Example],
    answers: Sequence[_Answer],
    begins: Sequence[int],
    ahead: Sequence[int],
) -> AnswerBatch:
    """Build the batch of answers that lie in `inputs`.

    begins: flat position of each answer's first token.  ahead: of the prompt's last token before each.
    """
    states: list[int] = []
    labels: list[int] = []
    owner: list[int] = []
    for number, (said, begin, before) in enumerate(zip(answers, begins, ahead, strict=True)):
        scored = [k for k, use in enumerate(said.learnt) if use]
        states += [begin + k - 1 if k else before for k in scored]
        labels += [said.ids[k] for k in scored]
        owner += [number] * len(scored)
    judged = examples[0].target is not None
    return AnswerBatch(
        inputs=inputs,
        labels=torch.tensor(labels),
        tokens=len(examples) if judged else sum(map(_compared, examples)),
        sources=[example.source for example in examples],
        states=torch.tensor(states),
        owner=torch.tensor(owner),
        row=torch.tensor([said.row for said in answers]),
        place=torch.tensor([said.place for said in answers]),
        last=torch.tensor([a + len(said.ids) - 1 for a, said in zip(begins, answers, strict=True)]),
        scores=_scores(examples),
        good=torch.tensor([said.good for said in answers]) if judged else None,
        reference=_reference(examples),
    )


def _compared(example: Example) -> int:
    """Return how many pairs of a ranking are compared."""
    return len(compared(example.parts.get("scores") or None, len(example.parts["ends"])))


def _scores(examples: Sequence[Example]) -> Tensor | None:
    """Return the scores of all answers, NaN for rankings without; None if there are none at all."""
    if not any(example.parts.get("scores") for example in examples):
        return None
    missing = [[float("nan")] * len(example.parts["ends"]) for example in examples]
    given = [example.parts.get("scores") for example in examples]
    values = [[s / THOUSANDTHS for s in own] if own else nan for own, nan in zip(given, missing, strict=True)]
    return torch.tensor([value for own in values for value in own])


def _reference(examples: Sequence[Example]) -> Tensor | None:
    """Return the reference of all answers; None unless every example has it."""
    if not all(len(example.reference) for example in examples):
        return None
    return torch.tensor([value for example in examples for value in example.reference])
