"""LoKr: a Kronecker product of a small and a low-rank matrix added to a frozen projection.

    y = W₀x + b + (α/r)·(w₁ ⊗ w₂) x       w₁ (a₁, a₂) = 0 at birth, w₂ (b₁, b₂);  a₁b₁ = out, a₂b₂ = in, a ≤ b
    w₂ = w₂ₐ w₂ᵦ of rank r where r < max(b₁, b₂)/2;  with decompose_both w₁ = w₁ₐ w₁ᵦ likewise

The product is never built: (w₁ ⊗ w₂) x = vec(w₁ X w₂ᵀ). Yeh et al. 2023 (2309.14859).
Differs from PEFT's, whose files it reads and writes: PEFT builds (out, in) in every forward.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from graft.core.insert import Insert
from graft.core.site import Site
from graft.errors import UsageError
from graft.layers.kronecker import kron_linear, near_root
from graft.layers.products import Lycoris, LycorisFiles, Product, kaiming

# The tensors that start at zero, by `init_weights`.
ZERO = {True: ("lokr_w1", "lokr_w1_a"), "lycoris": ("lokr_w2", "lokr_w2_b"), False: ()}


@dataclass(frozen=True, kw_only=True)
class LoKr(Lycoris):
    decompose_both: bool = False  # w₁ is of low rank too
    decompose_factor: int = -1  # wanted size of w₁; -1: as near the square root as divisors allow
    rank_dropout_scale: bool = False  # outputs that rank_dropout leaves in make up for the others
    init_weights: bool | str = True  # true: w₁ starts at zero; lycoris: w₂ does; false: neither

    files: ClassVar = LycorisFiles("LOKR")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights not in ZERO:
            raise UsageError(f"init_weights={self.init_weights!r}", "true, false or lycoris", "leave it out")
        if self.decompose_factor != -1 and self.decompose_factor < 1:
            raise UsageError(f"decompose_factor={self.decompose_factor}", "-1 or at least 1", "leave it out")

    def build(self, site: Site) -> Insert:
        return Kronecker(site, *self.rank_and_scale(site), self)


class Kronecker(Product):
    """s·(w₁ ⊗ w₂) x added to one projection."""

    def __init__(self, site: Site, r: int, scale: float, config: LoKr) -> None:
        super().__init__(scale, config, rescaled=config.rank_dropout_scale)
        (a1, b1), (a2, b2) = (
            split(n, config.decompose_factor) for n in (site.out_features, site.in_features)
        )
        low_rank = config.decompose_both and r < max(a1, a2) / 2
        shapes = _shapes("lokr_w1", a1, a2, r if low_rank else 0)
        shapes |= _shapes("lokr_w2", b1, b2, r if r < max(b1, b2) / 2 else 0)
        for name, shape in shapes.items():
            start = torch.zeros(shape) if name in ZERO[config.init_weights] else kaiming(*shape)
            self.register_parameter(name, nn.Parameter(start))

    def product(self, x: torch.Tensor) -> torch.Tensor:
        w1, w2 = self._factors("lokr_w1", x.dtype), self._factors("lokr_w2", x.dtype)
        return kron_linear(x, self.scale * _whole(w1), *w2)

    def delta(self, dtype: torch.dtype) -> torch.Tensor:
        w1, w2 = (_whole(self._factors(name, dtype)).detach() for name in ("lokr_w1", "lokr_w2"))
        return self.scale * torch.kron(w1, w2)

    def _factors(self, name: str, dtype: torch.dtype) -> list[torch.Tensor]:
        """Return the matrix of this name, or its two factors."""
        return [p.to(dtype) for key, p in self.named_parameters() if key.startswith(name)]


def split(dimension: int, factor: int) -> tuple[int, int]:
    """Return (factor, rest) if factor divides, or the divisors nearest the root, the smaller up to factor."""
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    return near_root(dimension, factor if factor > 0 else None)


def _whole(factors: list[torch.Tensor]) -> torch.Tensor:
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]


def _shapes(name: str, rows: int, columns: int, r: int) -> dict[str, tuple[int, int]]:
    """Return the shape of a whole matrix, or with r > 0 those of its two factors."""
    return {f"{name}_a": (rows, r), f"{name}_b": (r, columns)} if r else {name: (rows, columns)}
