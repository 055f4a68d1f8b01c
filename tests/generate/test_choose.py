"""Choosing tokens. Oracles: transformers' LogitsProcessors, OpenAI's definitions by hand, scipy."""

import pytest
import torch
from scipy.stats import chisquare
from transformers.generation import logits_process as theirs

from graft.generate.choose import Chooser
from graft.generate.request import Request
from graft.generate.sampling import Sampling

V = 50
LOGITS = torch.randn(3, V, generator=torch.Generator().manual_seed(0)) * 3
PROMPT, WRITTEN = [3, 7, 7, 9], [4, 7, 11, 11, 11]


def requests(*hows, tokens=WRITTEN, ends=()):
    made = [Request(list(PROMPT), how=how, ends=frozenset(ends), index=row) for row, how in enumerate(hows)]
    for request in made:
        request.tokens = list(tokens)
    return made


def processed(logits, *processors):
    """Return transformers' scores for one row after its processors."""
    ids = torch.tensor([PROMPT + WRITTEN])
    for processor in processors:
        logits = processor(ids, logits)
    return logits


@pytest.mark.parametrize("penalty", [0.6, 1.3, 2.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    chooser = Chooser(requests(Sampling(repetition_penalty=penalty)), V)
    expected = processed(LOGITS[:1], theirs.RepetitionPenaltyLogitsProcessor(penalty))
    torch.testing.assert_close(chooser._penalised(LOGITS[:1]), expected)


def test_presence_and_frequency_are_taken_off_for_the_text_alone():
    chooser = Chooser(requests(Sampling(presence_penalty=0.5, frequency_penalty=0.25)), V)
    expected = LOGITS[0].clone()
    for token, times in {4: 1, 7: 1, 11: 3}.items():
        expected[token] -= 0.5 + 0.25 * times
    torch.testing.assert_close(chooser._penalised(LOGITS[:1])[0], expected)


def test_a_chosen_token_counts_from_then_on():
    (request,) = made = requests(Sampling(frequency_penalty=2.0), tokens=[])
    chooser = Chooser(made, V)
    logits = torch.zeros(1, V)
    logits[0, 5], logits[0, 6] = 3.0, 2.0
    chosen = [chooser.choose(logits)[0][0] for _ in range(3)]
    assert chosen == [5, 6, 5] and request.tokens == []


def test_rows_with_penalties_and_rows_without_share_a_batch():
    plain, strict = Sampling(), Sampling(repetition_penalty=1.5, presence_penalty=1.0)
    mixed = Chooser(requests(plain, strict, plain), V)._penalised(LOGITS)
    alone = Chooser(requests(strict), V)._penalised(LOGITS[1:2])
    assert torch.equal(mixed[[0, 2]], LOGITS[[0, 2]]) and torch.equal(mixed[1:2], alone)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.3}, {"top_k": 4}, {"top_k": 1}, {"top_p": 0.7}, {"top_p": 0.05}, {"min_p": 0.1},
        {"temperature": 2.0, "top_k": 10, "top_p": 0.8, "min_p": 0.05}, {"top_k": 60},
    ],
)  # fmt: skip
def test_filters_are_those_of_transformers_in_their_order(settings):
    chooser = Chooser(requests(Sampling(do_sample=True, **settings)), V)
    warpers = {
        "temperature": theirs.TemperatureLogitsWarper, "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper, "min_p": theirs.MinPLogitsWarper,
    }  # fmt: skip
    expected = processed(LOGITS[:1], *(warpers[name](value) for name, value in settings.items())).softmax(1)
    got = chooser._filtered(LOGITS[:1])
    torch.testing.assert_close(got / got.sum(), expected)


def test_filters_of_different_rows_do_not_mix():
    hows = [Sampling(do_sample=True, top_k=3), Sampling(do_sample=True, top_p=0.6), Sampling(do_sample=True)]
    together = Chooser(requests(*hows), V)._filtered(LOGITS)
    for row, how in enumerate(hows):
        alone = Chooser(requests(how), V)._filtered(LOGITS[row : row + 1])
        assert torch.equal(together[row : row + 1], alone)


