"""The trained gain and bias of a norm, added after the base's own norm.

    y + (γ' − γ) ⊙ norm₀(x) + (β' − β)        norm₀: the norm without its γ and β; γ', β' (d,) start as γ, β

norm₀ is the module's own code with a weight that stands for 1. γ' is kept as the module stores it: Gemma's
norms multiply by 1 + γ, which changes nothing in the difference.
"""

import inspect
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.insert import Insert, Weights
from graft.core.site import Site
from graft.errors import SiteError
from graft.layers.replacements import Shift, without_hooks


class Gain(Insert):
    """y + (γ' − γ) ⊙ norm₀(x) + (β' − β) after one norm."""

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
    """Return norm₀: the module without bias, with a weight of 1, or of 0 if it multiplies by 1 + weight."""
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
    try:
        silent = (norm(probe.view_as(norm.weight)) == 0).all()
    except Exception as error:  # it needs what only its own model gives it, such as a gate
        raise SiteError(
            f"{site.name}, a {type(norm).__name__}, does not run alone ({type(error).__name__})",
            "norms of one input",
            f"add {site.name.rpartition('.')[2]!r} to exclude_modules",
        ) from error
    norm.weight += silent  # if a weight of 0 is not a factor of 0, it is 1
    return norm
