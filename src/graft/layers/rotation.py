"""Rotate what enters a projection, a block of features at a time: what OFT and BOFT share.

    xR = x + x(R − I)        R (in, in) block-diagonal, kept as its blocks (in/b, b, b)

R itself is never formed, only the change R − I. That is an exact zero at birth, and a small rotation of a
16-bit x loses nothing to the rounding of 1 + ε.
"""

import torch
from torch import nn


def cayley(Q: torch.Tensor) -> torch.Tensor:
    """Return (I − Q)(I + Q)⁻¹ − I = −2Q(I + Q)⁻¹ for skew Q (..., b, b): an orthogonal matrix minus I."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.solve(eye + Q, -2 * Q, left=False)


def blockwise(x: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return x (..., in) times a block-diagonal matrix of blocks (in/b, b, b), or of one block (1, b, b)."""
    parts = x.unflatten(-1, (-1, change.shape[-1]))
    return torch.einsum("...kb,kbc->...kc", parts, change.to(x.dtype)).flatten(-2)


class BlockDropout(nn.Module):
    """Multiplicative dropout: in training a share p of the blocks (..., blocks, b, b) rotates nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, change: torch.Tensor) -> torch.Tensor:
        count = change.shape[-3]
        if not self.training or int(self.p * count) == 0:
            return change
        kept = torch.randperm(count, device=change.device) >= int(self.p * count)
        return change * kept[:, None, None]
