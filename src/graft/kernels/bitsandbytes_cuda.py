"""bitsandbytes' CUDA operations on our packed weights, whose bytes are the same, where it is installed.

They are used on a device only after they gave what torch's reference gives, once, on a few numbers. Blocks
must not be cut by the end of a row: bitsandbytes' run over the flat weight.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from graft.kernels import reference
from graft.kernels.packed import Codebook, Nested, Packed, once

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NAMES = ("nf4", "fp4")
NEAR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the sum of all sizes
TRIED = (32, 128)  # rows and columns of the weight on which a device is tried


def dequantise(weight: Packed, out: Tensor) -> bool:
    """Write the values of a weight into out, and return whether bitsandbytes could."""
    if not out.is_cuda or not _fits(weight) or weight.nested is not None:  # nested: two passes and a sum
        return False
    assert weight.codebook is not None
    if not _decodes_alike(out.device, out.dtype, weight.codebook):
        return False
    _dequantise(weight, out)
    return True


def product(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor | None:
    """Return x Ŵᵀ + b for x (m, columns), or None if bitsandbytes cannot."""
    if not x.is_cuda or not _fits(weight) or (bias is not None and bias.dtype != x.dtype):
        return None
    assert weight.codebook is not None
    if weight.nested is not None and weight.nested.group != 256:
        return None
    if not _multiplies_alike(x.device, x.dtype, weight.codebook, weight.nested is not None):
        return None
    return _product(x, weight, bias)


def _fits(weight: Packed) -> bool:
    book = weight.codebook
    if book is None or book.name not in NAMES or weight.block not in BLOCKS:
        return False
    return weight.columns % weight.block == 0 and _operations() is not None


@functools.cache
def _operations() -> Any:
    """Return torch.ops.bitsandbytes, or None if it is not installed, broken, or too old to take these."""
    try:
        import bitsandbytes  # noqa: F401
    except Exception:  # a library that was built for another CUDA may raise anything
        return None
    wanted = ("dequantize_4bit", "gemm_4bit")
    return torch.ops.bitsandbytes if all(hasattr(torch.ops.bitsandbytes, name) for name in wanted) else None


def _dequantise(weight: Packed, out: Tensor) -> None:
    assert weight.codebook is not None
    _operations().dequantize_4bit.out(
        weight.codes, weight.absmax.flatten(), weight.block, weight.codebook.name, list(out.shape), out.dtype,
        out=out,
    )  # fmt: skip


def _product(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    assert weight.codebook is not None
    shape = [len(weight.codes), weight.columns]
    plain, nested = weight.absmax.flatten(), weight.nested
    words: dict[str, Tensor] = {}
    if nested is not None:
        words = {
            "absmax_8bit": plain,
            "absmax_code": nested.codebook.levels(x.device),
            "absmax_offset": nested.offset.view(()),
        }
        plain = nested.absmax
    out: Tensor = _operations().gemm_4bit(
        x, weight.codes.view(-1, 1), shape, plain, weight.block, weight.codebook.name, bias, **words
    )
    return out


@once
def _decodes_alike(device: torch.device, dtype: torch.dtype, book: Codebook) -> bool:
    """Return whether a few weights come out to the same bits."""
    try:
        weight = _example(device, book, nested=False)
        found = torch.empty(TRIED, dtype=dtype, device=device)
        _dequantise(weight, found)
        return torch.equal(found, reference.dequantise(weight, dtype))
    except Exception:  # whatever is wrong with it, there are other kernels
        return False


@once
def _multiplies_alike(device: torch.device, dtype: torch.dtype, book: Codebook, nested: bool) -> bool:
    """Return whether a small product agrees to the precision of its format."""
    try:
        weight = _example(device, book, nested=nested)
        x = torch.linspace(0.1, 1, TRIED[1], device=device).to(dtype).view(1, -1)
        exact = reference.dequantise(weight, torch.float64)
        error = _product(x, weight, None).double() - x.double() @ exact.T
        return bool((error.abs() <= NEAR[dtype] * (x.double() @ exact.abs().T)).all())
    except Exception:
        return False


def _example(device: torch.device, book: Codebook, *, nested: bool) -> Packed:
    values = torch.linspace(-3, 3, TRIED[0] * TRIED[1], device=device).sin().view(TRIED)
    codes, absmax = reference.quantise_4bit(
        values * torch.arange(1, TRIED[0] + 1, device=device)[:, None], book, 64
    )
    if not nested:
        return Packed(codes, absmax, book, 64, TRIED[1])
    small = torch.arange(absmax.numel(), device=device).to(torch.uint8).view(absmax.shape)
    outer = torch.tensor([0.7], device=device)
    levels = Codebook("example", tuple(i / 255 for i in range(256)))
    return Packed(codes, small, book, 64, TRIED[1], Nested(outer, torch.tensor([0.3], device=device), levels))
