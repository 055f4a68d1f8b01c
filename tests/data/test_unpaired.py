"""Single answers lie in a batch of their own, and answers to other prompts in another one beside it."""

from dataclasses import replace

import pytest
import torch
from test_answer_batches import Tokens, judged

from graft.data.unpaired import UnpairedBatches

EXAMPLES = [
    judged([5, 6, 7], [11, 12, 2], 1, other=[13, 14, 2]),
    judged([8], [21, 22, 2], 0, other=[11, 12, 2]),
    judged([9, 9], [31, 2], 1),  # the only prompt of its kind: no other answer
]


def tokens(batch):
    """The scored tokens of every answer."""
    return [batch.labels[batch.owner == a].tolist() for a in range(len(batch.last))]


@pytest.mark.parametrize("pack", [False, True])
def test_own_answers_and_those_to_other_prompts_are_apart(pack):
    batches = UnpairedBatches(Tokens, 32, pack=pack)
    batch = batches.packed([EXAMPLES]) if pack else batches.padded(EXAMPLES)
    assert tokens(batch) == [[11, 12, 2], [21, 22, 2], [31, 2]]
    assert batch.good.tolist() == [1, 0, 1] and batch.tokens == 3
    assert tokens(batch.mismatched) == [[13, 14, 2], [11, 12, 2]]
    first = batch.mismatched.inputs["input_ids"][0].tolist()
    assert first[:6] == [5, 6, 7, 13, 14, 2]


def test_rows_without_another_prompt_have_no_mismatched_answers():
    assert UnpairedBatches(Tokens, 32).padded(EXAMPLES[2:]).mismatched is None


def test_each_batch_gets_its_own_part_of_the_reference():
    values = [(-1.0, -2.0), (-3.0, -4.0), (-5.0,)]
    examples = [replace(example, reference=own) for example, own in zip(EXAMPLES, values, strict=True)]
    batch = UnpairedBatches(Tokens, 32).padded(examples)
    assert batch.reference.tolist() == [-1.0, -3.0, -5.0]
    assert batch.mismatched.reference.tolist() == [-2.0, -4.0]
    moved = batch.map(lambda tensor: tensor.to("meta"))
    assert moved.mismatched.labels.is_meta and moved.inputs["input_ids"].is_meta


def test_a_full_batch_has_one_answer_in_every_row():
    for pack in (False, True):
        batch = UnpairedBatches(Tokens, 32, pack=pack).full(3, 8)
        assert batch.tokens == len(batch.last) == 3 and batch.good.tolist() == [1, 1, 1]
        assert torch.equal(batch.lengths(), torch.full((3,), 7))
