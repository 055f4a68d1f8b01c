"""Norms, gated activations and rotary positions on a GPU, in Triton: one pass each, forward and backward.

    norm      z = (x − mean) / √(mean((x − mean)²) + ε);   y = z · (weight + plus) + bias
              dx = (g − [mean(g)] − z · mean(g z)) / √…    g = dy · (weight + plus)
    gated     act(gate) · up
    rotary    x cos + [−x₂, x₁] sin                        x₁, x₂: the halves of a head

Sums and functions are in fp32, and results are rounded once. Gradients of norm weights are sums of parts,
added in a fixed order. Zhang and Sennrich 2019, arXiv 1910.07467; Shazeer 2020, arXiv 2002.05202; Su et al.
2021, arXiv 2104.09864.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from graft.kernels.triton_packed import multiprocessors

ELEMENTS = 1024  # that a program of a gated activation takes
PARTS = 4  # partial sums of a norm's weight gradient per multiprocessor


@triton.jit
def _norm(
    x, weight, bias, y, mean, rate, width, eps, plus,
    SIZE: tl.constexpr, CENTRED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    live = column < width
    z = tl.load(x + row * width + column, mask=live, other=0.0).to(tl.float32)
    if CENTRED:
        middle = tl.sum(z, 0) / width
        tl.store(mean + row, middle)
        z = tl.where(live, z - middle, 0.0)
    scale = 1 / tl.sqrt_rn(tl.sum(z * z, 0) / width + eps)
    tl.store(rate + row, scale)
    out = z * scale * (tl.load(weight + column, mask=live, other=0.0).to(tl.float32) + plus)
    if BIASED:
        out += tl.load(bias + column, mask=live, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, out.to(y.dtype.element_ty), mask=live)


@triton.jit
def _norm_backward(
    x, weight, dy, mean, rate, dx, dweight, dbias, rows, width, plus,
    SIZE: tl.constexpr, CENTRED: tl.constexpr, WEIGHTED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Take every row whose number is this program's, modulo the number of programs."""
    part = tl.program_id(0)
    column = tl.arange(0, SIZE)
    live = column < width
    factor = tl.load(weight + column, mask=live, other=0.0).to(tl.float32) + plus
    of_weight = tl.zeros([SIZE], tl.float32)
    of_bias = tl.zeros([SIZE], tl.float32)
    for row in range(part, rows, tl.num_programs(0)):
        start = tl.cast(row, tl.int64) * width
        z = tl.load(x + start + column, mask=live, other=0.0).to(tl.float32)
        d = tl.load(dy + start + column, mask=live, other=0.0).to(tl.float32)
        scale = tl.load(rate + row)
        if CENTRED:
            z = tl.where(live, z - tl.load(mean + row), 0.0)
        z *= scale
        g = tl.where(live, d * factor, 0.0)
        back = g - z * (tl.sum(g * z, 0) / width)
        if CENTRED:
            back -= tl.sum(g, 0) / width
        tl.store(dx + start + column, (back * scale).to(dx.dtype.element_ty), mask=live)
        if WEIGHTED:
            of_weight += d * z
        if BIASED:
            of_bias += d
    if WEIGHTED:
        tl.store(dweight + part * width + column, of_weight, mask=live)
    if BIASED:
        tl.store(dbias + part * width + column, of_bias, mask=live)


@triton.jit
def _tanh(u):
    return 2 * tl.sigmoid(2 * u) - 1


@triton.jit
def _activation(g, KIND: tl.constexpr):
    """Return act(g) and its derivative.  KIND: an index of `elementwise.ACTIVATIONS`."""
    if KIND == 0:
        s = tl.sigmoid(g)
        value, slope = g * s, s * (1 + g * (1 - s))
    elif KIND == 1:
        t = _tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))
        inner = (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * g * g)
        value, slope = 0.5 * g * (1 + t), 0.5 * (1 + t) + 0.5 * g * inner
    elif KIND == 2:
        below = 0.5 * (1 + tl.erf(g * 0.7071067811865476))
        value, slope = g * below, below + g * 0.3989422804014327 * tl.exp(-0.5 * g * g)
    else:
        value, slope = tl.maximum(g, 0.0), tl.where(g > 0, 1.0, 0.0)
    return value, slope


