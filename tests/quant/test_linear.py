"""QuantLinear against F.linear on its own dequantised weight, and how it behaves as a module."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graft.quant import QuantLinear, Scheme

SCHEMES = [Scheme("nf4"), Scheme("nf4", double=False), Scheme("fp4", 32), Scheme("int8")]
SCHEMES += [Scheme("int4"), Scheme("int4", 64), Scheme("int3"), Scheme("int2"), Scheme("int8g", 128)]
schemes = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def layer(scheme, in_features=96, out_features=24, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    bias = nn.Parameter(torch.randn(out_features, generator=draw).to(dtype), requires_grad=False)
    return QuantLinear.pack(torch.randn(out_features, in_features, generator=draw).to(dtype), scheme, bias)


@schemes
@pytest.mark.parametrize("in_features", [128, 96, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_the_dequantised_weight(scheme, in_features, dtype):
    packed = layer(scheme, in_features, dtype=dtype)
    packed.bias.requires_grad_(True)
    weight, bias = packed.weight, packed.bias.detach().clone().requires_grad_()
    x = torch.randn(2, 5, in_features).to(dtype).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    y, expected = packed(x), F.linear(twin, weight, bias)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy)
    assert y.dtype == dtype
    # The kernels do not round weights to bf16.
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-2}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(x.grad, twin.grad, **close)
    torch.testing.assert_close(packed.bias.grad, bias.grad)


def test_backward_keeps_neither_input_nor_weight():
    packed = layer(Scheme("nf4"), 256, 256)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        packed(torch.randn(64, 256, requires_grad=True)).sum()
    own = {p.data_ptr() for p in packed.packed().values()}
    assert {t.data_ptr() for t in kept if t.numel() > 1} <= own


@schemes
def test_dtype_casts_leave_the_packed_bytes_alone(scheme):
    packed = layer(scheme)
    cast = copy.deepcopy(packed).to(torch.bfloat16)
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype
        for a, b in zip(packed.packed().values(), cast.packed().values(), strict=True)
    )
    assert cast.bias.dtype == cast.weight.dtype == torch.bfloat16
    assert cast(torch.randn(2, 96, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert packed.weight.dtype == torch.float32


@schemes
def test_state_dict_round_trip(scheme):
    packed = layer(scheme)
    twin = QuantLinear(96, 24, scheme, nn.Parameter(torch.zeros(24)))
    twin.load_state_dict(packed.state_dict())
    assert torch.equal(twin.weight, packed.weight)


@schemes
def test_bytes_are_those_of_the_scheme(scheme):
    packed = layer(scheme, 4096, 512)
    size = sum(t.nbytes for t in packed.packed().values())
    overhead = 36 if scheme.name != "int8" else 4 * 512  # the last group and the offset; absmax of rows
    assert size <= scheme.bits / 8 * 4096 * 512 + overhead


@schemes
def test_only_the_input_gets_a_gradient(scheme):
    packed = layer(scheme)
    packed(torch.randn(3, 96, requires_grad=True)).sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in packed.parameters())


def test_a_weight_with_a_nan_is_not_packed():
    for value in (torch.nan, torch.inf, -torch.inf):
        w = torch.ones(4, 64)
        w[2, 5] = value
        assert all(QuantLinear.pack(w, scheme) is None for scheme in SCHEMES)


def test_compiled_equals_eager_and_keeps_no_dequantised_weight():
    packed = layer(Scheme("nf4"), 64, 64)
    model = nn.Sequential(packed, nn.Linear(64, 64))
    x = torch.randn(4, 64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        y = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    y.sum().backward()
    model(twin).sum().backward()
    assert torch.equal(x.grad, twin.grad)
    assert not any(torch.equal(t, packed.weight) for t in kept if t.shape == (64, 64))


@schemes
def test_the_default_dtype_of_torch_does_not_matter(scheme):
    expected = layer(scheme)
    torch.set_default_dtype(torch.bfloat16)  # as transformers does while it builds a model
    try:
        found = QuantLinear.pack(expected.weight, scheme)
        x = torch.ones(1, 96, dtype=torch.float32)
        torch.testing.assert_close(found(x), F.linear(x, found.weight))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.weight, QuantLinear.pack(expected.weight, scheme).weight)
