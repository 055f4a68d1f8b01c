"""IA3: learned vectors rescale keys, values and the inner activation of the feed-forward network.

    k ← l_k ⊙ (W_k x + b)      v ← l_v ⊙ (W_v x + b)      FFN: W₂ (l_ff ⊙ γ(W₁x)) + b
    l_k, l_v (out,) and l_ff (in,) of W₂;  all ones at birth

Liu et al. 2022, "Infused Adapter by Inhibiting and Amplifying Inner Activations" (2205.05638). It merges
exactly: rows of W and b times l, columns of W₂ times l_ff. There is no weight decay, which would pull the
vectors to 0 instead of 1. Keys are scaled before the rotation of RoPE, as in PEFT.
Differs: l multiplies in fp32, because near 1 bf16 has only steps of 1/128. The targets are found by the names
that transformers' models use; where q, k and v are one matrix, all of it is scaled; attention's own output
matrix is not, though PEFT's default for BERT includes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.insert import Insert, Weights
from graft.core.part import Part
from graft.core.schema import Names
from graft.core.site import Site
from graft.layers.targets import Targeted, TargetedFiles, matches
from graft.layers.unmatched import say_unmatched

FEEDFORWARD = r".*\.(down_proj|fc2|fc_out|lin2|wo|w2|mlp\.c_proj|dense_4h_to_h|(?<!attention\.)output\.dense)"
KEYS_AND_VALUES = (
    r".*\.(k|v|k_proj|v_proj|k_lin|v_lin|key|value|key_proj|value_proj|c_attn|query_key_value|qkv_proj)"
)


class IA3Files(TargetedFiles):
    """PEFT's config with both lists by full name, as PEFT wants one to be a part of the other."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        return super().describe(method, part) | {
            "target_modules": sorted(site.name for site, _ in part.of(Scaled)),
            "feedforward_modules": sorted(site.name for site, _ in part.of(ScaledInput)),
        }


@dataclass(frozen=True, kw_only=True)
class IA3(Targeted):
    # as everywhere; auto: keys, values and W₂ by their usual names
    target_modules: str | Names = "auto"
    # those of the targets whose input is scaled, not their output
    feedforward_modules: str | Names = "auto"

    kinds: ClassVar = ("linear",)
    files: ClassVar = IA3Files(
        "IA3", own=frozenset({"layers_to_transform", "layers_pattern"}), idle=frozenset({"init_ia3_weights"})
    )

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        chosen = super().targets(sites)
        if self.feedforward_modules != "auto":
            names, of = [site.name for site in chosen], "the targets"
            say_unmatched("feedforward_modules", self.feedforward_modules, names, _ends_with, of)
        return chosen

    def build(self, site: Site) -> Insert:
        if self._feedforward(site.name):
            return ScaledInput(site.in_features)
        return ScaledOutput(site.out_features)

    def _named(self, site: Site) -> bool:
        if self.target_modules == "auto":
            return matches(site.name, KEYS_AND_VALUES) or matches(site.name, FEEDFORWARD)
        return super()._named(site)

    def _feedforward(self, name: str) -> bool:
        auto = self.feedforward_modules == "auto"
        return _ends_with(name, FEEDFORWARD if auto else self.feedforward_modules)


def _ends_with(name: str, modules: str | Sequence[str]) -> bool:
    """Return whether feedforward_modules names a target. PEFT lets an entry end within a part of it."""
    return matches(name, modules) if isinstance(modules, str) else name.endswith(tuple(modules))


class Scaled(Insert):
    """A trained vector that starts at 1.  shape: its shape in the file."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.l = nn.Parameter(torch.ones(max(shape)))

    def saved(self) -> dict[str, torch.Tensor]:
        return {"ia3_l": self.l.detach().view(self.shape)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.l.copy_(tensors["ia3_l"].flatten())


class ScaledOutput(Scaled):
    """l ⊙ y"""

    def __init__(self, width: int) -> None:
        super().__init__((width, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y * self.l).to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        l = self.l.detach()
        return weight * l[:, None], None if bias is None else bias * l


class ScaledInput(Scaled):
    """l ⊙ x, before the site computes"""

    def __init__(self, width: int) -> None:
        super().__init__((1, width))

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.l).to(x.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return weight * self.l.detach(), bias
