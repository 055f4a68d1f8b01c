"""Double quantisation: the absmax of 4-bit blocks in 8 bits, 0.127 instead of 0.5 bits per weight.

    offset = mean(absmax);  u = absmax − offset;  A = max|u| over groups of 256;  code = table(u / A)
    absmax^ = levels[code] · A + offset

Dettmers et al. 2023, arXiv 2305.14314. The table has 65,536 entries: entry k holds the code nearest to
2k/65535 − 1, and u / A, rounded, is its index. This is not quite the nearest level, but it is what
bitsandbytes does: the bytes are equal.
"""

import torch
from torch import Tensor

from graft import kernels
from graft.kernels import Nested
from graft.kernels.packed import once
from graft.kernels.reference import SMALLEST
from graft.quant.dynamic import SIGNED

GROUP = 256


@once
def _table(device: torch.device) -> Tensor:
    positions = torch.arange(65536, device=device, dtype=torch.float32)
    return kernels.find("find_nearest", device.type)(positions / 65535 * 2 - 1, SIGNED)


def compress(absmax: Tensor) -> tuple[Tensor, Nested]:
    """Quantise absmax (any shape, fp32) -> uint8 codes of its shape, and the constants that bring it back."""
    offset = absmax.mean()
    u = (absmax - offset).flatten()
    groups = -(-len(u) // GROUP)
    padded = torch.nn.functional.pad(u, (0, groups * GROUP - len(u))).view(groups, GROUP)
    largest = padded.abs().amax(dim=1)
    v = (padded * largest.clamp(min=SMALLEST).reciprocal().unsqueeze(1)).clamp_(-1, 1)
    # Halves go up, as in C; torch.round would take them to even.
    position = ((v + 1) * 32767.5 + 0.5).int().flatten()
    codes = _table(absmax.device).index_select(0, position)[: len(u)].view(absmax.shape)
    return codes, Nested(largest, offset.view(1), SIGNED)
