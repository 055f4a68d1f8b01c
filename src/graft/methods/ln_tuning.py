"""LN tuning: only the gains and biases of the norms are trained.

    y = γ' ⊙ norm₀(x) + β'        γ', β' (d,) trained, start as the base's γ, β;  β only where the norm has one

norm₀ is the norm without its γ and β: LayerNorm or RMSNorm. Zhao et al. 2023 (2312.11420). Differs: computed is
y + (γ' − γ) ⊙ norm₀(x) + (β' − β), so rows of one batch may use different norms, and an update smaller than the steps
of a 16-bit γ counts. norm₀ is the module's own code with a weight that stands for 1. γ' is kept as the module stores
it: Gemma's norms multiply by 1 + γ, which changes nothing in the difference.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.insert import Insert, Shift, Weights, without_hooks
from graft.core.site import Site
from graft.errors import SiteError
from graft.layers.targets import Targeted


@dataclass(frozen=True)
class LNTuning(Targeted):
    target_modules: str | tuple[str, ...] = (
        ".*"  # norms, by names, last parts or regular expression; usually all
    )

    kinds: ClassVar = ("norm",)
    peft_type: ClassVar = "LN_TUNING"
    own_fields: ClassVar = frozenset({"layers_to_transform", "layers_pattern"})

    def build(self, site: Site) -> Insert:
        return Gain(site)

    def file_config(self, seats: Sequence[tuple[Site, Insert]]) -> dict[str, Any]:
        """Names in the place of an expression: PEFT would match it against modules of every kind."""
        return super().file_config(seats) | {"target_modules": sorted(site.name for site, _ in seats)}


class Gain(Insert):
    """y + (γ' − γ) ⊙ norm₀(x) + (β' − β) behind one norm."""

    names: ClassVar = {"weight": "ln_tuning_layers.weight", "shift.bias": "ln_tuning_layers.bias"}

    origin: torch.Tensor

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.norm = _unscaled(site)
        self.register_buffer("origin", site.module.weight.detach().float().clone(), persistent=False)
        self.weight = nn.Parameter(self.origin.clone())
        self.shift = Shift(site) if isinstance(site.bias(), torch.Tensor) else None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x).to(y.dtype)
        scaled = y + (self.weight - self.origin).to(y.dtype) * normed
        return scaled if self.shift is None else self.shift(x, scaled)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        weight = weight + (self.weight - self.origin).detach()
        return (weight, bias) if self.shift is None else self.shift.merge(weight, bias)


def _unscaled(site: Site) -> Any:
    """norm₀: the site's module with a weight of 1 (of 0 where it multiplies by 1 + weight) and without a bias."""
    norm = without_hooks(site.module)
    needed = [p for p in inspect.signature(norm.forward).parameters.values() if p.default is p.empty]
    if len(needed) != 1:
        raise SiteError(
            f"{site.name}, a {type(norm).__name__}, takes {', '.join(p.name for p in needed)}",
            "norms of one input",
            f"add {site.name.rpartition('.')[2]!r} to exclude_modules",
        )
    for name in [name for name, parameter in norm._parameters.items() if parameter is not None]:
        norm.register_buffer(name, torch.zeros_like(norm._parameters.pop(name)), persistent=False)
    probe = torch.arange(norm.weight.numel(), dtype=norm.weight.dtype, device=norm.weight.device)
    norm.weight += (
        norm(probe.view_as(norm.weight)) == 0
    ).all()  # a weight of 0 leaves something: it stands for 1
    return norm
