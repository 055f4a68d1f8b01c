"""Number formats of GGUF, the files of llama.cpp: floats, and blocks of 32 neighbours of one row.

    q8_0   d | 32 signed bytes         d·q            d = max|x| / 127
    q4_0   d | 16 bytes                d·(q − 8)      d = (the x of largest magnitude) / −8
    q4_1   d | m | 16 bytes            d·q + m        d = (max − min) / 15, m = min
    q5_0   d | 4 bytes | 16 bytes      d·(q − 16)     as q4_0 with −16
    q5_1   d | m | 4 bytes | 16 bytes  d·q + m        as q4_1 with 31

d and m are fp16. Byte j of the 16 holds code j in its low half and code j + 16 in its high half; bit j of the
4 bytes is the fifth bit of code j. Codes are found with d before its rounding to fp16, as llama.cpp does: the
bytes are the same.
ggml, ggml-quants.c (quantize_row_*_ref); numbers of the types: ggml.h.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 32
CHUNK = 2**22  # numbers that are encoded or decoded at a time


class Form(NamedTuple):
    """A number format.

    number: in files.  dtype: of a float type.  bits, minimum: of a block type's codes, and whether it has m.
    """

    number: int
    dtype: torch.dtype | None = None
    bits: int = 0
    minimum: bool = False

    def row_bytes(self, columns: int) -> int:
        """Return the size of a row; block types need a multiple of 32 columns."""
        if self.dtype is not None:
            return columns * self.dtype.itemsize
        return columns // BLOCK * (2 + 2 * self.minimum + BLOCK * self.bits // 8)

    def takes(self, columns: int) -> bool:
        """Return whether a row of this many numbers can be stored."""
        return self.dtype is not None or columns % BLOCK == 0


FORMS = {
    "f32": Form(0, torch.float32),
    "f16": Form(1, torch.float16),
    "bf16": Form(30, torch.bfloat16),
    "q8_0": Form(8, bits=8),
    "q4_0": Form(2, bits=4),
    "q4_1": Form(3, bits=4, minimum=True),
    "q5_0": Form(6, bits=5),
    "q5_1": Form(7, bits=5, minimum=True),
}
NAMES = {form.number: name for name, form in FORMS.items()}


def encode(weight: Tensor, name: str) -> Tensor:
    """Encode weight (rows, columns), any float -> bytes (rows, row_bytes).

    What fp16 cannot hold comes back as infinity.
    """
    form = FORMS[name]
    out = torch.empty(len(weight), form.row_bytes(weight.shape[1]), dtype=torch.uint8)
    for rows in _chunks(weight.shape):
        part = weight[rows].cpu()
        out[rows] = _bytes(part.to(form.dtype)) if form.dtype is not None else _quantise(part.float(), form)
    return out


def decode(stored: Tensor, name: str) -> Tensor:
    """Decode bytes (rows, row_bytes) -> the numbers (rows, columns): fp32, or the float type itself."""
    form = FORMS[name]
    if form.dtype is not None:
        return stored.contiguous().view(form.dtype)
    codes, scale, minimum = unpack(stored, name)
    out = torch.empty(len(codes), codes.shape[1] * BLOCK)
    for rows in _chunks(out.shape):
        values = codes[rows].float() * scale[rows].float()[..., None]
        out[rows] = (values if minimum is None else values + minimum[rows].float()[..., None]).flatten(1)
    return out


def pack(codes: Tensor, scale: Tensor, minimum: Tensor | None, name: str) -> Tensor:
    """Pack blocks as they are: codes (rows, n, 32), scale and minimum (rows, n) -> bytes (rows, row_bytes).

    codes: whole numbers from the least of the type on: −128 (q8_0), −8 (q4_0), −16 (q5_0), 0 (q4_1, q5_1).
    Only scale and minimum are rounded, to fp16.
    """
    form = FORMS[name]
    parts = [_bytes(scale.half()[..., None])]
    if minimum is not None:
        parts.append(_bytes(minimum.half()[..., None]))
    if form.bits == 8:
        return torch.cat([*parts, codes.to(torch.int8).view(torch.uint8)], -1).flatten(1)
    unsigned = (codes if form.minimum else codes + 2 ** (form.bits - 1)).to(torch.uint8)
    if form.bits == 5:
        eights = (unsigned >> 4).unflatten(-1, (4, 8))
        parts.append((eights << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8))
    low, high = (unsigned & 15).unflatten(-1, (2, 16)).unbind(-2)
    return torch.cat([*parts, low | (high << 4)], -1).flatten(1)


def unpack(stored: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (codes int8, scale fp16, minimum fp16 or None): the inverse of `pack`."""
    form = FORMS[name]
    blocks = stored.unflatten(1, (-1, form.row_bytes(BLOCK)))
    scale, rest = blocks[..., :2].contiguous().view(torch.float16)[..., 0], blocks[..., 2:]
    minimum = None
    if form.minimum:
        minimum, rest = rest[..., :2].contiguous().view(torch.float16)[..., 0], rest[..., 2:]
    if form.bits == 8:
        return rest.contiguous().view(torch.int8), scale, minimum
    halves = rest[..., -16:]
    codes = torch.cat([halves & 15, halves >> 4], -1)
    if form.bits == 5:
        fifth = (rest[..., :4, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        codes |= fifth.flatten(-2) << 4
    return codes.to(torch.int8) - (0 if form.minimum else 2 ** (form.bits - 1)), scale, minimum


def _quantise(weight: Tensor, form: Form) -> Tensor:
    blocks = weight.unflatten(1, (-1, BLOCK))
    name = NAMES[form.number]
    if form.minimum:
        minimum = blocks.amin(-1)
        scale = (blocks.amax(-1) - minimum) / (2**form.bits - 1)
        codes = ((blocks - minimum[..., None]) * _inverse(scale) + 0.5).trunc().clamp(0, 2**form.bits - 1)
        return pack(codes, scale, minimum, name)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0]
    if form.bits == 8:
        scale = largest.abs() / 127
        steps = blocks * _inverse(scale)
        size = steps.abs().floor()
        # Halves go away from zero, as in C's roundf.
        codes = steps.sign() * (size + (2 * (steps.abs() - size)).floor())
        return pack(codes, scale, None, name)
    middle = 2 ** (form.bits - 1)
    scale = largest / -middle
    codes = (blocks * _inverse(scale) + (middle + 0.5)).trunc().clamp(0, 2 * middle - 1) - middle
    return pack(codes, scale, None, name)


def _inverse(scale: Tensor) -> Tensor:
    """Return 1/d for each block's numbers; 0 if a block is constant."""
    return torch.where(scale == 0, 0, 1 / scale)[..., None]


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(torch.uint8)


def _chunks(shape: torch.Size) -> list[slice]:
    step = max(1, CHUNK // max(1, shape[1]))
    return [slice(start, start + step) for start in range(0, shape[0], step)]
