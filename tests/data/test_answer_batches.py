"""Two layouts of answers in memory give the log-probabilities of each answer alone."""

import pytest
import torch

from graft.data.answer_batches import MISMATCHED, AnswerBatches
from graft.data.encode import IGNORED, Example
from graft.data.feed import Feed
from models import tiny_base


class Tokens:
    pad_token_id, eos_token_id = 2, 2  # padding is the end: what counts is told by lengths, never by ids


def ranking(prompt, *answers, scores=None, learnt=None, reference=(), source="f:1"):
    ends = [sum(map(len, answers[: k + 1])) for k in range(len(answers))]
    parts = {"answers": [t for a in answers for t in a], "ends": ends}
    parts |= {"scores": scores} if scores else {}
    parts |= {"learnt": learnt} if learnt else {}
    return Example(prompt, [IGNORED] * len(prompt), source, parts=parts, reference=reference)


def judged(prompt, answer, good, other=None):
    parts = {"other": other} if other else {}
    return Example(prompt + answer, [IGNORED] * len(prompt) + answer, "f:1", target=good, parts=parts)


RANKINGS = [
    ranking([5, 6, 7], [11, 12, 2], [13, 2], [14, 15, 16, 17, 2], source="f:1"),
    ranking([8], [21, 2], [22, 23, 24, 2], scores=[2500, -1000], source="f:2"),
    ranking([5, 6, 9, 9, 9], [31, 2, 33, 2], [34, 35, 36, 2], learnt=[1, 1, 0, 1, 1, 1, 1, 1], source="f:3"),
]


def layouts(examples, max_length=32):
    """The same examples padded, each group of `packed` in a row of its own, and all of them in one row."""
    padded = AnswerBatches(Tokens, max_length).padded(examples)
    packs = AnswerBatches(Tokens, max_length, pack=True)
    return [padded, packs.packed([[example] for example in examples]), packs.packed([examples])]


def logprobs(base, batch):
    """Return log p of every scored token by the model's own logits."""
    keywords = dict(batch.inputs)
    logits = base(keywords.pop("input_ids"), **keywords).logits.flatten(0, 1)
    return logits[batch.states].log_softmax(-1).gather(-1, batch.labels[:, None])[:, 0]


