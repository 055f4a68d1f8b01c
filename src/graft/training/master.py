"""An fp32 master of a bf16 parameter in two halves: the parameter itself, and the 16 bits that it has lost.

    master = bits(parameter) · 2¹⁶ + low        low: int16, how far the parameter was rounded, in steps of the master

The parameter is the master rounded to the nearest, so the halves need 4 bytes where a copy beside it needs 6. Of a
tie that was rounded down, `low` would be 2¹⁵, which int16 does not hold: such a master is lowered by one step of fp32.
"""

import torch


def joined(parameter: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Return the master in fp32.  parameter: bf16.  low: int16 of the same shape."""
    high = parameter.view(torch.int16).to(torch.int32) << 16
    return (high + low).view(torch.float32)


def split_(master: torch.Tensor, parameter: torch.Tensor, low: torch.Tensor) -> None:
    """Write a master in fp32 into its halves."""
    parameter.copy_(master)
    high = parameter.view(torch.int16).to(torch.int32) << 16
    low.copy_((master.view(torch.int32) - high).clamp_(max=2**15 - 1))
