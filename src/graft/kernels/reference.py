"""The operations of `graft.kernels` in plain torch: the definition every faster kernel is tested against.

Everything is done in chunks of rows inside one reused workspace: a fresh large tensor costs more in page
faults than the arithmetic, and glibc keeps what temporaries once took (peak memory 590 MiB instead of 136 on
a 300 MiB model).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.kernels.packed import Codebook, Packed

__all__ = [
    "dequantise",
    "dequantise_blocks",
    "find_nearest",
    "linear",
    "linear_backward",
    "pack",
    "quantise_4bit",
    "quantise_blocks",
    "quantise_int8",
    "unpack",
]

CHUNK = 1 << 18  # elements of a workspace: 1 MiB in fp32, which stays in a CPU's second-level cache
CHUNK_GPU = 1 << 25  # there launches cost, and freed memory is used again
SMALLEST = 1e-38  # guards the division in a block of zeros, whose absmax stays 0 (bitsandbytes has the same)


class _Workspace:
    """Scratch for `rows` x `columns` elements; a smaller last chunk uses its first rows."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.values = torch.zeros(rows, columns, dtype=torch.float32, device=device)
        self.found = torch.empty(rows, columns, dtype=torch.float32, device=device)
        self.index = torch.empty(rows, columns, dtype=torch.int32, device=device)
        self.codes = torch.empty(rows, columns, dtype=torch.uint8, device=device)

    def nearest(self, rows: int, codebook: Codebook) -> Tensor:
        """Return codes (rows, columns) uint8 of the levels nearest to the first rows of `values`.

        The next call overwrites them.
        """
        tables = codebook.search(self.values.device)
        values, index, codes = (t[:rows].view(-1) for t in (self.values, self.index, self.codes))
        found = self.found[:rows].view(-1)
        torch.bitwise_right_shift(values.view(torch.int32), 16, out=index)
        index += 32768
        torch.index_select(tables.start, 0, index, out=codes)
        index.copy_(codes)
        torch.index_select(tables.midpoints, 0, index, out=found)
        codes += values > found
        if tables.order is not None:
            index.copy_(codes)
            torch.index_select(tables.order, 0, index, out=codes)
        return self.codes[:rows]