def alone(base, prompt, answer, learnt=None):
    """Return the sum over an answer's tokens of log p, from one forward over prompt and answer."""
    logits = base(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    at = range(len(prompt), len(prompt) + len(answer))
    return sum(logits[k - 1, (prompt + answer)[k]] for k in at if learnt is None or learnt[k - len(prompt)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_answers_have_the_same_log_probability_in_both_layouts_and_alone(family):
    base = tiny_base(family)
    base.model.double()
    assert base.unpackable(32) is None
    expected = []
    for example in RANKINGS:
        begins = [0, *example.parts["ends"]]
        for k, end in enumerate(example.parts["ends"]):
            learnt = example.parts.get("learnt")
            span = slice(begins[k], end)
            kept = learnt[span] if learnt else None
            expected.append(alone(base, example.ids, example.parts["answers"][span], kept))
    for batch in layouts(RANKINGS):
        sums = torch.zeros(len(batch.row), dtype=torch.float64)
        sums = sums.index_add(0, batch.owner, logprobs(base, batch))
        torch.testing.assert_close(sums, torch.stack(expected), atol=1e-9, rtol=0)


def test_a_batch_says_whose_each_token_is_and_which_pairs_are_compared():
    for batch in layouts(RANKINGS):
        assert batch.row.tolist() == [0, 0, 0, 1, 1, 2, 2] and batch.place.tolist() == [0, 1, 2, 0, 1, 0, 1]
        assert batch.labels.tolist() == [
            *[11, 12, 2], *[13, 2], *[14, 15, 16, 17, 2], *[21, 2], *[22, 23, 24, 2], *[31, 2, 2],
            *[34, 35, 36, 2],
        ]  # fmt: skip
        assert batch.owner.bincount().tolist() == [3, 2, 5, 2, 4, 3, 4]
        assert [x.tolist() for x in batch.pairs()] == [[0, 0, 1, 3, 5], [1, 2, 2, 4, 6]]
        assert batch.tokens == 5 and batch.sources == ["f:1", "f:2", "f:3"]
        ids = batch.inputs["input_ids"].flatten()
        assert ids[batch.last].tolist() == [2] * 7  # the end of each answer, not the first that looks like it
        assert batch.scores[3:5].tolist() == [2.5, -1.0] and batch.scores.isnan().tolist() == [
            *[True] * 3, False, False, True, True,
        ]  # fmt: skip
        assert batch.good is None and batch.reference is None


def test_answers_of_equal_scores_are_not_compared():
    tied = ranking([5], [11, 2], [12, 2], [13, 2], scores=[3000, 1000, 1000])
    for batch in layouts([tied]):
        assert [x.tolist() for x in batch.pairs()] == [[0, 0], [1, 2]] and batch.tokens == 2


def test_a_packed_row_holds_the_prompt_once_and_an_answer_sees_no_other():
    batch = AnswerBatches(Tokens, 32, pack=True).packed([RANKINGS[:1], RANKINGS[1:2]])
    assert batch.inputs["input_ids"][0].tolist() == [5, 6, 7, 11, 12, 2, 13, 2, 14, 15, 16, 17, 2, 2, 2, 2]
    assert batch.inputs["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 3, 4, 5, 6, 7, 0, 0, 0]
    mask = batch.inputs["attention_mask"]
    assert mask.shape == (2, 1, 16, 16) and mask.dtype == torch.bool
    assert mask[0, 0, 7].nonzero()[:, 0].tolist() == [0, 1, 2, 6, 7]
    assert mask.any(-1).all()  # no row of the mask is empty
    assert batch.states[:3].tolist() == [2, 3, 4] and batch.states[3:5].tolist() == [2, 6]


def test_positions_begin_where_the_model_begins_them():
    batch = AnswerBatches(Tokens, 32, pack=True, first_position=2).packed([RANKINGS[1:2]])
    assert batch.inputs["position_ids"][0, :7].tolist() == [2, 3, 4, 3, 4, 5, 6]


def test_judged_answers_bring_the_answer_to_another_prompt():
    examples = [judged([5, 6], [11, 2], 1, other=[12, 13, 2]), judged([7], [12, 13, 2], 0)]
    base = tiny_base()
    base.model.double()
    expected = [
        alone(base, [5, 6], [11, 2]), alone(base, [5, 6], [12, 13, 2]), alone(base, [7], [12, 13, 2])
    ]  # fmt: skip
    for batch in layouts(examples):
        assert batch.good.tolist() == [1, MISMATCHED, 0] and batch.row.tolist() == [0, 0, 1]
        assert batch.tokens == 2
        sums = torch.zeros(3, dtype=torch.float64).index_add(0, batch.owner, logprobs(base, batch))
        torch.testing.assert_close(sums, torch.stack(expected), atol=1e-9, rtol=0)


def test_the_reference_stands_beside_its_answers_however_rows_are_dealt_out():
    examples = [
        ranking([5] * (1 + k % 4), [11] * (1 + k % 3) + [2], [12, 2], reference=(-k - 0.5, -k - 0.25))
        for k in range(9)
    ]
    for pack in (False, True):
        feed = Feed(examples, AnswerBatches(Tokens, 16, pack=pack), batch_size=4, micro_batch_size=3)
        seen = []
        for step in range(feed.steps_per_epoch):
            for batch in feed.step(0, step):
                seen += batch.reference.tolist()
                assert batch.reference.dtype == torch.float32 and len(batch.reference) == len(batch.row)
        assert sorted(seen[::2]) == sorted(-k - 0.5 for k in range(9)) and len(seen) == 18


def test_the_longest_batch_is_that_with_the_most_tokens():
    short = ranking([5] * 9, [11, 2], [12, 2])
    long = ranking([5], [11] * 9 + [2], [12] * 9 + [2])
    for pack in (False, True):
        batches = AnswerBatches(Tokens, 32, pack=pack)
        assert batches.sizes([short, long]) == ([13, 21] if pack else [22, 22])
        feed = Feed([short] * 3 + [long], batches, batch_size=2, micro_batch_size=1)
        assert feed.longest().inputs["input_ids"].numel() == max(
            batch.inputs["input_ids"].numel() for i in range(2) for batch in feed.step(0, i)
        )


@pytest.mark.parametrize("pack", [False, True])
def test_a_full_batch_has_the_shape_of_a_real_one(pack):
    batches = AnswerBatches(Tokens, 8, pack=pack)
    example = ranking([5], [11] * 6 + [2], [12] * 6 + [2])
    real = batches.packed([[example], [example]]) if pack else batches.padded([example, example])
    full = batches.full(2, 8)
    assert full.inputs.keys() == real.inputs.keys()
    for name, value in real.inputs.items():
        assert full.inputs[name].ndim == value.ndim and full.inputs[name].numel() >= value.numel()
    assert full.labels.shape == full.states.shape == full.owner.shape == real.states.shape
    assert torch.equal(full.row, real.row) and torch.equal(full.place, real.place)
    assert full.tokens == real.tokens and full.states.max() < full.inputs["input_ids"].numel()


def test_rankings_share_a_row_as_far_as_they_fit_and_a_longer_one_has_its_own():
    short = ranking([5], [11] * 4 + [2], [12] * 4 + [2])  # 11 tokens
    long = ranking([5], [11] * 14 + [2], [12] * 14 + [2])  # 31 tokens; each of its answers fits into 24
    feed = Feed([short] * 5 + [long], AnswerBatches(Tokens, 24, pack=True), batch_size=6, micro_batch_size=1)
    shapes = [(batch.inputs["input_ids"].shape[1], len(batch.sources)) for batch in feed.step(0, 0)]
    assert sorted(shapes) == [(16, 1), (24, 2), (24, 2), (32, 1)]
