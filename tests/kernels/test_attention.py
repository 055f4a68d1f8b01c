"""Attention by the kernels against torch's own: values and gradients, on every level of instructions."""

import pytest
import torch

from graft.kernels import native
from graft.kernels.attention import attention, ranges_of, reference, seen

LEVELS = native.levels()
pytestmark = pytest.mark.skipif(not LEVELS, reason="the kernels were not built")


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def heads(batch, count, length, width, dtype=torch.float32, seed=0):
    """Return what a projection gives, seen as heads: no rows of a head lie side by side."""
    made = draw(batch, length, count, width, dtype=dtype, seed=seed).transpose(1, 2)
    return made.detach().requires_grad_()


def documents(lengths):
    """Return the ranges of documents that share a row."""
    first = torch.repeat_interleave(torch.tensor([0, *lengths[:-1]]).cumsum(0), torch.tensor(lengths))
    stop = torch.repeat_interleave(torch.tensor(lengths).cumsum(0), torch.tensor(lengths))
    return torch.stack([first, stop], 1)[None].int()


def both(q, k, v, **settings):
    """Return (output, gradients) of the kernels, and of torch in fp64."""
    weight = draw(*q.shape[:3], v.shape[3], seed=9)
    ours = attention(q, k, v, scale=0.3, **settings)
    got = [ours, *torch.autograd.grad(ours, (q, k, v), weight.to(ours.dtype))]
    doubles = [t.detach().double().requires_grad_() for t in (q, k, v)]
    expected = reference(*doubles, scale=0.3, **settings)
    return got, [expected, *torch.autograd.grad(expected, doubles, weight.to(ours.dtype).double())]


CASES = {
    "one": (1, 1, 1, 1, 1, 8, 8, {}),
    "all": (2, 3, 3, 7, 7, 16, 16, {}),
    "causal": (1, 2, 2, 150, 150, 64, 64, {"causal": True}),
    "odd widths": (2, 2, 2, 37, 37, 13, 21, {"causal": True}),
    "shared keys": (2, 6, 2, 33, 33, 16, 16, {"causal": True}),
    "later queries": (1, 4, 1, 20, 119, 24, 24, {"causal": True}),
    "one query": (2, 4, 2, 1, 40, 16, 16, {"causal": True}),
    "window": (1, 2, 1, 210, 210, 16, 16, {"causal": True, "window": 17}),
    "documents": (1, 2, 2, 215, 215, 16, 16, {"causal": True, "ranges": documents([3, 110, 1, 64, 37])}),
    "whole documents": (1, 2, 2, 130, 130, 16, 16, {"ranges": documents([70, 1, 59])}),
    "other keys": (1, 2, 2, 11, 300, 32, 32, {}),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_torch_in_fp64(level, case):
    batch, count, groups, queries, keys, width, values, settings = CASES[case]
    q, k = heads(batch, count, queries, width, seed=1), heads(batch, groups, keys, width, seed=2)
    v = heads(batch, groups, keys, values, seed=3)
    with native.at_level(level):
        got, expected = both(q, k, v, **settings)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=2e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("side", ["left", "right", "nothing"])
def test_padding_is_seen_by_none_and_a_query_without_keys_gives_zeros(level, side):
    ranges = torch.tensor([[0, 50], [0, 50]])[:, None].repeat(1, 50, 1)
    ranges[1] = torch.tensor({"left": [23, 50], "right": [0, 31], "nothing": [0, 0]}[side])
    q, k, v = (heads(2, 2, 50, 16, seed=seed) for seed in (1, 2, 3))
    with native.at_level(level):
        got, expected = both(q, k, v, causal=True, ranges=ranges.int())
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.nan_to_num(0), atol=3e-6, rtol=2e-5)
    assert side == "right" or not got[0][1, :, 0].any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_rounded_once(level, dtype):
    q, k, v = (heads(1, 4, 70, 32, dtype, seed) for seed in (1, 2, 3))
    with native.at_level(level):
        got, expected = both(q, k, v, causal=True)
    unit = torch.finfo(dtype).eps
    assert all(t.dtype == dtype for t in got)
    if not by_tiles(level, dtype):
        torch.testing.assert_close(got[0].double(), expected[0], atol=unit / 50, rtol=unit * 0.51)
    for ours, theirs in zip(got[1:], expected[1:], strict=True):  # delta comes from the rounded output
        torch.testing.assert_close(ours.double(), theirs, atol=4 * unit, rtol=4 * unit)