def test_top_p_finds_its_tokens_beyond_the_first_thousand():
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1)) * 0.1  # nearly flat
    got = Chooser(requests(Sampling(do_sample=True, top_p=0.9)), 5000)._filtered(logits)
    expected = theirs.TopPLogitsWarper(0.9)(torch.zeros(1, 1), logits)
    assert abs(int((got > 0).sum()) - int(expected.isfinite().sum())) <= 1  # of the order of additions
    assert 4000 < int((got > 0).sum()) < 4900


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, -30.0]])
    chooser, counts = Chooser(requests(Sampling(do_sample=True, seed=1), tokens=[]), 5), [0] * 5
    for _ in range(4000):
        counts[chooser.choose(logits)[0][0]] += 1
    expected = (logits[0, :4].double().softmax(0) * 4000).tolist()
    assert counts[4] == 0 and chisquare(counts[:4], expected).pvalue > 0.01


def test_a_row_draws_the_same_whatever_stands_beside_it():
    hows = [Sampling(do_sample=True, seed=4), Sampling(), Sampling(do_sample=True, seed=5, top_k=9)]
    together = Chooser(requests(*hows), V)
    got = [together.choose(LOGITS)[0] for _ in range(6)]
    for row in range(3):
        made = [requests(*hows)[row]]
        alone = Chooser(made, V)
        assert [alone.choose(LOGITS[row : row + 1])[0][0] for _ in range(6)] == [step[row] for step in got]
    assert len({tuple(step) for step in got}) > 1


def test_a_bias_forces_and_bans_tokens():
    best = int(LOGITS[0].argmax())
    hows = [Sampling(logit_bias={17: 100}), Sampling(logit_bias={best: -100, 10**9: 5}), Sampling()]
    chosen = Chooser(requests(*hows), V).choose(LOGITS[:1].expand(3, -1))[0]
    assert chosen == [17, int(LOGITS[0].topk(2).indices[1]), best]


def test_end_tokens_wait_for_the_least_length():
    best = LOGITS[0].topk(3).indices.tolist()
    (request,) = made = requests(Sampling(min_new_tokens=2), tokens=[1], ends=best[:2])
    chooser = Chooser(made, V)
    expected = theirs.MinNewTokensLengthLogitsProcessor(0, 2, best[:2])(torch.zeros(1, 1), LOGITS[:1])
    assert torch.equal(chooser._without_ends(LOGITS[:1]), expected)
    assert chooser.choose(LOGITS[:1])[0] == best[2:]
    request.tokens.append(best[2])
    assert chooser.choose(LOGITS[:1])[0] == best[:1]


def test_log_probabilities_are_of_the_logits_as_they_are():
    hows = [Sampling(), Sampling(logprobs=0, repetition_penalty=3.0), Sampling(logprobs=2, temperature=9.0)]
    made = requests(*hows)
    tokens, _ = Chooser(made, V).choose(LOGITS)
    logged = LOGITS.log_softmax(1)
    assert made[0].logprobs == [] == made[1].top_logprobs
    assert made[1].logprobs == pytest.approx([float(logged[1, tokens[1]])])
    assert list(made[2].top_logprobs[0]) == LOGITS[2].topk(2).indices.tolist()
    assert made[2].logprobs[0] == made[2].top_logprobs[0][tokens[2]]


def test_the_logits_stay_as_they_are():
    before = LOGITS.clone()
    how = Sampling(
        do_sample=True, temperature=2.0, top_k=3, repetition_penalty=2.0, logit_bias={1: 5}, min_new_tokens=9
    )
    Chooser(requests(how, how, how, ends=[2]), V).choose(LOGITS)
    assert torch.equal(LOGITS, before)
