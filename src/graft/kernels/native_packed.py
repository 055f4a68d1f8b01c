"""Packed weights by the C kernels: what `reference` and `groups` define, to the same bits where they decode.

Products sum in fp32 whatever x is, with weights that are not rounded to x's format first. Where the
processor multiplies bf16 faster than fp32, weights for x in bf16 are rounded to it, and multiplied in pairs
or by tiles of AMX.
"""

import ctypes
from ctypes import c_int64

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.nn import functional as F

from graft.kernels import groups, native, reference
from graft.kernels.native import address
from graft.kernels.packed import Codebook, Grouped, Packed

__all__ = [
    "dequantise",
    "dequantise_groups",
    "linear",
    "linear_backward",
    "linear_backward_groups",
    "linear_groups",
    "quantise_4bit",
    "quantise_int8",
]


def dequantise(weight: Packed, dtype: torch.dtype) -> Tensor:
    return _decoded(weight, dtype) if _ready(weight, dtype) else reference.dequantise(weight, dtype)


def dequantise_groups(weight: Grouped, dtype: torch.dtype) -> Tensor:
    return _decoded(weight, dtype) if _ready(weight, dtype) else groups.dequantise_groups(weight, dtype)


def linear(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    return _linear(x, weight, bias) if native.usable(x) else reference.linear(x, weight, bias)


def linear_groups(x: Tensor, weight: Grouped, bias: Tensor | None) -> Tensor:
    return _linear(x, weight, bias) if native.usable(x) else groups.linear_groups(x, weight, bias)


def linear_backward(dy: Tensor, weight: Packed) -> Tensor:
    return _backward(dy, weight) if native.usable(dy) else reference.linear_backward(dy, weight)


def linear_backward_groups(dy: Tensor, weight: Grouped) -> Tensor:
    return _backward(dy, weight) if native.usable(dy) else groups.linear_backward_groups(dy, weight)


def quantise_4bit(weight: Tensor, codebook: Codebook, block: int) -> tuple[Tensor, Tensor]:
    if not native.usable(weight):
        return reference.quantise_4bit(weight, codebook, block)
    (rows, n), weight = weight.shape, weight.contiguous()
    codes = torch.empty(rows, -(-n // 2), dtype=torch.uint8, device="cpu")
    absmax = torch.empty(rows, -(-n // block), dtype=torch.float32, device="cpu")
    tables = codebook.search(weight.device)
    native.function("quantise_4bit")(
        address(weight), native.DTYPES[weight.dtype], c_int64(rows), c_int64(n), c_int64(block),
        address(tables.midpoints), address(tables.order), address(codes), address(absmax),
        torch.get_num_threads(),
    )  # fmt: skip
    return codes, absmax


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    if not native.usable(weight):
        return reference.quantise_int8(weight)
    (rows, n), weight = weight.shape, weight.contiguous()
    codes = torch.empty(rows, n, dtype=torch.int8, device="cpu")
    absmax = torch.empty(rows, 1, dtype=torch.float32, device="cpu")
    native.function("quantise_int8")(
        address(weight), native.DTYPES[weight.dtype], c_int64(rows), c_int64(n), address(codes),
        address(absmax), torch.get_num_threads(),
    )  # fmt: skip
    return codes, absmax


def _ready(weight: Packed | Grouped, dtype: torch.dtype) -> bool:
    tensors = [t for t in weight if isinstance(t, Tensor)]
    known = dtype in native.DTYPES and native.usable() and all(native.plain(t) for t in tensors)
    return known and not detect_fake_mode()  # under which what is made here has no memory


def _decoded(weight: Packed | Grouped, dtype: torch.dtype) -> Tensor:
    out = torch.empty(len(weight.codes), weight.columns, dtype=dtype, device="cpu")
    described = native.weight(weight)
    native.function("dequantise")(
        ctypes.byref(described),
        ctypes.c_void_p(out.data_ptr()),
        native.DTYPES[dtype],
        torch.get_num_threads(),
    )
    return out


def values(weight: Packed | Grouped | Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight's values (rows, columns) in `dtype`."""
    return weight.to(dtype) if isinstance(weight, Tensor) else _decoded(weight, dtype)


def _linear(x: Tensor, weight: Packed | Grouped, bias: Tensor | None) -> Tensor:
    if native.packed_by_torch(x.dtype):
        return F.linear(x, _decoded(weight, x.dtype), bias)
    out = torch.empty(*x.shape[:-1], len(weight.codes), dtype=x.dtype, device="cpu")
    fp32 = None if bias is None else bias.float()
    native.product([native.term(native.rows(x), native.weight(weight))], native.rows(out), fp32)
    return out


def _backward(dy: Tensor, weight: Packed | Grouped) -> Tensor:
    if native.packed_by_torch(dy.dtype):
        return dy @ _decoded(weight, dy.dtype)
    out = torch.empty(*dy.shape[:-1], weight.columns, dtype=dy.dtype, device="cpu")
    native.product([native.term(native.rows(dy), native.weight(weight), across=True)], native.rows(out))
    return out
