"""OFT: a trained rotation, block by block, of what enters a frozen projection.

    y = (xR) Wᵀ + b        R (in, in) block-diagonal; b(b−1)/2 angles v per block of b features, 0 at birth
    Q = skew(v)            v above the diagonal row by row, −v below
    use_cayley_neumann:    R = I + 2Q + 2Q² + … + 2Qᵖ⁻¹ + Qᵖ, which tends to (I + Q)(I − Q)⁻¹ only for ‖Q‖ < 1
    else:                  R = (I − Q)(I + Q)⁻¹, orthogonal for every Q; the transpose of the one above
    coft:                  the Frobenius norm of each Q is at most eps/√blocks

An orthogonal R keeps the angles between the neurons (rows of W). Qiu et al. 2023 (2306.07280); the series:
Qiu et al. 2025 (2506.19847). The two branches turn opposite ways because PEFT's do. p is
num_cayley_neumann_terms − 1, at least 3 from three terms on, also as in PEFT.
Differs: the insert computes y + x(R − I)Wᵀ, so inserts add up, even in 16 bits. This takes a second product
with W, for which a packed W is decoded once more and not kept. `module_dropout`, which PEFT accepts without
effect, drops blocks. Embeddings cannot be turned.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from graft.core.insert import Insert, Weights
from graft.core.part import Part
from graft.core.schema import Amount, Few, Positive, Share
from graft.core.site import Site
from graft.errors import UsageError
from graft.layers.rotation import BlockDropout, blockwise, cayley
from graft.layers.targets import Accompanied, TargetedFiles


@dataclass(frozen=True, kw_only=True)
class OFT(Accompanied):
    # features that turn together; where it does not divide the input, its nearest divisor
    oft_block_size: Amount = 32
    r: Amount = 0  # number of blocks instead of their size; then oft_block_size must be 0
    module_dropout: Share = 0.0  # share of the blocks that a training step leaves unturned
    coft: bool = False  # keep every rotation small: constrained OFT
    eps: Positive = 6e-5  # with coft: how large, shared among the blocks
    block_share: bool = False  # one rotation for all blocks of a projection
    # series instead of an exact inverse: faster, orthogonal for small angles only
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Few = 5  # terms of the series

    kinds: ClassVar = ("linear", "head")
    files: ClassVar = TargetedFiles("OFT")

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.r, self.oft_block_size) != 0 or max(self.r, self.oft_block_size) < 1:
            raise UsageError(
                f"r={self.r} with oft_block_size={self.oft_block_size}",
                "one of them positive, the other 0",
                "for example oft_block_size=32, r=0",
            )

    def build(self, site: Site) -> Insert:
        width = site.in_features
        if self.r:
            return BlockRotation(site, width // _divisor(width, self.r), self)
        return BlockRotation(site, _divisor(width, self.oft_block_size), self)

    def after_step(self, part: Part, step: int, total: int) -> None:
        """Scale rotations back that the step moved out of bounds (COFT)."""
        for _, rotation in part.of(BlockRotation):
            rotation.bound()


class BlockRotation(Insert):
    """y + x(R − I)Wᵀ at one projection."""

    names: ClassVar = {"angles": "oft_R.weight"}
    reads_base_weight = True

    def __init__(self, site: Site, block: int, config: OFT) -> None:
        super().__init__()
        self.site = site
        self.block = block
        self.config = config
        self.dropout = BlockDropout(config.module_dropout)
        blocks = 1 if config.block_share else site.in_features // block
        self.angles = nn.Parameter(torch.zeros(blocks, block * (block - 1) // 2))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.site.product(blockwise(x, self.dropout(self.change()))).to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return weight + blockwise(weight, self.change().detach().mT), bias

    def change(self) -> torch.Tensor:
        """Return R − I, (blocks, b, b)."""
        Q = self._skew()
        terms = self.config.num_cayley_neumann_terms
        if not self.config.use_cayley_neumann:
            return cayley(Q)
        if terms < 3:
            return 2 * (terms - 1) * Q
        change, power = 2 * Q, Q
        for _ in range(2, max(terms - 1, 3)):
            power = power @ Q
            change = change + 2 * power
        return change + power @ Q  # the highest power counts once

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        super().load(tensors)
        self.bound()  # PEFT saves angles as its last step left them, in bounds or not

    @torch.no_grad()
    def bound(self) -> None:
        """Scale the angles of a block down where its Q is larger than COFT allows."""
        if self.config.coft:
            limit = self.config.eps / len(self.angles) ** 0.5
            norm = self.angles.norm(dim=1, keepdim=True) * 2**0.5  # each angle stands in Q twice
            self.angles.mul_((limit / norm).clamp(max=1))

    def _skew(self) -> torch.Tensor:
        angles = self.angles
        rows, columns = torch.triu_indices(self.block, self.block, 1, device=angles.device)
        blocks = torch.arange(len(angles), device=angles.device)[:, None]
        upper = angles.new_zeros(len(angles), self.block, self.block)
        upper = upper.index_put((blocks, rows, columns), angles)
        return upper - upper.mT


def _divisor(width: int, wanted: int) -> int:
    """Return the divisor of `width` nearest to `wanted`, the smaller of two equally near, as PEFT does.

    >>> _divisor(11008, 32), _divisor(96, 28), _divisor(64, 100)
    (32, 24, 64)
    """
    if width % wanted == 0:
        return wanted
    divisors = [d for d in range(1, width + 1) if width % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d))
