"""Random numbers by address, hidden tokens, corrupted spans."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from graft.data import noise


def splitmix64(state, n):
    """Steele, Lea and Flood 2014 in Python's whole numbers."""
    out, mask = [], (1 << 64) - 1
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_bits_are_splitmix64():
    # First numbers of the generator with seed 0, as in its published test vectors.
    assert splitmix64(0, 2) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert [b % (1 << 64) for b in noise.bits(5).tolist()] == splitmix64(0, 5)
    (state,) = splitmix64(7, 1)
    assert [b % (1 << 64) for b in noise.bits(3, 7).tolist()] == splitmix64(state, 3)


def test_an_order_is_that_of_the_numbers_on_every_machine():
    (state,) = splitmix64(7, 1)
    signed = [b - (b >> 63 << 64) for b in splitmix64(state, 50)]
    assert noise.shuffled(50, 7).tolist() == sorted(range(50), key=signed.__getitem__)


def test_uniform_numbers_are_uniform_and_belong_to_their_address():
    a, b = noise.uniform(20_000, 1, 2, 3), noise.uniform(20_000, 1, 2, 4)
    assert torch.equal(a, noise.uniform(20_000, 1, 2, 3))
    assert a.min() >= 0 and a.max() < 1
    assert abs(a.mean() - 0.5) < 0.01 and abs(a.var() - 1 / 12) < 0.005  # 5 standard errors
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.04


def test_masking_hides_fifteen_percent_of_what_may_be_hidden():
    ids, allowed = torch.arange(10, 10_010), torch.ones(10_000, dtype=torch.bool)
    allowed[::2] = False
    noisy, labels = noise.masked(ids, allowed, 4, torch.arange(5, 9), 0)
    chosen = labels != -100
    assert chosen.sum() == 750 and not (chosen & ~allowed).any()
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(noisy[~chosen], ids[~chosen])
    kinds = noisy[chosen]
    assert abs((kinds == 4).float().mean() - 0.8) < 0.06  # 4 standard errors of 750 draws
    assert abs(((kinds >= 5) & (kinds < 9)).float().mean() - 0.1) < 0.05
    assert abs((kinds == ids[chosen]).float().mean() - 0.1) < 0.05


def test_a_single_token_is_hidden_too():
    _, labels = noise.masked(
        torch.tensor([2, 9, 3]), torch.tensor([False, True, False]), 4, torch.arange(5, 9), 1
    )
    assert labels.tolist() == [-100, 9, -100]


def test_lengths_are_those_of_t5():
    # Raffel et al.: 568 raw tokens give 512 inputs and 114 targets, 28 spans with 85 tokens.
    assert noise.raw_length(512) == 568 and noise.counts(568) == (85, 28)
    read, write = noise.corrupted(torch.arange(1000, 1568), list(range(99, 60, -1)), 1, 0)
    assert (len(read), len(write)) == (512, 114)


@given(st.integers(2, 80), st.integers(0, 1000))
def test_a_corrupted_text_can_be_put_together_again(length, seed):
    ids, sentinels = torch.arange(1000, 1000 + length), list(range(99, 60, -1))
    read, write = noise.corrupted(ids, sentinels, 1, seed)
    assert read[-1] == write[-1] == 1
    hidden = {}
    for token in write[:-1]:
        hidden.setdefault(token, []) if token < 1000 else hidden[list(hidden)[-1]].append(token)
    assert list(hidden) == [token for token in read[:-1] if token < 1000] and all(hidden.values())
    assert [t for token in read[:-1] for t in hidden.get(token, [token])] == ids.tolist()
