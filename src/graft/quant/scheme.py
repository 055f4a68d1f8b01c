"""A scheme: how the weights of a base are stored, in one word and two numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from graft import kernels
from graft.errors import UsageError, nearest
from graft.kernels import Codebook
from graft.quant import double, int8
from graft.quant.fp4 import FP4
from graft.quant.nf4 import NF4

CODEBOOKS: dict[str, Codebook | None] = {"nf4": NF4, "fp4": FP4, "int8": None}


@dataclass(frozen=True)
class Scheme:
    """name: nf4, fp4 or int8.  block: weights per absmax (4 bits; int8 has one per row).  double: absmax in 8 bits."""

    name: str = "nf4"
    block: int = 64
    double: bool = True

    def __post_init__(self) -> None:
        if self.name not in CODEBOOKS:
            known = ", ".join(CODEBOOKS)
            raise UsageError(
                f"quant={self.name!r}", f"one of {known}", f"did you mean {nearest(self.name, CODEBOOKS, 1)[0]!r}?"
            )
        if self.block < 2 or self.block % 2:
            raise UsageError(f"a block of {self.block} weights", "an even number, usual are 32 to 4096", "use 64")
        if self.codebook is None:
            object.__setattr__(self, "double", False)  # one fp32 per row is nothing to save on

    @property
    def codebook(self) -> Codebook | None:
        """The levels, or None where codes are whole numbers."""
        return CODEBOOKS[self.name]

    @property
    def bits(self) -> float:
        """Bits per weight in long rows, constants included."""
        if self.codebook is None:
            return 8.0
        return 4 + ((8 + 32 / double.GROUP) if self.double else 32) / self.block

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name, shape and dtype of every tensor of a packed weight."""
        if self.codebook is None:
            return {"codes": ((out_features, in_features), torch.int8), "absmax": ((out_features, 1), torch.float32)}
        blocks = -(-in_features // self.block)
        tensors = {"codes": ((out_features, -(-in_features // 2)), torch.uint8)}
        if not self.double:
            return tensors | {"absmax": ((out_features, blocks), torch.float32)}
        groups = -(-out_features * blocks // double.GROUP)
        return tensors | {
            "absmax": ((out_features, blocks), torch.uint8),
            "nested_absmax": ((groups,), torch.float32),
            "nested_offset": ((1,), torch.float32),
        }

    def quantise(self, weight: Tensor) -> dict[str, Tensor] | None:
        """(out, in) -> the tensors of `shapes`; None where the weight holds a NaN or an infinity."""
        if self.codebook is None:
            codes, absmax = int8.quantise(weight)
        else:
            codes, absmax = kernels.find("quantise_4bit", weight.device.type)(weight, self.codebook, self.block)
        if not torch.isfinite(absmax).all():
            return None
        if not self.double:
            return {"codes": codes, "absmax": absmax}
        small, nested = double.compress(absmax)
        return {"codes": codes, "absmax": small, "nested_absmax": nested.absmax, "nested_offset": nested.offset}
