"""A scheme: how the weights of a base are stored, in one word and two numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from graft import kernels
from graft.errors import UsageError, one_of
from graft.kernels import Codebook
from graft.kernels.groups import row_bytes
from graft.quant import double, int8
from graft.quant.fp4 import FP4
from graft.quant.nf4 import NF4

CODEBOOKS: dict[str, Codebook | None] = {"nf4": NF4, "fp4": FP4, "int8": None}
GROUPED = {"int4": 4, "int3": 3, "int2": 2, "int8g": 8}  # bits of the codes
NAMES = (*CODEBOOKS, *GROUPED)


@dataclass(frozen=True)
class Scheme:
    """How the weights of a base are stored.

    name: one of NAMES.  block: weights per absmax (nf4, fp4), or per scale and minimum (int4, int3, int2,
    int8g); int8 has one absmax per row. 0 means the usual: 64, or 32 for groups.  double: keep absmax in 8
    bits (nf4, fp4).
    """

    name: str = "nf4"
    block: int = 0
    double: bool = True

    def __post_init__(self) -> None:
        one_of("quant", self.name, NAMES)
        if self.block == 0:
            object.__setattr__(self, "block", 32 if self.grouped else 64)
        if self.block < 2 or self.block % 2:
            raise UsageError(
                f"a block of {self.block} weights", "an even number, usually 32 to 4096", "use 64"
            )
        if self.codebook is None:  # one fp32 per row, or two halves per group: nothing to save on
            object.__setattr__(self, "double", False)

    @property
    def grouped(self) -> bool:
        """Return whether codes are whole numbers with a scale and a minimum per group."""
        return self.name in GROUPED

    @property
    def codebook(self) -> Codebook | None:
        """Return the levels, or None where codes are whole numbers."""
        return CODEBOOKS.get(self.name)

    @property
    def bits(self) -> float:
        """Return bits per weight in long rows, constants included."""
        if self.grouped:
            return GROUPED[self.name] + 2 * 16 / self.block
        if self.codebook is None:
            return 8.0
        return 4 + ((8 + 32 / double.GROUP) if self.double else 32) / self.block

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name, shape and dtype of every tensor of a packed weight."""
        blocks = -(-in_features // self.block)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]
        if self.grouped:
            halves = ((out_features, blocks), torch.float16)
            codes = ((out_features, row_bytes(in_features, GROUPED[self.name])), torch.uint8)
            return {"codes": codes, "scale": halves, "minimum": halves}
        if self.codebook is None:
            return {
                "codes": ((out_features, in_features), torch.int8),
                "absmax": ((out_features, 1), torch.float32),
            }
        shapes = {"codes": ((out_features, -(-in_features // 2)), torch.uint8)}
        if not self.double:
            return shapes | {"absmax": ((out_features, blocks), torch.float32)}
        groups = -(-out_features * blocks // double.GROUP)
        return shapes | {
            "absmax": ((out_features, blocks), torch.uint8),
            "nested_absmax": ((groups,), torch.float32),
            "nested_offset": ((1,), torch.float32),
        }

    def quantise(self, weight: Tensor) -> dict[str, Tensor] | None:
        """Quantise (out, in) -> the tensors of `shapes`; None if the weight holds a NaN or an infinity."""
        if self.grouped:
            return self._groups(weight)
        if self.codebook is None:
            codes, absmax = int8.quantise(weight)
        else:
            codes, absmax = kernels.find("quantise_4bit", weight.device.type)(
                weight, self.codebook, self.block
            )
        if not torch.isfinite(absmax).all():
            return None
        if not self.double:
            return {"codes": codes, "absmax": absmax}
        small, nested = double.compress(absmax)
        return {
            "codes": codes,
            "absmax": small,
            "nested_absmax": nested.absmax,
            "nested_offset": nested.offset,
        }

    def _groups(self, weight: Tensor) -> dict[str, Tensor] | None:
        quantise = kernels.find("quantise_groups", weight.device.type)
        codes, scale, minimum = quantise(weight, GROUPED[self.name], self.block)
        if not (torch.isfinite(scale).all() and torch.isfinite(minimum).all()):
            return None
        return {"codes": codes, "scale": scale, "minimum": minimum}
