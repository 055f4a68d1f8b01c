"""An fp32 master of a bf16 parameter in two halves: the parameter itself, and the 16 bits that it has lost.

    bits(master) = bits(parameter) · 2¹⁶ + low        low: int16, what rounding to bf16 took away

The parameter is the master rounded to the nearest. So the two halves need 4 bytes, where a parameter and a
whole master need 6. For a tie that was rounded down `low` would be 2¹⁵, which int16 cannot hold: such a
master is lowered by one step of fp32.
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
