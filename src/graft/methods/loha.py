"""LoHa: the elementwise product of two low-rank matrices added to a frozen projection, of rank up to r².

    y = W₀x + b + (α/r)·((w₁ₐ w₁ᵦ) ⊙ (w₂ₐ w₂ᵦ)) x       w₁ₐ, w₂ₐ (out, r), w₁ᵦ, w₂ᵦ (r, in);  w₂ᵦ = 0 at birth

Hyeon-Woo et al. 2021, FedPara (2108.06098). ΔW is not built, in forward or backward:

    (w₁ₐ w₁ᵦ) ⊙ (w₂ₐ w₂ᵦ) = Pᵀ Q       P (r², out): P[ij, o] = w₁ₐ[o, i] w₂ₐ[o, j]
                                       Q (r², in):  Q[ij, n] = w₁ᵦ[i, n] w₂ᵦ[j, n]

so ΔW x costs r²(in + out) per token. Backward keeps x and the four factors and makes P and Q again. Differs
from PEFT's, whose files it reads and writes: PEFT builds (out, in) in every forward and keeps it for the
gradient of x.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.insert import Insert
from graft.core.site import Site
from graft.layers.products import Lycoris, LycorisFiles, Product, kaiming


@dataclass(frozen=True, kw_only=True)
class LoHa(Lycoris):
    files: ClassVar = LycorisFiles("LOHA")

    def build(self, site: Site) -> Insert:
        return Hadamard(site, *self.rank_and_scale(site), self)


class Hadamard(Product):
    """s·((w₁ₐ w₁ᵦ) ⊙ (w₂ₐ w₂ᵦ)) x added to one projection."""

    names: ClassVar = {name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}

    def __init__(self, site: Site, r: int, scale: float, config: LoHa) -> None:
        super().__init__(scale, config, rescaled=True)
        rows, columns = site.out_features, site.in_features
        self.w1_a, self.w1_b = nn.Parameter(kaiming(rows, r)), nn.Parameter(kaiming(r, columns))
        self.w2_a, self.w2_b = nn.Parameter(kaiming(rows, r)), nn.Parameter(torch.zeros(r, columns))

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * _Product.apply(x, self.w1_a.T, self.w2_a.T, self.w1_b, self.w2_b)

    def delta(self, dtype: torch.dtype) -> torch.Tensor:
        a, b, c, d = (w.detach().to(dtype) for w in (self.w1_a, self.w1_b, self.w2_a, self.w2_b))
        return self.scale * (a @ b) * (c @ d)


class _Product(torch.autograd.Function):
    """Pᵀ Q x over the last dimension of x.

    P and Q are the pairs of the first and the last two factors (r, n).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, *factors)
        P, Q = _pairs(factors[0], factors[1], x.dtype), _pairs(factors[2], factors[3], x.dtype)
        return F.linear(F.linear(x, Q), P.T)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, *factors = ctx.saved_tensors
        P, Q = _pairs(factors[0], factors[1], x.dtype), _pairs(factors[2], factors[3], x.dtype)
        h, dh = F.linear(x, Q), F.linear(dy, P)
        dP, dQ = (a.flatten(0, -2).T @ b.flatten(0, -2) for a, b in ((h, dy), (dh, x)))
        return dh @ Q, *_unpaired(dP, *factors[:2]), *_unpaired(dQ, *factors[2:])


def _pairs(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return (r², n): row ij is a[i] ⊙ b[j], rounded to dtype once."""
    wide = torch.promote_types(a.dtype, dtype)
    return (a[:, None].to(wide) * b.to(wide)).flatten(0, 1).to(dtype)


def _unpaired(gradient: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of a and b from that of their pairs."""
    pairs = gradient.to(a.dtype).unflatten(0, (len(a), len(b)))
    return (pairs * b).sum(1), (pairs * a[:, None]).sum(0)
