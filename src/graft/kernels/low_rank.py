"""A frozen linear layer with a trained low-rank update: y = x Wᵀ + s·(x Aᵀ) Bᵀ + b, in one pass over y.

Forward keeps x and u = x Aᵀ for backward; W, packed or not, gets no gradient. On the way back dx takes both
terms in one pass as well, and dA and dB are products of narrow matrices:

    v = s·dy B        dx = dy W + v A        dA = vᵀ x        dB = s·dyᵀ u

The kernels compute in fp32 whatever x is. Where torch multiplies x's format faster, it makes x Wᵀ and dy W,
and the kernels add the update.
"""

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int64
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.kernels import native, native_packed
from graft.kernels.native import address
from graft.kernels.packed import Grouped, Packed

Described = Callable[[list[Tensor]], Packed | Grouped | Tensor]  # tensors of a weight -> the weight


def ready(x: Tensor, A: Tensor, B: Tensor) -> bool:
    """Return whether the kernels can multiply these."""
    return native.shaped(x, A, B) and A.dtype == B.dtype == torch.float32


def low_rank(
    x: Tensor,
    weight: list[Tensor],
    described: Described,
    bias: Tensor | None,
    form: tuple[Tensor, Tensor, float],
) -> Tensor:
    """Return y (..., n) in x's dtype.

    x: (..., inner).  weight: frozen tensors of which `described` makes the weight (n, inner).  bias: (n,).
    form: A (r, inner) and B (n, r) in fp32, and s.
    """
    A, B, scale = form
    y: Tensor = _LowRank.apply(x, bias, A, B, scale, described, *weight)
    return y


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scale: float,
        described: Described,
        *weight: Tensor,
    ) -> Tensor:
        rows, A, B = native.rows(x), A.contiguous(), B.contiguous()
        (m, inner), n, r = rows.shape, len(B), len(A)
        W = described(list(weight))
        u = torch.empty(m, r, dtype=torch.float32, device="cpu")
        ctx.save_for_backward(rows, A, B, u, *weight)
        ctx.statics = scale, described, x.shape
        if not native.plain(x):  # a plan's fakes hold the same tensors, and no numbers
            scratch = _sketched(W, x, m * n * inner + m * r * (n + inner))
            y = x.new_empty(*x.shape[:-1], n)
            del scratch
            return y
        if _by_torch(W, x):
            shift = None if bias is None else bias.to(x.dtype)
            y = F.linear(x, native_packed.values(W, x.dtype), shift).contiguous()
            own, fp32 = None, None
        else:
            y = torch.empty(*x.shape[:-1], n, dtype=x.dtype, device="cpu")
            own, fp32 = ctypes.byref(native.weight(W)), None if bias is None else bias.float()
        _call(
            "low_rank", x.dtype, address(rows), native.DTYPES[x.dtype], c_int64(m), c_int64(inner),
            c_int64(n), own, address(fp32), address(A), address(B), c_int64(r), c_float(scale), address(u),
            address(y),
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        rows, A, B, u, *weight = ctx.saved_tensors
        scale, described, shape = ctx.statics
        wide, W = native.rows(dy), described(weight)
        (m, inner), n, r = rows.shape, len(B), len(A)
        v, dA, dB = torch.empty_like(u), torch.empty_like(A), torch.empty_like(B)
        dbias = wide.sum(0) if ctx.needs_input_grad[1] else None
        dx, own = None, None
        if not native.plain(dy):
            scratch = _sketched(W, rows, ctx.needs_input_grad[0] * m * n * inner + 2 * m * r * (n + inner))
            dx = rows.new_empty(shape) if ctx.needs_input_grad[0] else None
            del scratch
            return dx, dbias, dA, dB, None, None, *([None] * len(weight))
        if ctx.needs_input_grad[0]:
            if _by_torch(W, rows):
                dx = (wide @ native_packed.values(W, rows.dtype)).view(shape)
            else:
                dx = torch.empty(shape, dtype=rows.dtype, device="cpu")
                own = ctypes.byref(native.weight(W))
        _call(
            "low_rank_backward", rows.dtype, address(rows), address(wide), native.DTYPES[rows.dtype],
            c_int64(m), c_int64(inner), c_int64(n), own, address(A), address(B), c_int64(r), c_float(scale),
            address(u), address(v), address(dx), address(dA), address(dB),
        )  # fmt: skip
        return dx, dbias, dA, dB, None, None, *([None] * len(weight))


def _sketched(weight: Packed | Grouped | Tensor, x: Tensor, products: int) -> Tensor | None:
    """Tell a plan of the products of a call on fakes; return the decoded weight, which such a call holds."""
    native.left_out("product", products)
    if isinstance(weight, Tensor):
        return None
    size = len(weight.codes), weight.columns
    native.left_out("decoded", size[0] * size[1])
    return x.new_empty(size) if _by_torch(weight, x) else None


def _by_torch(weight: Packed | Grouped | Tensor, x: Tensor) -> bool:
    """Return whether torch makes x Wᵀ and dy W.  x: what enters the layer, in both directions."""
    if isinstance(weight, Tensor):
        return native.plain_by_torch(x, weight)
    return native.packed_by_torch(x.dtype)


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    if native.product_function(name, dtype)(*arguments, torch.get_num_threads()):
        raise MemoryError(f"no scratch memory for {name}")
