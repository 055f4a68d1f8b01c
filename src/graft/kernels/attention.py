"""Attention whose scores are never written: forward and backward by C kernels.

    O = softmax(scale · Q Kᵀ) V         over the keys [first, stop) that a query sees

Causal order, a window, padding and documents that share a row are ranges of keys. What no query of a block
sees is skipped. Forward keeps one number per query, the logarithm of its sum; backward makes probabilities
anew. `reference` defines the operation by torch's own attention.
Dao et al. 2022, FlashAttention, arXiv 2205.14135.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from graft.kernels import native


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    ranges: Tensor | None = None,
) -> Tensor:
    """Return softmax(scale · q kᵀ) v (B, H, Tq, W) in q's dtype; zeros for a query that sees no key.

    q: (B, H, Tq, D).  k: (B, G, Tk, D), v: (B, G, Tk, W): H / G heads share keys and values.
    causal: the last query stands at the last key, and a query sees no key behind its own.
    window: a causal query sees so many keys at most, its own included; 0 means all.
    ranges: (B or 1, Tq, 2) of whole numbers, keys [first, stop) of each query, besides.

    Memory of the result and of the gradients is that of (B, T, H, D), as projections write and read it.
    """
    one_dtype = q.dtype == k.dtype == v.dtype
    if torch.compiler.is_compiling() or not one_dtype or not native.shaped(q, k, v):
        return reference(q, k, v, scale=scale, causal=causal, window=window, ranges=ranges)
    if ranges is not None:
        ranges = ranges.int().contiguous()
    out: Tensor = _Attention.apply(q, k, v, scale, causal, window, ranges)
    return out


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    ranges: Tensor | None = None,
) -> Tensor:
    """Do the same by torch's attention and a dense mask."""
    mask = seen(q.shape[2], k.shape[2], causal=causal, window=window, ranges=ranges, device=q.device)
    shared = k.shape[1] != q.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask[:, None], scale=scale, enable_gqa=shared)
    return out.masked_fill(~mask[:, None].any(-1, keepdim=True), 0)


def seen(
    queries: int,
    keys: int,
    *,
    causal: bool,
    window: int = 0,
    ranges: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return which keys each query sees, (B or 1, queries, keys) bool."""
    key = torch.arange(keys, device=device)
    mask = torch.ones(1, queries, keys, dtype=torch.bool, device=device)
    if causal:
        own = torch.arange(queries, device=device)[:, None] + keys - queries
        mask = mask & (key <= own)
        if window:
            mask = mask & (key > own - window)
    if ranges is not None:
        mask = mask & (key >= ranges[..., :1]) & (key < ranges[..., 1:])
    return mask


def ranges_of(mask: Tensor) -> Tensor | None:
    """Return the ranges (B, Tq, 2) int32 that a mask (B, 1, Tq, Tk) bool stands for; None if it has gaps."""
    mask = mask[:, 0].contiguous()
    ranges = torch.empty(*mask.shape[:2], 2, dtype=torch.int32, device="cpu")
    if not native.plain(ranges):
        return ranges
    whole = native.function("ranges_of_mask")(
        native.address(mask), c_int64(mask.shape[0] * mask.shape[1]), c_int64(mask.shape[2]),
        native.address(ranges), torch.get_num_threads(),
    )  # fmt: skip
    return ranges if whole else None


class Heads(ctypes.Structure):
    """`graft_heads` of csrc/attention.h: where (batch, heads, length, width) lies."""

    _fields_ = (("at", c_void_p), ("batch", c_int64), ("head", c_int64), ("row", c_int64))


class _Call(ctypes.Structure):
    """`graft_attention` of csrc/attention.h."""

    _fields_ = (
        *((name, Heads) for name in ("q", "k", "v", "o", "d_o", "dq", "dk", "dv")),
        ("lse", c_void_p),
        ("ranges", c_void_p),
        *((name, c_int64) for name in ("ranges_batch", "batch", "heads", "kv_heads", "queries", "keys")),
        *((name, c_int64) for name in ("width", "value_width", "window")),
        ("scale", c_float),
        ("dtype", c_int32),
        ("causal", c_int32),
    )


def heads_of(t: Tensor) -> Heads:
    """Describe a tensor (B, H, T, D) for C. The numbers of a row must lie side by side."""
    batch, head, row, _ = t.stride()
    return Heads(t.data_ptr(), batch, head, row)


def as_rows(t: Tensor) -> Tensor:
    """Return a tensor (B, H, T, D) such that the numbers of a row lie side by side."""
    return t if t.stride(3) == 1 else t.contiguous()


def like_projection(batch: int, heads: int, length: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor (B, H, T, D) in the memory of (B, T, H, D)."""
    return torch.empty(batch, length, heads, width, dtype=dtype, device="cpu").transpose(1, 2)


def _described(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, ranges: Tensor | None, settings: Any
) -> _Call:
    scale, causal, window = settings
    (batch, heads, queries, width), (_, kv_heads, keys, value_width) = q.shape, v.shape
    call = _Call(
        heads_of(q), heads_of(k), heads_of(v), heads_of(o), lse=lse.data_ptr(), batch=batch, heads=heads,
        kv_heads=kv_heads, queries=queries, keys=keys, width=width, value_width=value_width, window=window,
        scale=scale, dtype=native.DTYPES[q.dtype], causal=causal,
    )  # fmt: skip
    if ranges is not None:
        call.ranges = ranges.data_ptr()
        call.ranges_batch = ranges.stride(0) if len(ranges) > 1 else 0
    return call


def _products(q: Tensor, v: Tensor) -> int:
    """Return the multiplications of a forward where all is seen; backward makes five products for its two."""
    (batch, heads, queries, width), (_, _, keys, value_width) = q.shape, v.shape
    return batch * heads * queries * keys * (width + value_width)


def _run(name: str, call: _Call) -> None:
    if native.function(name)(ctypes.byref(call), torch.get_num_threads()):
        raise MemoryError(f"no scratch memory for attention of {call.queries} queries to {call.keys} keys")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        causal: bool,
        window: int,
        ranges: Tensor | None,
    ) -> Tensor:
        q, k, v = as_rows(q), as_rows(k), as_rows(v)
        batch, heads, queries, _ = q.shape
        out = like_projection(batch, heads, queries, v.shape[3], q.dtype)
        lse = torch.empty(batch, heads, queries, dtype=torch.float32, device="cpu")
        ctx.settings = scale, causal, window
        if native.plain(out):
            _run("attention", _described(q, k, v, out, lse, ranges, ctx.settings))
        else:
            native.left_out("attention", _products(q, v))
        ctx.save_for_backward(q, k, v, out, lse, ranges)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, out, lse, ranges = ctx.saved_tensors
        (batch, heads, queries, width), (_, kv_heads, keys, value_width) = q.shape, v.shape
        d_out = as_rows(gradients[0])
        dq = like_projection(batch, heads, queries, width, q.dtype)
        dk = like_projection(batch, kv_heads, keys, width, q.dtype)
        dv = like_projection(batch, kv_heads, keys, value_width, q.dtype)
        if native.plain(dq):
            call = _described(q, k, v, out, lse, ranges, ctx.settings)
            call.d_o, call.dq, call.dk, call.dv = heads_of(d_out), heads_of(dq), heads_of(dk), heads_of(dv)
            _run("attention_backward", call)
        else:
            native.left_out("attention", 2.5 * _products(q, v))
        return dq, dk, dv, None, None, None, None
