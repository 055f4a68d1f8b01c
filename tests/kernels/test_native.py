"""The C kernels against the torch reference, at every level that runs here."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from graft import kernels
from graft.errors import UsageError
from graft.kernels import groups, native, native_packed, reference
from graft.kernels.low_rank import low_rank, ready
from graft.kernels.packed import Grouped, Nested, Packed
from graft.quant.dynamic import SIGNED
from graft.quant.scheme import CODEBOOKS

pytestmark = pytest.mark.skipif(not native.levels(), reason="the kernels were not built")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=native.levels(), autouse=True)
def level(request):
    with native.at_level(request.param):
        yield request.param


@pytest.fixture(params=[1, 4])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(name, rows, columns, block=64):
    """Return a weight in one of the schemes of the kernels."""
    weight = draw(rows, columns)
    if name in ("fp32", "bf16", "fp16"):
        return weight.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name])
    if name == "int8":
        return Packed(*reference.quantise_int8(weight), None, block, columns)
    if name.startswith("int"):
        bits = int(name[3])
        return Grouped(*groups.quantise_groups(weight, bits, 32), bits, 32, columns)
    book = CODEBOOKS[name.split("+")[0]]
    codes, absmax = reference.quantise_4bit(weight, book, block)
    if not name.endswith("+nested"):
        return Packed(codes, absmax, book, block, columns)
    small = torch.randint(0, 256, absmax.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    nested = Nested(draw(-(-absmax.numel() // 256), seed=2).abs(), torch.tensor([0.3]), SIGNED)
    return Packed(codes, small, book, block, columns, nested)


def values(weight, dtype=torch.float32):
    if isinstance(weight, torch.Tensor):
        return weight.to(dtype)
    plain = groups.dequantise_groups if isinstance(weight, Grouped) else reference.dequantise
    return plain(weight, dtype)


SCHEMES = ["nf4", "fp4", "nf4+nested", "int8", "int2_", "int3_", "int4_", "int8_"]
SHAPES = [(1, 1), (3, 2), (5, 37), (17, 64), (16, 100), (70, 129)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_decoded_weights_have_the_bits_of_the_reference(scheme, shape, threads):
    weight = packed(scheme, *shape)
    decode = native_packed.dequantise_groups if isinstance(weight, Grouped) else native_packed.dequantise
    for dtype in DTYPES:
        assert torch.equal(decode(weight, dtype), values(weight, dtype))


@pytest.mark.parametrize("book", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_those_of_the_reference(book, shape, dtype):
    weight = draw(*shape).to(dtype)
    weight[0] = 0  # a block of zeros
    for ours, theirs in zip(
        native_packed.quantise_4bit(weight, CODEBOOKS[book], 64),
        reference.quantise_4bit(weight, CODEBOOKS[book], 64),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    ours, theirs = native_packed.quantise_int8(weight), reference.quantise_int8(weight)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("place", [0, 33, 64, 69])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_shows_in_the_absmax(place, value):
    weight = draw(2, 70)
    weight[1, place] = value
    for absmax in (
        native_packed.quantise_4bit(weight, CODEBOOKS["nf4"], 64)[1],
        native_packed.quantise_int8(weight)[1],
    ):
        assert torch.isfinite(absmax[0]).all() and not torch.isfinite(absmax[1]).all()


@pytest.mark.parametrize("scheme", [*SCHEMES, "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("m", [0, 1, 5, 29])
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (70, 129), (64, 64), (600, 450)])
def test_products_are_those_of_the_decoded_weight(scheme, m, shape, level, threads, monkeypatch):
    monkeypatch.setattr(
        native, "_bf16_is_faster", lambda: True
    )  # so that pairs are multiplied where they can be
    weight = packed(scheme, *shape)
    described, (n, inner) = native.weight(weight), shape
    for dtype in DTYPES:
        # Pairs of bf16 are multiplied with weights that were rounded to it; few rows are not.
        in_pairs = dtype == torch.bfloat16 and level in native.IN_PAIRS and scheme not in ("fp32", "fp16")
        exact = values(weight).double()
        rounded = values(weight, dtype).double() if in_pairs else exact
        x, dy, bias = draw(m, inner).to(dtype), draw(m, n).to(dtype), draw(n)
        y = native.product([native.term(x, described)], torch.empty(m, n, dtype=dtype), bias)
        dx = native.product([native.term(dy, described, across=True)], torch.empty(m, inner, dtype=dtype))
        close = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
        for ours, theirs in (
            (y, x.double() @ (exact if m <= 16 else rounded).T + bias),
            (dx, dy.double() @ rounded),
        ):
            torch.testing.assert_close(ours.double(), theirs, rtol=close, atol=close * inner**0.5)


def test_a_product_is_a_sum_of_terms_with_scales_and_transposed_operands():
    x, W, u, B = draw(9, 300), draw(21, 300), draw(4, 9), draw(21, 4)
    terms = [native.term(x, native.weight(W)), native.term(u.T, native.weight(B), scale=-0.5)]
    y = native.product(terms, torch.empty(9, 21))
    torch.testing.assert_close(y, x @ W.T - 0.5 * u.T @ B.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    weight = native.weight(kept := packed("nf4", 1300, 200))
    found, x = [], draw(50, 200).to(dtype)
    for count in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        found.append(native.product([native.term(x, weight)], torch.empty(50, 1300, dtype=dtype)))
        torch.set_num_threads(before)
    assert torch.equal(*found) and len(kept.codes) == 1300


@pytest.mark.parametrize("scheme", ["nf4+nested", "int4_", "fp32", "bf16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "shape", "r"), [(0, (70, 129), 5), (1, (70, 129), 5), (13, (70, 129), 5), (40, (600, 450), 20)]
)
def test_a_low_rank_update_has_the_values_and_gradients_of_torch(scheme, dtype, m, shape, r, threads):
    weight, (n, inner) = packed(scheme, *shape), shape
    tensors = [weight] if isinstance(weight, torch.Tensor) else [t for t in weight if torch.is_tensor(t)]
    A, B, bias = (draw(*s, seed=i).requires_grad_() for i, s in enumerate([(r, inner), (n, r), (n,)], 3))
    x, dy = draw(2, m, inner).to(dtype).requires_grad_(), draw(2, m, n, seed=9).to(dtype)
    assert ready(x, A, B)
    y = low_rank(x, tensors, lambda t: t[0] if torch.is_tensor(weight) else weight, bias, (A, B, 0.5))
    ours = [y, *torch.autograd.grad(y, [x, A, B, bias], dy)]
    wide = x.double()
    plain = F.linear(wide, values(weight).double(), bias.double())
    expected = plain + 0.5 * wide @ A.double().T @ B.double().T
    theirs = [expected, *torch.autograd.grad(expected, [x, A, B, bias], dy.double())]
    close = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}[dtype]
    assert y.dtype == dtype and ours[1].dtype == dtype
    for one, other in zip(ours, theirs, strict=True):
        scale = max(other.abs().amax().item(), 1e-9) if other.numel() else 1.0
        torch.testing.assert_close(one.double() / scale, other.double() / scale, rtol=0, atol=close)


def test_operands_may_lie_at_odd_places_and_with_gaps():
    store = draw(5 * 131 + 1)
    x = store[1:].view(5, 131)[:, :129]  # misaligned, and rows are not adjacent
    weight = packed("nf4", 70, 129)
    y = native_packed.linear(x, weight, None)
    torch.testing.assert_close(y, x @ values(weight).T, rtol=1e-5, atol=1e-4)


def test_what_the_kernels_cannot_do_is_left_to_the_reference():
    weight = packed("nf4", 6, 64)
    x = draw(2, 64).double()
    assert torch.equal(native_packed.linear(x, weight, None), reference.linear(x, weight, None))
    assert not native.usable(x) and not native.usable(torch.empty(1, device="meta"))
    with native.at_level("reference"):
        assert not native.usable(x.float())


def test_an_unknown_level_is_named():
    with pytest.raises(UsageError, match="avx9"), native.at_level("avx9"):
        pass


def test_every_level_can_be_forced_from_outside(level):
    code = "from graft.kernels import native; print(native.level())"
    forced = {**os.environ, "GRAFT_KERNELS": level}
    found = subprocess.run([sys.executable, "-c", code], env=forced, capture_output=True, text=True)
    assert found.stdout.strip() == level


def test_without_the_library_the_reference_works(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "missing")
    native.library.cache_clear()
    try:
        assert native.library() is None
    finally:
        native.library.cache_clear()


def test_the_reference_is_used_inside_only_reference():
    with kernels.only_reference():
        assert kernels.find("linear", "cpu") is reference.linear
    assert kernels.find("linear", "cpu") is native_packed.linear