@triton.jit
def _gate(gate, up, y, count, KIND: tl.constexpr, SIZE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    live = place < count
    value, _ = _activation(tl.load(gate + place, mask=live, other=0.0).to(tl.float32), KIND)
    out = value * tl.load(up + place, mask=live, other=0.0).to(tl.float32)
    tl.store(y + place, out.to(y.dtype.element_ty), mask=live)


@triton.jit
def _gate_backward(gate, up, dy, dgate, dup, count, KIND: tl.constexpr, SIZE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    live = place < count
    value, slope = _activation(tl.load(gate + place, mask=live, other=0.0).to(tl.float32), KIND)
    u = tl.load(up + place, mask=live, other=0.0).to(tl.float32)
    d = tl.load(dy + place, mask=live, other=0.0).to(tl.float32)
    tl.store(dgate + place, (d * u * slope).to(dgate.dtype.element_ty), mask=live)
    tl.store(dup + place, (d * value).to(dup.dtype.element_ty), mask=live)


@triton.jit
def _rotary(
    x, cos, sin, y, of_batch, of_head, of_row, heads, length, half, tables,
    HEADS: tl.constexpr, HALF: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Turn all heads of one token; y is (batch, length, heads, 2 half)."""
    token = tl.program_id(0)
    batch = (token // length).to(tl.int64)
    row = (token % length).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)
    table = batch * tables + row * 2 * half + column
    inside = column < half
    c1 = tl.load(cos + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    c2 = tl.load(cos + table + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    s1 = tl.load(sin + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    s2 = tl.load(sin + table + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    live = (head < heads) & inside[None, :]
    place = x + batch * of_batch + row * of_row + head.to(tl.int64) * of_head + column[None, :]
    first = tl.load(place, mask=live, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=live, other=0.0).to(tl.float32)
    if BACK:
        new_first, new_second = first * c1 + second * s2, second * c2 - first * s1
    else:
        new_first, new_second = first * c1 - second * s1, second * c2 + first * s2
    into = y + (token.to(tl.int64) * heads + head) * 2 * half + column[None, :]
    tl.store(into, new_first.to(y.dtype.element_ty), mask=live)
    tl.store(into + half, new_second.to(y.dtype.element_ty), mask=live)


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, centred: bool, plus: float) -> Tensor:
    """Return the norm of x (..., n), n <= `gpu.WIDEST`.  weight, bias: (n,)."""
    out: Tensor = _Norm.apply(x, weight, bias, eps, centred, plus)
    return out


def gated(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    """Return act(gate) · up, of one shape.  kind: an index of `elementwise.ACTIVATIONS`."""
    out: Tensor = _Gated.apply(gate, up, kind)
    return out


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (B, H, T, D) turned by its positions.  cos, sin: (B or 1, T, D), without gradients."""
    out: Tensor = _Rotary.apply(x, cos, sin)
    return out


def _warps(size: int) -> int:
    """Return the warps of a program that holds `size` numbers of a few tensors at once."""
    return min(16, max(1, size // 512))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool, plus: float
    ) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        width = x.shape[-1]
        rows = x.numel() // max(width, 1)
        y, moments = torch.empty_like(x), torch.empty(2, rows, dtype=torch.float32, device=x.device)
        size = triton.next_power_of_2(width)
        if rows:
            _norm[(rows,)](
                x, weight, x if bias is None else bias.contiguous(), y, moments[1], moments[0], width, eps,
                plus, SIZE=size, CENTRED=centred, BIASED=bias is not None, num_warps=_warps(size),
                enable_fp_fusion=True,
            )  # fmt: skip
        ctx.save_for_backward(x, weight, moments)
        ctx.statics = centred, plus
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, moments = ctx.saved_tensors
        centred, plus = ctx.statics
        wanted = ctx.needs_input_grad[1:3]
        dy, dx = gradients[0].contiguous(), torch.empty_like(x)
        width, rows = x.shape[-1], moments.shape[1]
        parts = max(1, min(rows, PARTS * multiprocessors(x.device)))
        sums = [
            torch.zeros(parts, width, dtype=torch.float32, device=x.device) if want else None
            for want in wanted
        ]
        size = triton.next_power_of_2(width)
        if rows:
            _norm_backward[(parts,)](
                x, weight, dy, moments[1], moments[0], dx, *(moments if s is None else s for s in sums), rows,
                width, plus, SIZE=size, CENTRED=centred, WEIGHTED=wanted[0], BIASED=wanted[1],
                num_warps=_warps(size), enable_fp_fusion=True,
            )  # fmt: skip
        added = [None if s is None else s.sum(0).to(x.dtype) for s in sums]
        return dx, *added, None, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: int) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        if y.numel():
            grid = (triton.cdiv(y.numel(), ELEMENTS),)
            _gate[grid](gate, up, y, y.numel(), KIND=kind, SIZE=ELEMENTS, enable_fp_fusion=True)
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        dy, dgate, dup = gradients[0].contiguous(), torch.empty_like(gate), torch.empty_like(up)
        if dy.numel():
            _gate_backward[(triton.cdiv(dy.numel(), ELEMENTS),)](
                gate, up, dy, dgate, dup, dy.numel(), KIND=ctx.kind, SIZE=ELEMENTS, enable_fp_fusion=True
            )
        return dgate, dup, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    """Return x turned, in the memory order of a projection: (B, T, H, D)."""
    batch, heads, length, width = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    y = torch.empty(batch, length, heads, width, dtype=x.dtype, device=x.device)
    if y.numel():
        sizes = {"HEADS": triton.next_power_of_2(heads), "HALF": triton.next_power_of_2(width // 2)}
        _rotary[(batch * length,)](
            x, cos, sin, y, *x.stride()[:3], heads, length, width // 2,
            length * width if len(cos) > 1 else 0, **sizes, BACK=back,
            num_warps=_warps(sizes["HEADS"] * sizes["HALF"]), enable_fp_fusion=True,
        )  # fmt: skip
    return y.transpose(1, 2)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _turn(gradients[0], *ctx.saved_tensors, back=True), None, None
