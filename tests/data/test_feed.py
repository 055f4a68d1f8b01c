"""Batches are a pure function of seed, epoch and step."""

import pytest
import torch
from stage_tools import encoder_of, feed_of

from graft.data.encode import IGNORED, Example
from graft.data.rows import Row
from graft.errors import UsageError


class Tokens:
    pad_token_id, eos_token_id, mask_token_id = None, 2, None


def rows(n, longest=9):
    return [
        Example([10 + i] * (1 + i * 7 % longest), [10 + i] * (1 + i * 7 % longest), f"f:{i}", target=i % 3)
        for i in range(n)
    ]


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x.labels, y.labels) and x.tokens == y.tokens and x.sources == y.sources
        and all(torch.equal(x.inputs[k], y.inputs[k]) for k in x.inputs) for x, y in zip(a, b, strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("pack", [False, True])
def test_a_step_is_the_same_whatever_was_asked_before(pack):
    def feed(seed=3):
        return feed_of(rows(23), Tokens, batch_size=4, pack=pack, seed=seed, max_length=20)

    one, other = feed(), feed()
    forward = {(e, i): one.step(e, i) for e in range(3) for i in range(one.steps_per_epoch)}
    for (epoch, index), batches in reversed(forward.items()):
        assert same(other.step(epoch, index), batches)
    assert not all(same(feed(4).step(0, i), forward[0, i]) for i in range(6))
    assert not all(same(forward[1, i], forward[0, i]) for i in range(6))


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_every_epoch_sees_every_row_once_in_the_same_number_of_steps(pack, by_length):
    feed = feed_of(rows(23), Tokens, batch_size=4, pack=pack, max_length=20, by_length=by_length)
    assert feed.steps_per_epoch == 6
    for epoch in range(3):
        steps = [[source for batch in feed.step(epoch, i) for source in batch.sources] for i in range(6)]
        assert [len(step) for step in steps] == [4, 4, 4, 4, 4, 3]
        assert sorted(source for step in steps for source in step) == sorted(f"f:{i}" for i in range(23))
    with pytest.raises(IndexError):
        feed.step(0, 6)


def test_packing_and_micro_batches_change_no_step():
    examples = rows(23)
    for pack in (True, False):
        shape = {"batch_size": 8, "pack": pack, "seed": 1, "max_length": 400}
        plain = feed_of(examples, Tokens, micro_batch_size=8, **shape)
        for changes in ({"micro_batch_size": 3}, {"max_length": 16}, {"micro_batch_size": 1}):
            other = feed_of(examples, Tokens, **shape | changes)
            for i in range(3):
                (whole,), parts = plain.step(0, i), other.step(0, i)
                assert sum(batch.tokens for batch in parts) == whole.tokens
                sources = [source for batch in parts for source in batch.sources]
                assert sorted(sources) == sorted(whole.sources)
                alone = plain.batches.padded([examples[int(source[2:])] for source in sources])
                assert alone.tokens == whole.tokens


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_padded_rows_make_the_same_steps_as_packed_ones(micro_batch_size):
    examples = rows(403, longest=97)

    def taken(pack, micro):
        shape = {"batch_size": 8, "max_length": 100, "seed": 5}
        feed = feed_of(examples, Tokens, pack=pack, micro_batch_size=micro, **shape)
        steps = [(epoch, i) for epoch in range(2) for i in range(feed.steps_per_epoch)]
        return [sorted(source for batch in feed.step(*at) for source in batch.sources) for at in steps]

    assert taken(False, micro_batch_size) == taken(True, 2)


def test_steps_by_length_hold_rows_of_similar_length():
    examples = rows(400, longest=97)
    feed = feed_of(examples, Tokens, batch_size=8, micro_batch_size=8, pack=False, by_length=True)
    bucketed = [batch for i in range(feed.steps_per_epoch) for batch in feed.step(0, i)]
    assert waste(bucketed) < 0.15 < 0.3 < waste(as_they_come(feed, examples, 8))


def as_they_come(feed, examples, size):
    return [feed.batches.padded(examples[at : at + size]) for at in range(0, len(examples), size)]


def waste(batches):
    """The share of the places that is padding. Lengths are rounded up to a multiple of 16."""
    masks = [batch.inputs["attention_mask"] for batch in batches]
    return 1 - sum(m.sum().item() for m in masks) / sum(m.numel() for m in masks)


def test_padding_is_masked_by_length_even_where_it_is_the_end_token():
    (batch,) = feed_of(
        [Example([5, 2], [5, 2]), Example([6, 7, 2], [IGNORED, 7, 2])], Tokens, pack=False, max_length=3
    ).step(0, 0)
    assert batch.inputs["input_ids"].tolist() == [[6, 7, 2], [5, 2, 2]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[IGNORED, 7, 2], [5, 2, IGNORED]] and batch.tokens == 3


def test_classes_are_one_label_per_row():
    batches = feed_of(rows(4), Tokens, stage="classify", micro_batch_size=2).step(0, 0)
    for batch in batches:
        assert (
            batch.labels.tolist() == [int(source[2:]) % 3 for source in batch.sources] and batch.tokens == 2
        )


def test_masks_are_drawn_anew_in_each_epoch_and_again_the_same(bert):
    examples = encoder_of(bert, stage="pretrain", objective="masked", family="masked", max_length=40)(
        [Row("f:1", "text", "the cat sat on a mat; a dog ran home. " * 20)]
    ).examples

    def feed():
        masked = {"stage": "pretrain", "objective": "masked", "family": "masked"}
        return feed_of(examples, bert, batch_size=1, pack=False, **masked)

    first, again, later = feed().step(0, 0), feed().step(0, 0), feed().step(1, 0)
    assert same(first, again) and not same(first, later)
    hidden = first[0].labels != IGNORED
    assert first[0].tokens == hidden.sum() == round(0.15 * (examples.lengths()[0] - 2))
    assert (first[0].inputs["input_ids"][hidden] == bert.mask_token_id).any()
    with pytest.raises(UsageError, match="mask token"):
        feed_of(examples, Tokens, stage="pretrain", objective="masked", family="masked")


def test_span_corruption_feeds_encoder_and_shifted_decoder(t5):
    text = "the cat sat on a mat; a dog ran home. " * 4
    examples = encoder_of(t5, stage="pretrain", objective="span", family="seq2seq", max_length=20)(
        [Row("f:1", "text", text)]
    ).examples
    (batch, *_) = feed_of(
        examples,
        t5,
        batch_size=2,
        max_length=20,
        pack=True,
        stage="pretrain",
        objective="span",
        family="seq2seq",
    ).step(0, 0)
    ids, labels, shifted = batch.inputs["input_ids"], batch.labels, batch.inputs["decoder_input_ids"]
    assert ids.shape[1] <= 20 and set(batch.inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    first = t5.convert_tokens_to_ids("<extra_id_0>")
    assert (labels[:, 0] == first).all() and ((ids == first).sum(1) == 1).all()
    assert (shifted[:, 0] == t5.pad_token_id).all()
    kept = labels[:, :-1] != IGNORED
    assert torch.equal(shifted[:, 1:][kept], labels[:, :-1][kept]) and (shifted >= 0).all()
    assert batch.tokens == (labels != IGNORED).sum()


def test_a_tokenizer_without_sentinels_lends_the_last_ids_of_its_vocabulary(llama):
    feed = feed_of([Example(list(range(10, 70)), [1] * 60)], llama, stage="pretrain", objective="span")
    (batch,) = feed.step(0, 0)
    assert batch.labels[0, 0] == len(llama) - 1 and len(llama) - 2 in batch.labels[0]


def test_tagged_rows_are_padded_with_labels_that_carry_no_loss():
    long, short = (
        Example([5, 6, 7], [IGNORED] * 3, parts={"tags": [IGNORED, 1, 0]}),
        Example([5], [IGNORED], parts={"tags": [2]}),
    )
    for family in ("encoder", "causal"):  # nothing is shifted: a tag is its own token's
        feed = feed_of([short, long], Tokens, stage="classify", family=family, max_length=3)
        (batch,) = feed.step(0, 0)
        assert batch.labels.tolist() == [[IGNORED, 1, 0], [2, IGNORED, IGNORED]] and batch.tokens == 3
        assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
