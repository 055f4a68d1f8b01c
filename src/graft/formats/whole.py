"""Four bits with whole zero points, as GPTQ, AWQ and compressed-tensors store them, each in its own layout.

    ŵ = s·(q − z)        q, z whole, 0 … 15; s and z per group of a row

Eight numbers of four bits fill an int32, the first in the lowest bits. Our own groups have a float minimum
instead of −s·z. Theirs become ours with a minimum rounded to half precision: exact if z is a power of two
(as in all symmetric ones: z = 8), and otherwise off by at most s·z/2048, below 0.8 % of a step. Scales that
are not in fp16 are rounded to it first. Ours become theirs only by `rounded`: a minimum need not have a
whole z.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.errors import ModelError
from graft.kernels.groups import pack_bits

PER_WORD = 8
LARGEST = 15


@dataclass(frozen=True)
class Whole:
    """A layer with whole zero points.

    codes: (out, in) uint8.  zeros: (out, groups) uint8.  scale: (out, groups), float.  group: inputs in a
    group.
    """

    codes: Tensor
    zeros: Tensor
    scale: Tensor
    group: int

    def values(self) -> Tensor:
        """Return ŵ (out, in), fp32."""
        scale, zeros = (self._spread(part.float()) for part in (self.scale, self.zeros))
        return scale * (self.codes - zeros)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a QuantLinear in int4 with the block `block`."""
        minimum = -self.scale.float() * self.zeros
        return {"codes": pack_bits(self.codes, 4), "scale": self.scale.half(), "minimum": minimum.half()}

    @property
    def block(self) -> int:
        """Return the group as a Scheme's block, which is even: one group for a whole row may pass its end."""
        columns = self.codes.shape[1]
        return self.group if self.group < columns else columns + columns % 2

    def _spread(self, constant: Tensor) -> Tensor:
        return constant.repeat_interleave(self.group, 1)[:, : self.codes.shape[1]]


def pack_words(codes: Tensor) -> Tensor:
    """Pack (rows, n) below 16 -> (rows, ⌈n/8⌉) int32, the first in the lowest four bits, padded with zeros.

    >>> f"{pack_words(torch.tensor([[1, 2, 3, 4, 5, 6, 7]])).item():08x}"
    '07654321'
    """
    low, high = F.pad(codes, (0, -codes.shape[1] % PER_WORD)).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
    return (low | high << 4).contiguous().view(torch.int32)


def unpack_words(words: Tensor) -> Tensor:
    """Unpack (rows, n) int32 -> (rows, 8n) uint8."""
    pairs = words.contiguous().view(torch.uint8)
    return torch.stack([pairs & LARGEST, pairs >> 4], dim=-1).flatten(1)


def check_order(name: str, order: Tensor | None, group: int) -> None:
    """Raise ModelError unless the inputs of a layer are grouped in order.  order: each input's group."""
    if order is not None and not torch.equal(
        order.cpu(), torch.arange(len(order), dtype=order.dtype) // group
    ):
        raise ModelError(
            f"{name}: inputs sorted into groups by their activations (desc_act; g_idx is not 0 … 0, …)",
            "groups of neighbours",
            "load a checkpoint made without, or the original model with quant='int4'",
        )


def rounded(
    weight: Tensor, group: int, lowest: int, dtype: torch.dtype, kept: tuple[Tensor, Tensor] | None = None
) -> Whole:
    """Return the nearest codes for weight (out, in), fp32; `group` divides in.

    lowest: smallest zero point.  dtype: of the scales.
    kept: (scale, minimum) that the groups have already. Each group then gets that scale, with the whole zero
    point nearest to −minimum / scale, or a range of its own that holds 0, whichever leaves less error. A
    scale that `dtype` cannot hold comes out infinite.
    """
    groups = weight.unflatten(1, (-1, group))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = torch.maximum((high - low) / LARGEST, high / (LARGEST - lowest))
    best = _nearest(groups, scale, low, lowest, dtype)
    if kept is not None:
        reused = _nearest(groups, kept[0].float(), kept[1].float(), lowest, dtype)
        better = (_error(groups, *reused) <= _error(groups, *best))[..., None]
        codes, zeros, scale = (torch.where(better, new, old) for old, new in zip(best, reused, strict=True))
    else:
        codes, zeros, scale = best
    return Whole(
        codes.flatten(1).to(torch.uint8), zeros[..., 0].to(torch.uint8), scale[..., 0].to(dtype), group
    )


def _nearest(
    groups: Tensor, scale: Tensor, minimum: Tensor, lowest: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (out, groups, group), zero points and scales (out, groups, 1), as floats."""
    step = scale.to(dtype).float()
    step = torch.where(step > 0, step, 1.0)[..., None]  # a group of zeros: any scale will do
    zeros = (-minimum[..., None] / step).round().clamp(lowest, LARGEST)
    return ((groups / step).round() + zeros).clamp(0, LARGEST), zeros, step


def _error(groups: Tensor, codes: Tensor, zeros: Tensor, scale: Tensor) -> Tensor:
    return (scale * (codes - zeros) - groups).square().sum(-1)