def by_tiles(level, dtype):
    """Return whether probabilities are rounded to 16 bits too, as they are for tiles."""
    return level == "amx" and dtype == torch.bfloat16


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_bf16_is_at_least_as_close_as_torch_has_it(level, case):
    batch, count, groups, queries, keys, width, values, settings = CASES[case]
    bf16 = torch.bfloat16
    q, k = heads(batch, count, queries, width, bf16, seed=1), heads(batch, groups, keys, width, bf16, seed=2)
    v = heads(batch, groups, keys, values, bf16, seed=3)
    with native.at_level(level):
        got, expected = both(q, k, v, **settings)
    rounded = [t.detach().requires_grad_() for t in (q, k, v)]
    theirs = reference(*rounded, scale=0.3, **settings)
    weight = draw(*q.shape[:3], values, seed=9).to(bf16)
    theirs = [theirs, *torch.autograd.grad(theirs, rounded, weight)]
    for ours, other, exact in zip(got, theirs, expected, strict=True):
        error, allowed = (float((t.double() - exact).abs().max()) for t in (ours, other))
        assert error <= 1.5 * allowed + 2**-9 * float(exact.abs().max()), (error, allowed)


@pytest.mark.parametrize("level", LEVELS)
def test_scores_of_hundreds_neither_overflow_nor_vanish(level):
    q, k, v = (heads(1, 1, 40, 16, seed=seed) for seed in (1, 2, 3))
    with torch.no_grad():
        q *= 200
    with native.at_level(level):
        got, expected = both(q, k, v, causal=True)
    torch.testing.assert_close(got[0].double(), expected[0], atol=1e-3, rtol=1e-3)  # 4 digits of 1e3
    assert all(t.isfinite().all() for t in got)


@pytest.mark.parametrize("level", LEVELS)
def test_bytes_do_not_depend_on_threads(level):
    q, k, v = (heads(2, count, 130, 16, seed=seed) for count, seed in ((4, 1), (2, 2), (2, 3)))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            with native.at_level(level):
                out = attention(q, k, v, scale=0.25, causal=True)
                found.append([out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("level", LEVELS)
def test_misaligned_and_transposed_inputs(level):
    store = draw(3, 1 + 2 * 21 * 16)
    q, k = (store[i, 1:].view(1, 2, 21, 16) for i in range(2))
    v = draw(1, 2, 16, 21, seed=3).transpose(2, 3)  # its numbers do not lie side by side
    with native.at_level(level):
        out = attention(q, k, v, scale=0.25, causal=True)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-5)


def test_without_queries_nothing_is_written():
    q, k, v = heads(2, 2, 0, 16), heads(2, 2, 5, 16), heads(2, 2, 5, 16)
    assert attention(q, k, v, scale=1.0).shape == (2, 2, 0, 16)


@pytest.mark.parametrize("level", LEVELS)
def test_masks_become_ranges_unless_they_have_gaps(level):
    settings = {"causal": True, "window": 9}
    wanted = documents([5, 1, 20, 14])
    mask = seen(40, 40, ranges=wanted, **settings)[:, None]
    with native.at_level(level):
        ranges = ranges_of(mask)
        assert torch.equal(seen(40, 40, causal=False, ranges=ranges)[:, None], mask)
        mask[0, 0, 30, 28] = False
        assert ranges_of(mask) is None
        assert ranges_of(torch.zeros(1, 1, 2, 3, dtype=torch.bool)).tolist() == [[[0, 0], [0, 0]]]
