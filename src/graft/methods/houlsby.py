"""Houlsby adapters: a bottleneck with its own residual after attention and after the feed-forward network.

    post-norm:  h₁ = LN(x + Adp₁(Attn(x)))      h₂ = LN(h₁ + Adp₂(FFN(h₁)))
    pre-norm:   h₁ = x + Adp₁(Attn(N₁x))        h₂ = h₁ + Adp₂(FFN(N₂h₁))
    Adp(u) = u + s·drop(W_up φ(W_down u + b_down) + b_up)        W_down (m, d), W_up (d, m);  φ GELU, s = 1

All norms of the model are trained too. Without them 2L(2dm + m + d) numbers: 2,379,264 on BERT-base with m =
64. Houlsby et al. 2019 (1902.00751). The `adapters` library has this as `double_seq_bn`, with norms frozen
and φ swish.
Differs: W_up starts at zero; init_weights=houlsby draws it as the paper does.
"""

from dataclasses import dataclass
from typing import ClassVar

from graft.layers.bottleneck import Dense
from graft.layers.sublayers import PlacedFiles


@dataclass(frozen=True, kw_only=True)
class Houlsby(Dense):
    mh_adapter: bool = True  # after self-attention
    non_linearity: str = "gelu"  # φ: relu, gelu, gelu_new, swish, tanh, ... as transformers names them
    train_norms: bool = True  # train the gains and biases of all norms of the base too

    files: ClassVar = PlacedFiles(
        "GRAFT_HOULSBY", library_marks={"is_parallel": False, "phm_layer": False, "original_ln_before": False}
    )
