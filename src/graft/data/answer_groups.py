"""Answers to prompts, given as ids, in batches of much the same length; those to one prompt share it."""

from collections.abc import Iterator, Sequence

from graft.data.answer_batches import AnswerBatch, AnswerBatches
from graft.data.encode import IGNORED, Example

Ids = Sequence[int]


def batched(
    batches: AnswerBatches, prompts: Sequence[Ids], answers: Sequence[Ids], most: int
) -> Iterator[tuple[list[int], AnswerBatch]]:
    """Yield batches of at most `most` answers, the longest first, with the places of their answers.

    batches: where it packs, neighbours with the same prompt are computed with it once.
    """
    sizes = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    groups = list(neighbours(prompts, most if batches.packs else 1))
    groups.sort(key=lambda group: -max(sizes[i] for i in group))  # alike lengths together: little padding
    for chosen in _filled(groups, most):
        examples = [_ranking(prompts[group[0]], [answers[i] for i in group]) for group in chosen]
        shared = len(chosen) < sum(map(len, chosen))
        yield (
            [i for group in chosen for i in group],
            batches.packed([[example] for example in examples]) if shared else batches.padded(examples),
        )


def neighbours(prompts: Sequence[Ids], most: int) -> Iterator[list[int]]:
    """Yield the places of at most `most` neighbours with the same prompt, and so on to the end.

    >>> list(neighbours([[1], [1], [1], [2], [1]], 2))
    [[0, 1], [2], [3], [4]]
    """
    group: list[int] = []
    for i, prompt in enumerate(prompts):
        if group and (len(group) == most or list(prompts[group[0]]) != list(prompt)):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _filled(groups: Sequence[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Yield groups that have at most `most` places in all; no group has more."""
    batch: list[list[int]] = []
    for group in groups:
        if batch and sum(map(len, batch)) + len(group) > most:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _ranking(prompt: Ids, answers: Sequence[Ids]) -> Example:
    """Return answers to one prompt as an example of `AnswerBatches`; their order means nothing here."""
    ends = [sum(map(len, answers[: k + 1])) for k in range(len(answers))]
    parts = {"answers": [token for answer in answers for token in answer], "ends": ends}
    return Example(list(prompt), [IGNORED] * len(prompt), parts=parts)