def row_chunks(rows: int, columns: int, device: torch.device) -> tuple[int, list[tuple[int, int]]]:
    """Return how many rows fit a workspace, and (start, stop) of each chunk of rows."""
    size = CHUNK if device.type == "cpu" else CHUNK_GPU
    step = max(1, min(rows, size // max(columns, 1)))
    return step, [(start, min(start + step, rows)) for start in range(0, rows, step)]


def find_nearest(values: Tensor, codebook: Codebook) -> Tensor:
    """Return the uint8 codes of the levels nearest to `values` (any shape, fp32, in [−1, 1]).

    At a midpoint the lower level is taken.
    """
    flat = values.reshape(1, -1)
    scratch = _Workspace(1, flat.shape[1], values.device)
    scratch.values.copy_(flat)
    return scratch.nearest(1, codebook).view(values.shape)


def quantise_blocks(x: Tensor, codebook: Codebook, block: int) -> tuple[Tensor, Tensor]:
    """Quantise x (rows, n) by absmax in blocks along the last dimension; the last block may be short.

    Returns codes (rows, n) uint8 and absmax (rows, ⌈n/block⌉) fp32. A NaN or infinity shows in its block's
    absmax.
    """
    rows, n = x.shape
    blocks = -(-n // block)
    codes = torch.empty(rows, n, dtype=torch.uint8, device=x.device)
    absmax = torch.empty(rows, blocks, dtype=torch.float32, device=x.device)
    step, chunks = row_chunks(rows, blocks * block, x.device)
    scratch = _Workspace(step, blocks * block, x.device)
    for start, stop in chunks:
        _scale(x[start:stop], absmax[start:stop], scratch)
        codes[start:stop] = scratch.nearest(stop - start, codebook)[:, :n]
    return codes, absmax


def _scale(x: Tensor, absmax: Tensor, scratch: _Workspace) -> None:
    """Write x / absmax, padded with zeros to whole blocks, into the workspace; block maxima into absmax."""
    rows, n = x.shape
    values = scratch.values[:rows]
    values[:, n:] = 0
    values[:, :n] = x
    values = values.view(*absmax.shape, -1)
    low, high = torch.aminmax(values, dim=-1)
    torch.maximum(low.neg_(), high, out=absmax)
    values.mul_(absmax.clamp(min=SMALLEST).reciprocal_().unsqueeze(-1)).clamp_(-1, 1)


def dequantise_blocks(codes: Tensor, absmax: Tensor, codebook: Codebook, out: Tensor) -> Tensor:
    """Write levels[code] · absmax into out (rows, n), and return it.

    codes: (rows, n).  absmax: (rows, blocks), of equal blocks.
    """
    rows, n = codes.shape
    levels = codebook.levels(codes.device)
    step, chunks = row_chunks(rows, n, codes.device)
    values = torch.empty(step, n, dtype=torch.float32, device=codes.device)
    index = torch.empty(step, n, dtype=torch.int32, device=codes.device)
    for start, stop in chunks:
        part, where = values[: stop - start], index[: stop - start]
        where.copy_(codes[start:stop])
        torch.index_select(levels, 0, where.view(-1), out=part.view(-1))
        part.view(stop - start, absmax.shape[1], -1).mul_(absmax[start:stop].unsqueeze(-1))
        out[start:stop] = part
    return out


def pack(nibbles: Tensor) -> Tensor:
    """Pack (rows, 2m) uint8 below 16 -> (rows, m): the even column in the high nibble."""
    return nibbles[:, ::2].bitwise_left_shift(4).bitwise_or_(nibbles[:, 1::2])


def unpack(packed: Tensor) -> Tensor:
    """Unpack (rows, m) bytes -> (rows, 2m) nibbles, the high one first."""
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(1)


def quantise_4bit(weight: Tensor, codebook: Codebook, block: int) -> tuple[Tensor, Tensor]:
    """Quantise (out, in) of any float type -> codes (out, ⌈in/2⌉) uint8 and absmax (out, ⌈in/block⌉) fp32."""
    rows, n = weight.shape
    blocks = -(-n // block)
    codes = torch.empty(rows, -(-n // 2), dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(rows, blocks, dtype=torch.float32, device=weight.device)
    step, chunks = row_chunks(rows, blocks * block, weight.device)
    scratch = _Workspace(step, blocks * block, weight.device)
    for start, stop in chunks:
        _scale(weight[start:stop], absmax[start:stop], scratch)
        codes[start:stop] = pack(scratch.nearest(stop - start, codebook))[:, : codes.shape[1]]
    return codes, absmax


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (out, in) -> codes (out, in) int8 in ±127 and absmax (out, 1) fp32.

    code = round(w · 127 / absmax)
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    absmax = torch.empty(weight.shape[0], 1, dtype=torch.float32, device=weight.device)
    step, chunks = row_chunks(weight.shape[0], weight.shape[1], weight.device)
    scratch = torch.empty(step, weight.shape[1], dtype=torch.float32, device=weight.device)
    for start, stop in chunks:
        values = scratch[: stop - start].copy_(weight[start:stop])
        low, high = torch.aminmax(values, dim=1, keepdim=True)
        torch.maximum(low.neg_(), high, out=absmax[start:stop])
        codes[start:stop] = (
            values.mul_(127.0 / absmax[start:stop].clamp(min=SMALLEST)).round_().clamp_(-127, 127)
        )
    return codes, absmax


def dequantise(weight: Packed, dtype: torch.dtype) -> Tensor:
    """Return the values (out, in) in `dtype`: products in fp32, rounded once."""
    rows, width = weight.codes.shape
    absmax = fp32_absmax(weight)
    out = torch.empty(rows, weight.columns, dtype=dtype, device=weight.codes.device)
    per_code = 1 if weight.codebook is None else 2
    step, chunks = row_chunks(rows, width * per_code, out.device)
    values = torch.empty(step, width * per_code, dtype=torch.float32, device=out.device)
    index = torch.empty(step, width, dtype=torch.int32, device=out.device)
    for start, stop in chunks:
        part = values[: stop - start]
        if weight.codebook is None:
            part.copy_(weight.codes[start:stop]).mul_(absmax[start:stop] / 127)
        else:
            where = index[: stop - start].copy_(weight.codes[start:stop])
            pairs = weight.codebook.pairs(out.device)
            torch.index_select(pairs, 0, where.view(-1), out=part.view(torch.int64).view(-1))
            _rescale(part, absmax[start:stop], weight.block)
        out[start:stop] = part[:, : weight.columns]
    return out


def _rescale(values: Tensor, absmax: Tensor, block: int) -> None:
    whole = values.shape[1] // block * block
    if whole:
        values[:, :whole].unflatten(1, (-1, block)).mul_(absmax[:, : whole // block].unsqueeze(-1))
    values[:, whole:].mul_(absmax[:, -1:])


def fp32_absmax(weight: Packed) -> Tensor:
    """Return the fp32 absmax of a weight in the shape of its `absmax`, decoded if it is quantised itself."""
    if weight.nested is None:
        return weight.absmax
    nested, flat = weight.nested, weight.absmax.flatten()
    decoded = nested.codebook.levels(flat.device).index_select(0, flat.int())
    whole = len(flat) // nested.group * nested.group
    decoded[:whole].view(-1, nested.group).mul_(nested.absmax[: whole // nested.group].unsqueeze(-1))
    decoded[whole:].mul_(nested.absmax[-1])
    return decoded.add_(nested.offset).view(weight.absmax.shape)


def linear(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    """Return x Ŵᵀ + b (..., out) for x (..., in), computed in x's dtype."""
    return F.linear(x, dequantise(weight, x.dtype), bias)


def linear_backward(dy: Tensor, weight: Packed) -> Tensor:
    """Return dy Ŵ (..., in) for dy (..., out), computed in dy's dtype."""
    return dy @ dequantise(weight, dy.dtype)
