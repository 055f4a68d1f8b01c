"""KronA: a Kronecker-factored update of a frozen projection, which may have full rank.

    y = W₀x + b + s·(A ⊗ B) x        A (a₁, a₂), B (b₁, b₂);  a₁b₁ = out, a₂b₂ = in
    at birth                         A Kaiming-uniform, B = 0

The product is never built: (A ⊗ B) x = vec(A X Bᵀ), where X (a₂, b₂) is x row by row. a₁ ≥ b₁ and a₂ ≤ b₂ are
the divisors nearest the square roots. So a 768 × 768 matrix costs 32·24 + 24·32 numbers, as a LoRA of rank 1
does. PEFT has no KronA; its nearest method is `lokr` with r too large for factors. Edalati et al. 2022
(2212.10650).
Differs: the paper leaves open which factor is zero at birth; here it is B.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from graft.core.insert import Insert, Weights
from graft.core.schema import Scale
from graft.core.site import Site
from graft.layers.kronecker import kron_linear, near_root
from graft.layers.products import kaiming
from graft.layers.targets import Targeted, TargetedFiles


@dataclass(frozen=True, kw_only=True)
class KronA(Targeted):
    scale: Scale = 1.0  # s, constant

    files: ClassVar = TargetedFiles("GRAFT_KRONA")

    def build(self, site: Site) -> Insert:
        return Kronecker(site, self.scale)


class Kronecker(Insert):
    """s·(A ⊗ B) x added to one projection."""

    names: ClassVar = {"A": "krona_A", "B": "krona_B"}

    def __init__(self, site: Site, scale: float) -> None:
        super().__init__()
        self.scale = scale
        (b1, a1), (a2, b2) = near_root(site.out_features), near_root(site.in_features)
        self.A, self.B = nn.Parameter(kaiming(a1, a2)), nn.Parameter(torch.zeros(b1, b2))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + kron_linear(x, self.scale * self.A.to(x.dtype), self.B.to(x.dtype)).to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        A, B = (t.detach().to(weight.dtype) for t in (self.A, self.B))
        return weight + self.scale * torch.kron(A, B), bias
