"""Norms, gated activations and rotary positions by the kernels, against torch and transformers."""

import pytest
import torch
from torch.nn import functional as F
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from graft.kernels import native
from graft.kernels.elementwise import ACTIVATIONS, gated, norm, rotary

LEVELS = native.levels()
pytestmark = pytest.mark.skipif(not LEVELS, reason="the kernels were not built")
each_level = pytest.mark.parametrize("level", LEVELS)
each_shape = pytest.mark.parametrize("shape", [(1, 1), (3, 64), (2, 35, 37), (0, 16), (70, 5)], ids=str)


def draw(*shape, seed=0, scale=1.0):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return made.requires_grad_()


def compare(ours, expected, *inputs, atol=2e-6):
    """Compare values, and gradients of a weighted sum, with those of the same function in fp64."""
    got = ours(*inputs)
    weight = draw(*got.shape, seed=99).detach()
    doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    wanted = expected(*doubles)
    torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=1e-5)
    trained = [t for t in inputs if t.requires_grad]
    theirs = torch.autograd.grad(wanted, [t for t in doubles if t.requires_grad], weight.double())
    for a, b in zip(torch.autograd.grad(got, trained, weight), theirs, strict=True):
        torch.testing.assert_close(a.double(), b, atol=atol * 10, rtol=1e-4)


@each_level
@each_shape
def test_rms_norm(level, shape):
    x, weight = draw(*shape), draw(shape[-1], seed=1)
    with native.at_level(level):
        compare(lambda x, w: norm(x, w, eps=1e-5), lambda x, w: F.rms_norm(x, shape[-1:], w, 1e-5), x, weight)


@each_level
def test_norm_of_small_numbers_is_held_by_eps(level):
    x, weight = draw(5, 24, scale=1e-4), draw(24, seed=1)
    with native.at_level(level):
        compare(
            lambda x, w: norm(x, w, eps=1e-6),
            lambda x, w: F.rms_norm(x, (24,), w, 1e-6),
            x,
            weight,
            atol=1e-4,
        )


@each_level
def test_norm_with_weights_around_zero_is_gemmas(level):
    stock, x = GemmaRMSNorm(40, eps=1e-6), draw(9, 40)
    with torch.no_grad():
        stock.weight.copy_(draw(40, seed=1))
    with native.at_level(level):
        got = norm(x, stock.weight, eps=1e-6, plus=1.0)
    torch.testing.assert_close(got, stock(x), atol=1e-6, rtol=1e-5)


@each_level
@each_shape
def test_layer_norm(level, shape):
    x, weight, bias = draw(*shape), draw(shape[-1], seed=1), draw(shape[-1], seed=2)
    with torch.no_grad():
        x += 3  # a mean that squares do not survive
    with native.at_level(level):
        compare(
            lambda x, w, b: norm(x, w, b, eps=1e-3, centred=True),
            lambda x, w, b: F.layer_norm(x, shape[-1:], w, b, 1e-3),
            x, weight, bias,
            atol=1e-5,
        )  # fmt: skip


@each_level
def test_a_frozen_norm_has_no_gradient_of_its_weight(level):
    x, weight = draw(4, 8), draw(8).detach()
    with native.at_level(level):
        compare(lambda x, w: norm(x, w, eps=1e-5), lambda x, w: F.rms_norm(x, (8,), w, 1e-5), x, weight)


def function(activation):
    return (lambda g: F.gelu(g, approximate="tanh")) if "_" in activation else getattr(F, activation)


@each_level
@each_shape
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_activation(level, shape, activation):
    kind = function(activation)
    gate, up = draw(*shape, scale=3), draw(*shape, seed=1)
    with native.at_level(level):
        compare(lambda g, u: gated(g, u, activation), lambda g, u: kind(g) * u, gate, up, atol=4e-6)


@each_level
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gates_far_from_zero_are_finite(level, activation):
    gate = torch.tensor([-1e4, -200, -90, -20, 20, 90, 200, 1e4]).requires_grad_()
    up = torch.ones(8).requires_grad_()
    with native.at_level(level):
        compare(lambda g, u: gated(g, u, activation), lambda g, u: function(activation)(g) * u, gate, up)


@each_level
@pytest.mark.parametrize("width", [2, 16, 64, 22])
@pytest.mark.parametrize("tables", [1, 3])
def test_rotary_positions(level, width, tables):
    x = draw(3, 11, 2, width).transpose(1, 2)
    angles = draw(tables, 11, width, seed=1).detach()
    cos, sin = angles.cos(), angles.sin()  # halves that differ: no shortcut may take one for the other
    with native.at_level(level):
        compare(
            lambda x, c, s: rotary(x, c, s), lambda x, c, s: apply_rotary_pos_emb(x, x, c, s)[0], x, cos, sin
        )


@each_level
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_rounded_once(level, dtype):
    x, weight, up = (
        draw(*shape, seed=i).detach().to(dtype) for i, shape in enumerate([(9, 41), (41,), (9, 41)])
    )
    unit = torch.finfo(dtype).eps
    with native.at_level(level):
        pairs = [
            (norm(x, weight, eps=1e-5), F.rms_norm(x.double(), (41,), weight.double(), 1e-5)),
            (gated(x, up, "silu"), F.silu(x.double()) * up.double()),
        ]
    for got, exact in pairs:
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), exact, atol=1e-6, rtol=unit * 0.51)


@each_level
def test_bytes_do_not_depend_on_threads(level):
    x, weight, found = draw(100, 48), draw(48, seed=1), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            with native.at_level(level):
                y = gated(norm(x, weight, eps=1e-6), x, "gelu")
                found.append([y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_compiled_code_takes_the_reference():
    x, weight = draw(4, 8), draw(8, seed=1)
    compiled = torch.compile(
        lambda x, w: gated(norm(x, w, eps=1e-6), x, "silu"), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x, weight), gated(norm(x, weight, eps=1e-6), x, "silu"))
