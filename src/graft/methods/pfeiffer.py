"""Pfeiffer adapters: one bottleneck per block, after the feed-forward network and its residual.

    post-norm:  u = LN(FFN(h₁) + h₁)      h₂ = LN(Δ(u) + FFN(h₁) + h₁)       the block's own LN, twice
    pre-norm:   h₂ = h₁ + FFN(N₂h₁) + Δ(FFN(N₂h₁))
                original_ln_before=true:  u = h₁ + FFN(N₂h₁),  h₂ = u + Δ(u)
    Δ(u) = s·drop(W_up φ(W_down u + b_down) + b_up)        W_down (m, d), W_up (d, m);  φ ReLU, s = 1

Norms stay frozen. L(2dm + m + d) numbers: 894,528 on BERT-base with m = 48. Pfeiffer et al. 2020
(2005.00247), called `seq_bn` by the `adapters` library, whose files load; on pre-norm models it takes the
second form. Differs: W_up starts at zero.
"""

from dataclasses import dataclass
from typing import ClassVar

from graft.layers.bottleneck import Dense
from graft.layers.sublayers import PlacedFiles


@dataclass(frozen=True, kw_only=True)
class Pfeiffer(Dense):
    original_ln_before: bool | None = None  # read the sum with the residual, normed if so; null: if so only

    files: ClassVar = PlacedFiles(
        "GRAFT_PFEIFFER", library_marks={"is_parallel": False, "phm_layer": False, "original_ln_before": True}
    )
