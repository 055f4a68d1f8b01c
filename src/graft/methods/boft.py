"""BOFT: a trained rotation of what enters a frozen projection, a product of butterfly factors, and a scale.

    y = s ⊙ (xM) Wᵀ + b     M = F_{m−1} … F₁F₀ (in, in), s (out,);  M = I and s = 1 at birth
    F_i = P_i D_i P_iᵀ      D_i of blocks (I − Q)(I + Q)⁻¹, Q = (A − Aᵀ)/2, A (m, in/b, b, b) trained
    P_i                     joins features that lie 2ⁱ half-blocks apart: m factors mix 2ᵐ⁻¹·b features

Liu et al. 2024 (2311.06243). With one factor it is OFT in b² numbers per block instead of b(b−1)/2, and the
scale.
Differs: P_i and D_i are applied to x as an index and small blocks, where PEFT forms M. The insert computes
z = y + x(M−I)Wᵀ, then z + (s−1)⊙(z−b). This takes a second product with W, for which a packed W is decoded
once more and not kept. PEFT without its CUDA extension takes every m for 1 and cannot read files of more;
here m is what the file says. The dropout leaves out a share of the blocks of all factors (PEFT: of one
factor, drawn at random).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from graft.core.insert import Insert, Weights
from graft.core.schema import Amount, Few, Share
from graft.core.site import Site
from graft.errors import UsageError
from graft.layers.rotation import BlockDropout, blockwise, cayley
from graft.layers.targets import Accompanied, TargetedFiles


@dataclass(frozen=True, kw_only=True)
class BOFT(Accompanied):
    boft_block_size: Amount = 4  # features that turn together in one factor; must divide the input
    boft_block_num: Amount = 0  # number of blocks instead of their size; then boft_block_size must be 0
    boft_n_butterfly_factor: Few = 1  # factors; with each further one twice as many features turn together
    boft_dropout: Share = 0.0  # share of the blocks that a training step leaves unturned

    kinds: ClassVar = ("linear", "head")
    files: ClassVar = TargetedFiles("BOFT")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.boft_block_num, self.boft_block_size
        if min(given) != 0 or max(given) < 1:
            raise UsageError(
                f"boft_block_num={given[0]} with boft_block_size={given[1]}",
                "one of them positive, the other 0",
                "for example boft_block_size=4, boft_block_num=0",
            )

    def build(self, site: Site) -> Insert:
        width, factors = site.in_features, self.boft_n_butterfly_factor
        block = self.boft_block_size or max(1, width // self.boft_block_num)
        widest = block * 2 ** (factors - 1)
        whole = width % widest == 0 and (self.boft_block_num or width // block) * block == width
        if not whole or (factors > 1 and block % 2):
            raise UsageError(
                f"{site.name}: {factors} factors of blocks of {block} on {width} features",
                f"a multiple of {widest} features, and an even block size if there are several factors",
                "change boft_block_size or boft_n_butterfly_factor, or leave this site out",
            )
        return Butterfly(site, block, self)


class Butterfly(Insert):
    """z + (s − 1)⊙(z − b) with z = y + x(M − I)Wᵀ at one projection."""

    reads_base_weight = True
    orders: torch.Tensor
    places: torch.Tensor

    def __init__(self, site: Site, block: int, config: BOFT) -> None:
        super().__init__()
        self.site = site
        factors = config.boft_n_butterfly_factor
        width = site.in_features
        self.dropout = BlockDropout(config.boft_dropout)
        self.blocks = nn.Parameter(torch.zeros(factors, width // block, block, block))
        self.scale = nn.Parameter(torch.ones(site.out_features))
        orders = torch.stack([butterfly(width, block, i) for i in range(factors)])
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("places", orders.argsort(1), persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        changes = self._changes()
        changes = self.dropout(changes.flatten(0, 1)).view_as(changes)
        turned = y + self.site.product(self._turn(x, changes, last_first=True)).to(y.dtype)
        bias = self.site.bias()
        return turned + (self.scale - 1).to(y.dtype) * (turned if bias is None else turned - bias)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        turned = weight + self._turn(weight, self._changes().detach().mT, last_first=False)  # by Mᵀ
        return self.scale.detach()[:, None] * turned, bias

    def saved(self) -> dict[str, torch.Tensor]:
        return {"boft_R": self.blocks.detach(), "boft_s": self.scale.detach()[:, None]}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.blocks.copy_(tensors["boft_R"])
            self.scale.copy_(tensors["boft_s"][:, 0])

    def _changes(self) -> torch.Tensor:
        """Return the blocks minus identity, (m, in/b, b, b)."""
        return cayley((self.blocks - self.blocks.mT) / 2)

    def _turn(self, x: torch.Tensor, changes: torch.Tensor, *, last_first: bool) -> torch.Tensor:
        """Return x times all factors, one after the other, minus x."""
        steps: list[torch.Tensor] = []
        for i in range(len(changes))[:: -1 if last_first else 1]:
            turned = sum(steps, x)
            if i == 0:  # P₀ = I
                steps.append(blockwise(turned, changes[0]))
            else:
                steps.append(blockwise(turned[..., self.places[i]], changes[i])[..., self.orders[i]])
        return sum(steps[1:], steps[0])


def butterfly(width: int, block: int, i: int) -> torch.Tensor:
    """Return the order of P_i, whose row k has its 1 in column order[k].

    In every 2ⁱ blocks the even half-blocks come first, then the odd ones.

    >>> butterfly(8, 2, 1).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    if i == 0:
        return torch.arange(width)  # blocks as they lie: only here they may be of odd size
    return torch.arange(width).view(-1, 2**i, 2, block // 2).transpose(1, 2).flatten()
