"""Groups of whole numbers in plain torch: the definition of every operation on a `Grouped` weight.

    scale = (max − min) / (2ᵇ − 1)        minimum = min          per group of a row, rounded to half precision
    code = round((w − minimum) / scale), clamped to 0 … 2ᵇ − 1   ŵ = scale · code + minimum

Codes are chosen for the rounded constants, so that what is computed with is what is stored. A group of equal
weights has the scale 0 and codes 0.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.kernels.packed import Grouped
from graft.kernels.reference import row_chunks

__all__ = [
    "dequantise_groups",
    "linear_backward_groups",
    "linear_groups",
    "pack_bits",
    "quantise_groups",
    "unpack_bits",
]


def row_bytes(columns: int, bits: int) -> int:
    """Return the bytes of a row's codes: whole words of 1 byte, or of 3 (eight codes) if bits is 3.

    >>> row_bytes(10, 4), row_bytes(10, 2), row_bytes(10, 3)
    (5, 3, 6)
    """
    per, width = _word(bits)
    return -(-columns // per) * width


def _word(bits: int) -> tuple[int, int]:
    """Return the fewest codes that fill whole bytes, and these bytes."""
    per = 8 // math.gcd(8, bits)
    return per, bits * per // 8


def _shifts(count: int, bits: int, device: torch.device) -> Tensor:
    return torch.arange(count - 1, -1, -1, dtype=torch.int32, device=device) * bits


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack (rows, n) uint8 below 2ᵇ -> (rows, row_bytes): the first column in the highest bits."""
    per, width = _word(bits)
    padded = F.pad(codes, (0, -codes.shape[1] % per)).unflatten(1, (-1, per)).int()
    words = (padded << _shifts(per, bits, codes.device)).sum(-1, dtype=torch.int32)
    return (words[..., None] >> _shifts(width, 8, codes.device)).bitwise_and_(255).to(torch.uint8).flatten(1)


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """Unpack (rows, bytes) -> (rows, codes) int32; the last word may hold codes that belong to no column."""
    per, width = _word(bits)
    words = packed.int()
    if width > 1:
        words = (words.unflatten(1, (-1, width)) << _shifts(width, 8, packed.device)).sum(
            -1, dtype=torch.int32
        )
    return (words[..., None] >> _shifts(per, bits, packed.device)).bitwise_and_((1 << bits) - 1).flatten(1)


def constants(groups: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale and minimum, in half precision, of groups along the last dimension."""
    low, high = torch.aminmax(groups, dim=-1)
    return ((high - low) / ((1 << bits) - 1)).half(), low.half()


def nearest(values: Tensor, scale: Tensor, minimum: Tensor, bits: int) -> Tensor:
    """Return the codes, as floats, whose values are nearest; scale and minimum broadcast against values."""
    wide = values.dtype
    step = torch.where(scale > 0, scale, torch.inf).to(wide)
    return ((values - minimum.to(wide)) / step).round_().clamp_(0, (1 << bits) - 1)


def quantise_groups(weight: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise (out, in) of any float type -> codes, scale, minimum of `Grouped`.

    A NaN, an infinity or a value that half precision cannot hold shows in its group's scale.
    """
    rows, n = weight.shape
    blocks = -(-n // block)
    codes = torch.empty(rows, row_bytes(n, bits), dtype=torch.uint8, device=weight.device)
    scale, minimum = (torch.empty(rows, blocks, dtype=torch.float16, device=weight.device) for _ in "sm")
    for start, stop in row_chunks(rows, blocks * block, weight.device)[1]:
        rest = blocks * block - n  # a short group is filled up with its last value, which changes neither end
        part = F.pad(weight[start:stop].float(), (0, rest), mode="replicate").unflatten(1, (blocks, block))
        scale[start:stop], minimum[start:stop] = constants(part, bits)
        whole = nearest(part, scale[start:stop, :, None], minimum[start:stop, :, None], bits)
        codes[start:stop] = pack_bits(whole.flatten(1)[:, :n].to(torch.uint8), bits)
    return codes, scale, minimum


def dequantise_groups(weight: Grouped, dtype: torch.dtype) -> Tensor:
    """Return the values (out, in) in `dtype`: computed in fp32 (fp64 if `dtype` is) and rounded once."""
    rows = len(weight.codes)
    columns = weight.columns
    block = weight.block
    wide = torch.promote_types(dtype, torch.float32)
    out = torch.empty(rows, columns, dtype=dtype, device=weight.codes.device)
    whole = columns // block
    for start, stop in row_chunks(rows, columns, out.device)[1]:
        values = unpack_bits(weight.codes[start:stop], weight.bits)[:, :columns].to(wide)
        scale, minimum = (t[start:stop, :, None].to(wide) for t in (weight.scale, weight.minimum))
        if whole:
            groups = values[:, : whole * block].unflatten(1, (whole, block))
            groups.mul_(scale[:, :whole]).add_(minimum[:, :whole])
        values[:, whole * block :].mul_(scale[:, -1]).add_(minimum[:, -1])
        out[start:stop] = values
    return out


def linear_groups(x: Tensor, weight: Grouped, bias: Tensor | None) -> Tensor:
    """Return x Ŵᵀ + b (..., out) for x (..., in), computed in x's dtype."""
    return F.linear(x, dequantise_groups(weight, x.dtype), bias)


def linear_backward_groups(dy: Tensor, weight: Grouped) -> Tensor:
    """Return dy Ŵ (..., in) for dy (..., out), computed in dy's dtype."""
    return dy @ dequantise_groups(weight, dy.dtype)
