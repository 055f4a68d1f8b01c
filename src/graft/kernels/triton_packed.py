"""Packed weights on a GPU, in Triton: decoded to the reference's bits, or multiplied as they are decoded.

A tile of codes is (R, G, BLOCK): G blocks of BLOCK columns in R rows. `KIND` says what scales a block:

    LEVELS   levels[code] · absmax                         4 bits
    NESTED   the same; absmax = levels8[code8] · absmax8 + offset
    ROWS     code · absmax / 127                           8 bits, signed
    GROUPS   code · scale + minimum                        2, 4 or 8 bits

Decoding is not contracted to fused multiply-adds, which would change the last bit; products may be.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graft.kernels.packed import Grouped, Packed

LEVELS, NESTED, ROWS, GROUPS = range(4)
TILE = 4096  # weights that a program decodes at a time
PRETENDED = 64  # columns of a block where a row has one absmax
WIDEST = 4096  # columns of a block
PRODUCT_WIDEST = 256  # the same in a product, whose tiles stay in registers
MOST_ROWS = 16  # of x, in a product
OUTPUTS = 16  # rows of W in a tile of a product
INNER = 128  # columns of W in a tile, at least
WAVES = 4  # programs of a product for each multiprocessor, before the inner dimension is split no further
MOST_PARTS = 16


@triton.jit
def _decoded(
    codes, first, second, levels, levels8, absmax8, offset, row, block, rows, columns, width, blocks,
    KIND: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Return a tile (R, G, BLOCK) in fp32; row: (R,), block: (G,). What lies outside is anything finite."""
    row = row.to(tl.int64)[:, None]
    here = (row < rows) & (block < blocks)[None, :]
    BYTES: tl.constexpr = BLOCK * BITS // 8
    byte = block[None, :, None] * BYTES + tl.arange(0, BYTES)[None, None, :]
    held = tl.load(codes + row[:, :, None] * width + byte, mask=here[:, :, None] & (byte < width), other=0)
    if KIND == 2:
        code = held.to(tl.int8, bitcast=True).to(tl.int32)
    elif BITS == 4:
        code = tl.interleave((held >> 4).to(tl.int32), (held & 15).to(tl.int32))
    elif BITS == 2:
        even = tl.interleave((held >> 6).to(tl.int32), ((held >> 2) & 3).to(tl.int32))
        odd = tl.interleave(((held >> 4) & 3).to(tl.int32), (held & 3).to(tl.int32))
        code = tl.interleave(even, odd)
    else:
        code = held.to(tl.int32)
    index = row * blocks + block[None, :]
    if KIND == 3:
        scale = tl.load(first + index, mask=here, other=0.0).to(tl.float32)
        minimum = tl.load(second + index, mask=here, other=0.0).to(tl.float32)
        values = code.to(tl.float32) * scale[:, :, None] + minimum[:, :, None]
    elif KIND == 2:
        largest = tl.load(first + row + block[None, :] * 0, mask=here, other=0.0)
        scale = tl.div_rn(largest, tl.full(largest.shape, 127.0, tl.float32))
        values = code.to(tl.float32) * scale[:, :, None]
    else:
        if KIND == 1:
            inner = tl.load(levels8 + tl.load(first + index, mask=here, other=0).to(tl.int32))
            outer = tl.load(absmax8 + index // GROUP, mask=here, other=0.0)
            largest = inner * outer + tl.load(offset)
        else:
            largest = tl.load(first + index, mask=here, other=0.0)
        values = tl.load(levels + code) * largest[:, :, None]
    return values


@triton.jit
def _dequantise(
    codes, first, second, levels, levels8, absmax8, offset, out, rows, columns, width, blocks, chunks,
    KIND: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Write G blocks of a row; columns are those of out."""
    program = tl.program_id(0)
    row = program // chunks + tl.arange(0, 1)
    block = program % chunks * G + tl.arange(0, G)
    values = _decoded(
        codes, first, second, levels, levels8, absmax8, offset, row, block, rows, columns, width, blocks,
        KIND, BITS, BLOCK, GROUP,
    )  # fmt: skip
    column = block[None, :, None] * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    place = out + row.to(tl.int64)[:, None, None] * columns + column
    tl.store(place, values.to(out.dtype.element_ty), mask=column < columns)


@triton.jit
def _product(
    x, codes, first, second, levels, levels8, absmax8, offset, bias, out, m, rows, columns, width, blocks,
    KIND: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr,
    R: tl.constexpr, M: tl.constexpr, PARTS: tl.constexpr, BIASED: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Write x Wᵀ for R rows of W and a part of the columns into out: (m, rows), or (PARTS, m, rows)."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    part = tl.program_id(1)
    K: tl.constexpr = G * BLOCK
    many = tl.arange(0, M)
    total = tl.zeros([M, R], tl.float32)
    apart = tl.zeros([R, G, BLOCK], tl.float32)  # sums of one row of x, added up at the end
    for step in range(part, tl.cdiv(blocks, G), PARTS):
        block = step * G + tl.arange(0, G)
        w = _decoded(
            codes, first, second, levels, levels8, absmax8, offset, row, block, rows, columns, width, blocks,
            KIND, BITS, BLOCK, GROUP,
        )  # fmt: skip
        if M == 1:
            column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
            values = tl.load(x + column, mask=column < columns, other=0.0).to(tl.float32)
            apart += w * values[None, :, :]
        else:
            column = step * K + tl.arange(0, K)
            inside = (many < m)[:, None] & (column < columns)[None, :]
            values = tl.load(x + many[:, None] * columns + column[None, :], mask=inside, other=0.0)
            w2 = tl.reshape(w, [R, K]).to(x.dtype.element_ty).to(DOT)
            total = tl.dot(values.to(DOT), tl.trans(w2), total, input_precision="ieee")
    if M == 1:
        total = tl.sum(tl.sum(apart, 2), 1)[None, :]
    live = (many < m)[:, None] & (row < rows)[None, :]
    if BIASED:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    place = out + (part * m + many)[:, None].to(tl.int64) * rows + row[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=live)


@triton.jit
def _add_parts(
    parts, bias, out, m, rows, PARTS: tl.constexpr, BIASED: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Add the parts of a product in a fixed order."""
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    live = place < m * rows
    total = tl.zeros([SIZE], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + part * m * rows + place, mask=live, other=0.0)
    if BIASED:
        total += tl.load(bias + place % rows, mask=live, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=live)


def decodes(weight: Packed | Grouped) -> bool:
    """Return whether the kernels know this layout: blocks of 2ⁿ columns, codes that do not cross bytes."""
    if isinstance(weight, Grouped):
        return weight.bits in (2, 4, 8) and _power_of_two(weight.block) and weight.block * weight.bits >= 8
    return weight.codebook is None or _power_of_two(weight.block)


def multiplies(weight: Packed | Grouped) -> bool:
    """Return whether `product` knows this layout."""
    return decodes(weight) and (_kind(weight) == ROWS or weight.block <= PRODUCT_WIDEST)


def _power_of_two(block: int) -> bool:
    return 2 <= block <= WIDEST and block & (block - 1) == 0


def _kind(weight: Packed | Grouped) -> int:
    if isinstance(weight, Grouped):
        return GROUPS
    if weight.codebook is None:
        return ROWS
    return LEVELS if weight.nested is None else NESTED


def _described(weight: Packed | Grouped) -> tuple[list[Tensor], dict[str, int]]:
    """Return the pointers of `_decoded` (what a kind does not read is any tensor), and its constants."""
    kind, codes = _kind(weight), weight.codes
    if isinstance(weight, Grouped):
        pointers = [codes, weight.scale, weight.minimum, *[codes] * 4]
        return pointers, {"KIND": kind, "BITS": weight.bits, "BLOCK": weight.block, "GROUP": 1}
    if weight.codebook is None:
        codes = codes.view(torch.uint8)
        return [codes, weight.absmax, *[codes] * 5], {"KIND": kind, "BITS": 8, "BLOCK": PRETENDED, "GROUP": 1}
    pointers = [codes, weight.absmax, codes, weight.codebook.levels(codes.device)]
    group, nested = 1, weight.nested
    if nested is None:
        pointers += [codes] * 3
    else:
        pointers += [nested.codebook.levels(codes.device), nested.absmax, nested.offset]
        group = nested.group
    return pointers, {"KIND": kind, "BITS": 4, "BLOCK": weight.block, "GROUP": group}


def dequantise(weight: Packed | Grouped, out: Tensor) -> Tensor:
    """Write the values of a weight that `decodes` into out (rows, columns), contiguous, and return it."""
    (rows, width), columns = weight.codes.shape, weight.columns
    pointers, statics = _described(weight)
    block = statics["BLOCK"]
    short = rows * columns < 1 << 31  # places in a row are numbers of 32 bits
    if statics["KIND"] != ROWS and columns % block == 0 and short:  # blocks of all rows in one row
        rows, columns, width = min(rows, 1), rows * columns, rows * width
    blocks = triton.cdiv(columns, block)
    g = min(max(1, TILE // block), triton.next_power_of_2(max(blocks, 1)))
    chunks = triton.cdiv(blocks, g)
    if rows * chunks:
        _dequantise[(rows * chunks,)](
            *pointers, out, rows, columns, width, blocks, chunks, **statics, G=g, enable_fp_fusion=False
        )
    return out


def product(x: Tensor, weight: Packed | Grouped, bias: Tensor | None) -> Tensor:
    """Return x Ŵᵀ + b (m, rows) for x (m, columns), contiguous, 1 <= m <= `MOST_ROWS`, in one pass over Ŵ.

    The order of additions depends on shapes and the device alone.
    """
    (m, columns), (rows, width) = x.shape, weight.codes.shape
    pointers, statics = _described(weight)
    block = statics["BLOCK"]
    blocks = triton.cdiv(columns, block)
    out = torch.empty(m, rows, dtype=x.dtype, device=x.device)
    g = max(1, INNER // block)
    parts = split(triton.cdiv(rows, OUTPUTS), triton.cdiv(blocks, g), multiprocessors(x.device))
    whole = parts == 1
    into = out if whole else torch.empty(parts, m, rows, dtype=torch.float32, device=x.device)
    _product[(triton.cdiv(rows, OUTPUTS), parts)](
        x, *pointers, bias if bias is not None else x, into, m, rows, columns, width, blocks, **statics,
        G=g, R=OUTPUTS, M=1 if m == 1 else MOST_ROWS, PARTS=parts, BIASED=whole and bias is not None,
        DOT=_multiplied(x), enable_fp_fusion=True,
    )  # fmt: skip
    if not whole:
        _add_parts[(triton.cdiv(m * rows, 1024),)](
            into, bias if bias is not None else x, out, m, rows, PARTS=parts, BIASED=bias is not None,
            SIZE=1024, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _multiplied(x: Tensor) -> Any:
    """Return the format of a product's operands: x's, but Triton's interpreter cannot multiply bf16."""
    if x.dtype == torch.float16:
        return tl.float16
    return tl.bfloat16 if x.dtype == torch.bfloat16 and x.is_cuda else tl.float32


def split(programs: int, steps: int, processors: int) -> int:
    """Return into how many parts, a power of two, the inner dimension of a product is split.

    Enough parts for `WAVES` programs a multiprocessor, and no part without a step.
    """
    parts = 1
    while parts * programs < WAVES * processors and 2 * parts <= min(steps, MOST_PARTS):
        parts *= 2
    return parts


def multiprocessors(device: torch.device) -> int:
    """Return the number of a GPU's multiprocessors; the interpreter has one."""
    if device.type != "cuda":
        return 1
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count)
