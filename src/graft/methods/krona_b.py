"""KronA^B: a Kronecker product parallel to the feed-forward network, without a non-linearity.

    y = FFN(x) + s·(A ⊗ B) x                  A (a₁, a₂), B (b₁, b₂);  a₁b₁ = a₂b₂ = d
    y = FFN(x) + s·(A ⊗ B) x + s_res·x        KronA^B_res: s_res is one trained number
    at birth                                  A Kaiming-uniform, B = 0, s_res = 0

x is what the network's first projection reads. The product is never built: (A ⊗ B) x = vec(A X Bᵀ). The
factors are those nearest √d: 32·24 + 24·32 = 1,536 numbers per block at d = 768. Edalati et al. 2022
(2212.10650). Differs: the paper leaves open which factor is zero at birth and where s_res starts; from 0 a
newborn changes nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from graft.core.insert import Insert
from graft.core.method import No
from graft.core.schema import Scale
from graft.core.site import Site
from graft.layers.kronecker import kron_linear, near_root
from graft.layers.products import kaiming
from graft.layers.sublayers import Addition, Placed, PlacedFiles


@dataclass(frozen=True, kw_only=True)
class KronAB(Placed):
    scale: Scale = 16.0  # s, constant
    residual: bool = False  # KronA^B_res: s_res·x is added too
    residual_start: Scale = 0.0  # s_res at birth; another number changes the newborn's answer

    files: ClassVar = PlacedFiles("GRAFT_KRONA_B")
    mergeable: ClassVar = No("it bypasses the non-linearity of the network")

    def insert(self, sublayer: Site, place: Site, block: int) -> Insert:
        return Beside(place, sublayer, self)


class Beside(Addition):
    """s·(A ⊗ B) x + s_res·x added to one sublayer."""

    names: ClassVar = {"A": "krona_A", "B": "krona_B", "s_res": "krona_res"}

    def __init__(self, place: Site, sublayer: Site, config: KronAB) -> None:
        super().__init__(place, sublayer.out_features, parallel=True)
        self.scale = config.scale
        (b1, a1), (a2, b2) = near_root(sublayer.out_features), near_root(sublayer.in_features)
        self.A, self.B = nn.Parameter(kaiming(a1, a2)), nn.Parameter(torch.zeros(b1, b2))
        self.s_res = nn.Parameter(torch.full((1,), config.residual_start)) if config.residual else None

    def delta(self, u: torch.Tensor) -> torch.Tensor:
        update = kron_linear(u, self.scale * self.A.to(u.dtype), self.B.to(u.dtype))
        return update if self.s_res is None else update + self.s_res.to(u.dtype) * u
