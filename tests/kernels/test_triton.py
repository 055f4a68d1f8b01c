"""Triton's kernels of packed weights under its interpreter, against torch.

The interpreter's conversion from fp32 to bf16 cuts the lower bits off, where a GPU rounds to the nearest
(`test_triton_compiled` looks for that instruction): oracles in bf16 are cut here too.
"""

import pytest
import torch
from interpreted import DTYPES, close, draw, interpreted, passes, starts_it

from graft import kernels
from graft.kernels import gpu, groups, reference
from graft.kernels.packed import Grouped, Nested, Packed
from graft.quant.dynamic import SIGNED
from graft.quant.scheme import CODEBOOKS


@starts_it
def test_the_kernels_of_packed_weights_pass_under_the_interpreter():
    passes(__file__)


def packed(name, rows, columns, block):
    """Return a weight in one of the schemes."""
    weight = draw(rows, columns)
    if name == "int8":
        return Packed(*reference.quantise_int8(weight), None, block, columns)
    if name.startswith("int"):
        bits = int(name[3])
        return Grouped(*groups.quantise_groups(weight, bits, block), bits, block, columns)
    book = CODEBOOKS[name[:3]]
    codes, absmax = reference.quantise_4bit(weight, book, block)
    if not name.endswith("+nested"):
        return Packed(codes, absmax, book, block, columns)
    small = torch.randint(0, 256, absmax.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    nested = Nested(draw(-(-absmax.numel() // 256), seed=2).abs(), torch.tensor([0.3]), SIGNED)
    return Packed(codes, small, book, block, columns, nested)


def plain(weight):
    return groups.dequantise_groups if isinstance(weight, Grouped) else reference.dequantise


def found(operation, weight):
    return kernels.find(operation + "_groups" if isinstance(weight, Grouped) else operation, "cuda")


def as_interpreted(values, dtype):
    """Return fp32 values in `dtype`, converted as the interpreter does."""
    if dtype == torch.bfloat16:
        return (values.view(torch.int32) & -65536).view(torch.float32).bfloat16()
    return values.to(dtype)


SCHEMES = ["nf4", "fp4", "nf4+nested", "int8", "int2", "int4", "int8_"]
# Odd rows, rows that a block does not divide, whole blocks (decoded as one row), more than one program.
SHAPES = [(1, 1, 64), (5, 37, 32), (17, 64, 64), (7, 130, 64), (3, 256, 256)]


@interpreted
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_decoded_weights_have_the_bits_of_the_reference(scheme, shape):
    weight = packed(scheme, *shape)
    exact = plain(weight)(weight, torch.float32)
    for dtype in DTYPES:
        assert torch.equal(found("dequantise", weight)(weight, dtype), as_interpreted(exact, dtype))


@interpreted
def test_more_groups_than_one_share_an_absmax():
    weight = packed("nf4+nested", 300, 64, 32)
    assert len(weight.nested.absmax) > 1
    assert torch.equal(gpu.dequantise(weight, torch.float32), reference.dequantise(weight, torch.float32))


@interpreted
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "m, dtype",
    [(0, DTYPES[0]), (1, DTYPES[0]), (1, DTYPES[1]), (16, DTYPES[1]), (5, DTYPES[2]), (19, DTYPES[0])],
)
def test_products_are_those_of_the_decoded_weight(scheme, m, dtype):
    for rows, columns, block in [(5, 37, 32), (33, 640, 64)]:
        weight = packed(scheme, rows, columns, block)
        exact = plain(weight)(weight, torch.float64)
        x, dy = draw(m, columns, seed=3).to(dtype), draw(m, rows, seed=4).to(dtype)
        bias = draw(rows, seed=5).to(dtype)
        y = found("linear", weight)(x[None], weight, bias)
        assert y.shape == (1, m, rows) and y.dtype == dtype
        dx = found("linear_backward", weight)(dy, weight)
        if m:
            close(y[0], x.double() @ exact.T + bias.double(), dtype)
            close(found("linear", weight)(x, weight, None), x.double() @ exact.T, dtype)
            close(dx, dy.double() @ exact, dtype)


@interpreted
def test_a_split_inner_dimension_gives_the_same_product(monkeypatch):
    from graft.kernels import triton_packed

    weight, bias = packed("nf4", 20, 1100, 64), draw(20, seed=2)
    monkeypatch.setattr(triton_packed, "multiprocessors", lambda device: 132)
    assert triton_packed.split(2, 9, 132) == 8
    exact = reference.dequantise(weight, torch.float64).T
    for m, dtype in [(1, torch.float32), (3, torch.float16)]:
        x = draw(m, 1100, seed=1).to(dtype)
        close(gpu.linear(x, weight, bias.to(dtype)), x.double() @ exact + bias, dtype)


@interpreted
def test_the_workspace_is_used_again_and_never_by_autograd():
    gpu.free_workspaces()
    small, large = packed("nf4", 8, 64, 64), packed("nf4", 32, 128, 64)
    for weight in (small, large, small):
        gpu.linear_backward(draw(20, len(weight.codes)), weight)
    (held,) = gpu._workspaces.values()
    assert held.numel() == 32 * 128 * 4
    x = draw(20, 64).requires_grad_()
    y = gpu.linear(x, small, None)
    gpu.linear(draw(20, 64), packed("fp4", 8, 64, 64), None)
    y.sum().backward()
    exact = reference.dequantise(small, torch.float32)
    assert torch.allclose(x.grad, exact.sum(0).expand(20, 64), atol=1e-5)


@interpreted
def test_what_the_kernels_do_not_know_is_left_to_the_reference():
    for weight in (packed("int3", 4, 40, 32), packed("nf4", 4, 40, 10), packed("nf4", 4, 40, 64)):
        dtype = torch.float64 if weight.block == 64 else torch.float32
        assert torch.equal(found("dequantise", weight)(weight, dtype), plain(weight)(weight, dtype))
