"""Answers that a model wrote: kept in files as they were, and laid out with every number at its token."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from graft.data.encode import IGNORED, Example
from graft.data.feed import Feed
from graft.data.sampled import Sampled, SampledBatches

PAD = 2


class Tokens:
    pad_token_id, eos_token_id = PAD, PAD  # padding is the end: what counts is told by lengths, never by ids


ROWS = [
    Example(ids, [IGNORED] * len(ids), f"f:{i}", parts={"row": [123, 125]})
    for i, ids in enumerate([[5, 6, 7], [8], [9, 9, 9, 9, 9], [5, 6]], 1)
]
ANSWERS = [[11, 12, 2], [13, 2], [21, 22, 23, 24, 2], [2], [31, 2, 33], [34, 35, 36, 2]]


def sampled():
    """Two answers to each of three prompts; the number `old` of a token is its id in tenths."""
    old = torch.tensor([token / 10 for answer in ANSWERS for token in answer])
    return Sampled(
        [ROWS[2], ROWS[0], ROWS[3]],
        [2, 0, 3],
        [list(answer) for answer in ANSWERS],
        [True, True, False, True, False, True],
        {"old": old, "place": torch.arange(float(len(old)))},
        {"total": torch.tensor([1.0, 0.5, -2.0, 0.25, 3.0, 1e-8]), "f:g": torch.tensor([math.nan] * 6)},
    )


def batches(pack, *, counts="tokens", answers=2, longest=5, numbers=("old", "place"), max_length=64):
    return SampledBatches(
        Tokens, max_length, pack=pack, answers=answers, counts=counts, numbers=numbers, longest=longest
    )


def layouts(examples, **settings):
    """The same examples padded, each in a packed row of its own, and all of them in one row."""
    packs = batches(True, **settings)
    return [
        batches(False, **settings).padded(examples),
        packs.packed([[example] for example in examples]),
        packs.packed([examples]),
    ]


def test_groups_and_lengths_are_told_of_every_answer():
    answers = sampled()
    assert answers.group == 2 and answers.groups().tolist() == [0, 0, 1, 1, 2, 2]
    assert answers.lengths().tolist() == [3, 2, 5, 1, 3, 4]


def test_a_file_gives_back_every_number_bit_for_bit(tmp_path):
    one = sampled()
    save_file(one.tensors(), tmp_path / "answers.safetensors")
    two = Sampled.from_tensors(load_file(tmp_path / "answers.safetensors"), ROWS)
    assert (two.prompts, list(two.places), two.answers, two.ended) == (
        one.prompts, one.places, one.answers, one.ended,
    )  # fmt: skip
    assert two.numbers.keys() == one.numbers.keys() and two.rewards.keys() == one.rewards.keys()
    for before, after in ((one.numbers, two.numbers), (one.rewards, two.rewards)):
        for name, values in before.items():
            assert torch.equal(values.view(torch.int32), after[name].view(torch.int32)), name
    assert two.examples() == one.examples()


def test_an_example_has_the_chosen_answers_in_their_order_with_their_numbers():
    example = sampled().example(1, [1, 0])
    assert (example.ids, example.source) == ([5, 6, 7], "f:1")
    assert example.parts == {"answers": [2, 21, 22, 23, 24, 2], "ends": [1, 6]}
    assert example.numbers["old"] == pytest.approx([0.2, 2.1, 2.2, 2.3, 2.4, 0.2])
    assert example.numbers["place"] == [10, 5, 6, 7, 8, 9]
    alone = sampled().example(2, [1])
    assert alone.parts == {"answers": [34, 35, 36, 2], "ends": [4]}
    assert alone.numbers["place"] == [14, 15, 16, 17]
    assert [len(e.parts["ends"]) for e in sampled().examples()] == [2, 2, 2]


def test_every_number_stands_at_its_token_in_any_layout():
    flat = [token for answer in ANSWERS for token in answer]
    for batch in layouts(sampled().examples()):
        assert batch.labels.tolist() == flat
        torch.testing.assert_close(batch.numbers["old"], torch.tensor(flat) / 10)
        assert batch.numbers["place"].tolist() == list(range(18))
        assert batch.owner.bincount().tolist() == [3, 2, 5, 1, 3, 4]
        ids = batch.inputs["input_ids"].flatten()
        assert ids[batch.last].tolist() == [answer[-1] for answer in ANSWERS]
        # The state that predicts an answer's first token is the last one of its prompt.
        firsts = [0, 3, 5, 10, 11, 14]
        assert ids[batch.states[firsts]].tolist() == [9, 9, 7, 7, 6, 6]


def test_several_prompts_share_a_packed_row_and_keep_their_numbers():
    feed = Feed(sampled().examples(), batches(True, max_length=24), batch_size=3, micro_batch_size=1)
    # 10 + 9 + 9 tokens: the first two of them fit into 24
    found = feed.micro_batches(list(feed.examples))
    assert [len(batch.sources) for batch in found] == [2, 1]
    pairs = [
        pair
        for batch in found
        for pair in zip(batch.labels.tolist(), batch.numbers["old"].tolist(), strict=True)
    ]
    assert len(pairs) == 18 and all(number == pytest.approx(token / 10) for token, number in pairs)
    assert sorted(p for batch in found for p in batch.numbers["place"].tolist()) == list(range(18))


@pytest.mark.parametrize(("counts", "expected"), [("tokens", 18), ("answers", 6), ("pairs", 3)])
def test_the_loss_is_divided_by_what_the_stage_counts(counts, expected):
    for batch in layouts(sampled().examples(), counts=counts):
        assert batch.tokens == expected


def test_only_numbers_that_are_asked_for_are_in_a_batch():
    for batch in layouts(sampled().examples(), numbers=("old",)):
        assert list(batch.numbers) == ["old"]
    for batch in layouts(sampled().examples(), numbers=("old", "later")):
        assert list(batch.numbers) == ["old"]


def test_a_batch_takes_its_numbers_to_another_device():
    batch = batches(False).padded(sampled().examples()).to(torch.device("meta"))
    assert {name: t.device.type for name, t in batch.numbers.items()} == {"old": "meta", "place": "meta"}


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("answers", [1, 3])
def test_a_full_batch_has_the_shape_of_a_real_one_with_the_longest_answers(pack, answers):
    prompt = Example([7] * 6, [IGNORED] * 6)
    said = [[11] * 5 for _ in range(2 * answers)]
    numbers = {"old": torch.zeros(10 * answers), "place": torch.zeros(10 * answers)}
    real = Sampled([prompt] * 2, [0, 0], said, [False] * len(said), numbers).examples()
    laid = batches(pack, answers=answers)
    real = laid.packed([[example] for example in real]) if pack else laid.padded(real)
    full = laid.full(2, 11)  # 6 of the prompt, 5 of the answer
    for name, tensor in real.inputs.items():
        assert full.inputs[name].shape == tensor.shape, name
    assert full.tokens == real.tokens == 10 * answers
    assert full.labels.shape == real.labels.shape and torch.equal(full.states, real.states)
    assert {name: t.shape for name, t in full.numbers.items()} == {
        "old": (10 * answers,),
        "place": (10 * answers,),
    }


def test_a_full_batch_shorter_than_an_answer_has_a_prompt_still():
    full = batches(False, longest=50).full(1, 16)
    assert full.inputs["input_ids"].shape == (2, 16) and full.tokens == 30
