"""What passes through the model in a step, counted by hand: tokens without padding, and rows."""

import torch

from graft.data.batches import Batch, TokenBatches
from graft.data.encode import Example
from graft.training.passed import Passed, passed


class Tokenizer:
    pad_token_id = 0


def example(length, source):
    return Example(list(range(1, length + 1)), list(range(1, length + 1)), source)


def test_padding_does_not_count():
    batches = TokenBatches(Tokenizer(), 64, causal=True)
    step = [batches.padded([example(5, "a:1"), example(3, "a:2")]), batches.padded([example(7, "a:3")])]
    assert step[0].inputs["input_ids"].numel() > 8, "there is padding"
    assert passed(step) == Passed(tokens=15, rows=3)


def test_rows_that_share_a_row_of_the_batch_count_each():
    batches = TokenBatches(Tokenizer(), 16, causal=True, pack=True)
    packed = batches.packed([[example(9, "a:1"), example(7, "a:2")]])
    assert passed([packed]) == Passed(tokens=16, rows=2)


def test_what_a_decoder_reads_counts_too():
    ids = torch.ones(2, 4, dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids,
        "decoder_input_ids": torch.ones(2, 3, dtype=torch.long),
    }
    assert passed([Batch(inputs, ids, 8, ["a:1", "a:2"])]) == Passed(tokens=14, rows=2)


def test_a_step_without_batches_has_passed_nothing():
    assert passed([]) == Passed(0, 0)
