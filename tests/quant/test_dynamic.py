"""The 8-bit dynamic map and block-wise states, against bitsandbytes' map and a plain nearest-level search."""

import pytest
import torch

from graft.quant import dequantise_state, quantise_state
from graft.quant.dynamic import dynamic_map


def test_the_signed_map_has_the_published_sums():
    levels = torch.tensor(dynamic_map(signed=True), dtype=torch.float64)
    assert len(levels) == 256 and levels.max() == 1
    assert levels.min() == pytest.approx(-0.99296874, abs=1e-7)
    assert levels.sum() == pytest.approx(1.0, abs=1e-6)
    assert levels.abs().sum() == pytest.approx(75.10526, abs=1e-5)


def test_the_unsigned_map_has_the_published_sums():
    levels = torch.tensor(dynamic_map(signed=False), dtype=torch.float64)
    assert len(levels) == 256
    assert levels.sum() == pytest.approx(75.10526, abs=1e-5)
    assert levels[levels > 0][:2].tolist() == pytest.approx([3.25e-7, 7.75e-7], rel=1e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_that_of_bitsandbytes(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(torch.tensor(dynamic_map(signed)), functional.create_dynamic_map(signed))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(7, 100), (256,), (3,), (2, 256)])
def test_a_state_takes_the_nearest_level_of_its_block(signed, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    x = x if signed else x.square()
    codes, absmax = quantise_state(x, signed)
    levels = torch.tensor(dynamic_map(signed))
    back = dequantise_state(codes, absmax, signed).flatten()
    for index, block in enumerate(x.flatten().split(256)):
        assert absmax[index] == block.abs().max()
        best = (block[:, None] / absmax[index] - levels).abs().amin(dim=1) * absmax[index]
        found = (back[index * 256 : index * 256 + len(block)] - block).abs()
        torch.testing.assert_close(
            found, best, atol=1e-6 * absmax[index].item(), rtol=0
        )  # rounding of the division
    assert codes.shape == x.shape and codes.dtype == torch.uint8


def test_small_second_moments_do_not_vanish():
    v = torch.full((256,), 1e-6)
    v[0] = 1.0
    assert (dequantise_state(*quantise_state(v, signed=False), signed=False) > 0).all()


def test_a_state_can_be_written_into_a_tensor():
    x = torch.randn(300, generator=torch.Generator().manual_seed(0))
    state, out = quantise_state(x, signed=True), torch.full((300,), torch.nan)
    assert dequantise_state(*state, signed=True, out=out) is out
    assert torch.equal(out, dequantise_state(*state, signed=True))
