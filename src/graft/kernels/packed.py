"""What the kernels work on: a codebook, and a weight packed with it.

value = levels[code] · absmax[block]          4 bits, 16 levels in [−1, 1]
value = code · absmax[row] / 127              8 bits, no codebook
value = scale[group] · code + minimum[group]  2, 3, 4 or 8 bits
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

Made = TypeVar("Made")


class Search(NamedTuple):
    """Tables for the nearest level: see `Codebook.search`.

    start: (65536,) uint8: how many midpoints lie below every value whose upper 16 bits are this index.
    midpoints: (levels,) fp32, ascending, closed by +inf.
    order: (levels,) uint8: position in ascending order -> code; None if codes ascend already.
    """

    start: Tensor
    midpoints: Tensor
    order: Tensor | None


@dataclass(frozen=True, eq=False)
class Codebook:
    """The values that codes stand for, in code order; one instance per number format and process."""

    name: str
    values: tuple[float, ...]

    def levels(self, device: torch.device) -> Tensor:
        """Return (levels,) fp32 on `device`, in code order."""
        return _levels(self, device)

    def pairs(self, device: torch.device) -> Tensor:
        """Return (256,) int64: entry `byte` holds the fp32 levels of its high and its low nibble."""
        return _pairs(self, device)

    def search(self, device: torch.device) -> Search:
        """Return tables that find the nearest level of an fp32 in two lookups instead of a binary search.

        The upper 16 bits of an fp32 (a bf16, truncated) name an interval that is narrower than the distance
        between any two midpoints of our codebooks, so one comparison is left. The code is exactly the number
        of midpoints below the value, as `torch.bucketize` returns it, in an eighth of its time.
        """
        return _search(self, device)


def once(build: Callable[..., Made]) -> Callable[..., Made]:
    """Make a table when it is first asked for, and keep it: real numbers, whatever mode asks first.

    A table made during a trace would have no memory behind it, and stay so for the whole process.
    """

    @cache
    @wraps(build)
    def made(*of: Any, **named: Any) -> Made:
        with unset_fake_temporarily(), torch.inference_mode(False):
            return build(*of, **named)

    return made


@once
def _levels(book: Codebook, device: torch.device) -> Tensor:
    return torch.tensor(book.values, dtype=torch.float32, device=device)


@once
def _pairs(book: Codebook, device: torch.device) -> Tensor:
    levels = torch.tensor(book.values, dtype=torch.float32, device="cpu")
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)
    return pairs.view(torch.int64).flatten().to(device)


@once
def _search(book: Codebook, device: torch.device) -> Search:
    levels = torch.tensor(book.values, dtype=torch.float32, device="cpu")
    ascending, order = levels.sort(stable=True)  # FP4 has two zeros: the first must stay first
    midpoints = (ascending[:-1] + ascending[1:]) / 2
    upper = torch.arange(-32768, 32768, dtype=torch.int32, device="cpu") << 16
    # The smallest of all values with these upper bits.
    smallest = torch.where(upper < 0, upper | 0xFFFF, upper).view(torch.float32)
    start = torch.bucketize(smallest, midpoints).to(torch.uint8)
    closed = torch.cat([midpoints, torch.tensor([torch.inf], device="cpu")])
    sorted_already = bool((order == torch.arange(len(order), device="cpu")).all())
    codes = None if sorted_already else order.to(torch.uint8).to(device)
    return Search(start.to(device), closed.to(device), codes)


class Nested(NamedTuple):
    """Constants of double quantisation: absmax = levels[code] · absmax[group] + offset.

    Groups run over the flat absmax.
    """

    absmax: Tensor  # (groups,) fp32
    offset: Tensor  # (1,) fp32
    codebook: Codebook
    group: int = 256


class Packed(NamedTuple):
    """A weight (out, in) in few bits, laid out by rows; blocks never cross a row.

    codes: (out, ⌈in/2⌉) uint8, the even column in the high nibble; or (out, in) int8 without a codebook.
    absmax: (out, ⌈in/block⌉) fp32, or uint8 codes of `nested`; (out, 1) for int8. In the decoder's
    copies it lies in tiles, of three dimensions (`graft.kernels.decoder.in_tiles`).
    columns: in (an odd one is padded in `codes`).
    """

    codes: Tensor
    absmax: Tensor
    codebook: Codebook | None
    block: int
    columns: int
    nested: Nested | None = None


class Grouped(NamedTuple):
    """A weight (out, in) as whole numbers below 2ᵇ, with a scale and a minimum per group of a row.

    codes: (out, bytes) uint8: a row is a stream of bits, the first column in the highest; see
    `groups.row_bytes`.
    scale, minimum: (out, ⌈in/block⌉), in half precision as stored; the last group of a row may be short.
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor
    bits: int
    block: int
    columns: int
