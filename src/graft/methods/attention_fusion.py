"""AttentionFusion: every token attends over its own states in all layers of a frozen base.

    e_l = q·LN(h_l)/√d + b_l        a = softmax_l(e)        h ← Σ_l a_l h_l
    h_l (T, d) state after block l, h_0 embeddings;  LN has no weights
    q (d,) = 0, b (L+1,) = (0, .., 0, 4) at birth

d + L + 1 trained numbers, 781 on BERT-base, and no gradient in the base: nothing below the states is trained.
At birth the last layer has e⁴/(e⁴ + L) of the weight, so the answer is nearly the base's. The fused state
replaces h_L: a norm after the last block, and any head, read it as they would read h_L.

Cao, Prakash and Hamza, Findings of NAACL 2022, "Attention Fusion". Reconstructed from its abstract, without
code: the form of the score, b and the start are ours. In an encoder-decoder the decoder's layers are fused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.file_layout import FileLayout
from graft.core.insert import Insert
from graft.core.method import Method, No
from graft.core.part import Seats
from graft.core.schema import Scale
from graft.core.site import Site
from graft.layers.taps import Tap, stacks


@dataclass(frozen=True, kw_only=True)
class AttentionFusion(Method):
    last_bias: Scale = 4.0  # b of the last layer at birth: the larger, the nearer to the base

    kinds: ClassVar = ("block",)
    files: ClassVar = FileLayout("GRAFT_ATTENTION_FUSION")
    newborn: ClassVar = No("other layers have a little weight from the start")
    mergeable: ClassVar = No("it weighs states, not weights")

    def assemble(self, sites: Sequence[Site]) -> Seats:
        blocks = stacks(sites)[-1][1]
        taps = [Tap() for _ in blocks[:-1]]
        fusion = Fusion(taps, blocks[0].root.config.hidden_size, self.last_bias)
        return list(zip(blocks, [*taps, fusion], strict=True))


class Fusion(Insert):
    """At the last block, where x is h_{L−1} and y is h_L."""

    def __init__(self, taps: list[Tap], width: int, last_bias: float) -> None:
        super().__init__()
        self.taps = tuple(taps)  # not as modules: each is an insert of its own
        self.q = nn.Parameter(torch.zeros(width))
        self.b = nn.Parameter(torch.tensor([0.0] * (len(taps) + 1) + [last_bias]))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        states = torch.stack([*(tap.left() for tap in self.taps), x, y], dim=-2)  # (B, T, L+1, d)
        width = states.shape[-1]
        scores = F.layer_norm(states, (width,)).float() @ self.q / width**0.5 + self.b
        fused: torch.Tensor = scores.softmax(-1).to(y.dtype)[..., None, :] @ states
        return fused.squeeze(-2)
