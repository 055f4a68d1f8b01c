"""nf4, fp4, int8, double quantisation: bitsandbytes' bytes, the error table, their properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from graft import kernels
from graft.errors import UsageError
from graft.kernels import Packed
from graft.quant import QuantLinear, Scheme
from graft.quant.fp4 import FP4
from graft.quant.nf4 import NF4

functional = pytest.importorskip("bitsandbytes.functional")


def quantise(w, book, block):
    return kernels.find("quantise_4bit", "cpu")(w, book, block)


def dequantise(codes, absmax, book, block, columns):
    return kernels.find("dequantise", "cpu")(Packed(codes, absmax, book, block, columns), torch.float32)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("seed", range(10))
def test_codes_and_constants_are_those_of_bitsandbytes(name, seed):
    draw = torch.Generator().manual_seed(seed)
    dtype = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
    w = (torch.randn(32 * (seed + 1), 64 * (10 - seed), generator=draw) * 10.0 ** -(seed % 4)).to(dtype)
    block = (64, 32)[seed % 2]
    theirs, state = functional.quantize_4bit(w, blocksize=block, quant_type=name, compress_statistics=True)
    _, plain = functional.quantize_4bit(w, blocksize=block, quant_type=name, compress_statistics=False)
    ours = Scheme(name, block, double=True).quantise(w)
    assert torch.equal(ours["codes"].flatten(), theirs.flatten())
    assert torch.equal(ours["absmax"].flatten(), state.absmax)
    assert torch.equal(ours["nested_absmax"], state.state2.absmax)
    assert torch.equal(ours["nested_offset"][0], state.offset)
    assert torch.equal(Scheme(name, block, double=False).quantise(w)["absmax"].flatten(), plain.absmax)
    weight = QuantLinear.pack(w, Scheme(name, block)).weight
    assert torch.equal(weight, functional.dequantize_4bit(theirs, state).view_as(weight))


def test_int8_codes_are_those_of_bitsandbytes():
    w = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    theirs, rows, _ = functional.int8_vectorwise_quant(w.clone())
    ours = Scheme("int8").quantise(w)
    assert torch.equal(ours["codes"], theirs)
    assert torch.equal(ours["absmax"][:, 0], rows)


SQNR = [
    (NF4, 64, 20.73),
    (FP4, 64, 18.27),
    (NF4, 32, 21.18),
    (NF4, 128, 20.39),
    (NF4, 256, 20.12),
    (NF4, 1024, 19.64),
    (NF4, 4096, 19.18),
]


@pytest.mark.parametrize(("book", "block", "decibels"), SQNR, ids=lambda v: getattr(v, "name", str(v)))
def test_error_on_normal_data_is_that_of_the_table(book, block, decibels):
    x = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(1))
    back = dequantise(*quantise(x, book, block), book, block, 4096)
    noise = (back - x).square().mean(dtype=torch.float64)
    found = 10 * torch.log10(x.square().mean(dtype=torch.float64) / noise)
    assert abs(found.item() - decibels) < 0.03


def test_double_quantisation_costs_next_to_nothing():
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1))
    errors = [
        (QuantLinear.pack(x, Scheme("nf4", 64, double)).weight - x).square().mean()
        for double in (True, False)
    ]
    assert errors[0] / errors[1] == pytest.approx(1.0005, abs=5e-4)


def test_nf4_levels_are_quantiles_of_the_normal_distribution():
    positive = norm.ppf(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:8].numpy())
    negative = -norm.ppf(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:7].numpy())
    levels = torch.tensor(sorted([*negative, 0.0, *positive])) / max(positive)
    torch.testing.assert_close(torch.tensor(NF4.values, dtype=torch.float64), levels, atol=2e-7, rtol=0)


def test_bits_per_weight_are_the_papers():
    assert Scheme("nf4").bits == pytest.approx(4.126953125)
    assert Scheme("nf4", double=False).bits == 4.5
    assert Scheme("int8").bits == 8


rows = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=150)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([NF4, FP4]), st.sampled_from([2, 32, 64]))
def test_quantising_again_gives_the_same_codes(values, book, block):
    w = torch.tensor([values])
    codes, absmax = quantise(w, book, block)
    again = quantise(dequantise(codes, absmax, book, block, len(values)), book, block)
    normal = absmax > 1e-30  # below, products leave the range of normal fp32 numbers
    if normal.all() and book is NF4:
        assert torch.equal(again[0], codes)
    if normal.all():  # FP4 has two zeros: the values must agree, the sign bit of a zero need not
        first = dequantise(codes, absmax, book, block, len(values))
        assert torch.equal(dequantise(*again, book, block, len(values)), first)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([NF4, FP4]))
def test_the_largest_value_of_a_block_comes_back_exactly(values, book):
    w = torch.tensor([values])
    back = dequantise(*quantise(w, book, 64), book, 64, len(values))
    for start in range(0, len(values), 64):
        block = w[0, start : start + 64]
        where = block.abs().argmax()
        if block[where].abs() > 1e-30:
            assert back[0, start + where] == block[where]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 200), st.sampled_from(["nf4", "fp4", "int8"]), st.booleans())
def test_zeros_stay_zeros(out_features, in_features, name, double):
    weight = QuantLinear.pack(torch.zeros(out_features, in_features), Scheme(name, 64, double)).weight
    assert weight.shape == (out_features, in_features) and not weight.any()


def test_a_misspelt_scheme_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'nf4'"):
        Scheme("nf44")
