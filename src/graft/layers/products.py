"""What the methods of LyCORIS share: rank and alpha with their patterns, two dropouts, and y + s·drop(ΔW x).

rank_dropout leaves out whole outputs of ΔW, module_dropout all of ΔW, both for one forward in training.
Yeh et al. 2023 (2309.14859); names and meanings are PEFT's. Differs: dropout acts on outputs of the product,
not on rows of ΔW, which would have to be built for that.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.insert import Insert, Weights
from graft.core.part import Part
from graft.core.schema import Alpha, Rank, Share
from graft.core.site import Site
from graft.layers.targets import Targeted, TargetedFiles, by_pattern, scale_from


@dataclass(frozen=True)
class LycorisFiles(TargetedFiles):
    """PEFT's config; PEFT has these methods on nn.Linear only."""

    idle: frozenset[str] = frozenset({"init_weights", "use_effective_conv2d"})

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        config = super().describe(method, part)
        del config["fan_in_fan_out"]
        return config


@dataclass(frozen=True, kw_only=True)
class Lycoris(Targeted):
    """Base class of methods whose insert is a `Product`."""

    r: Rank = 8  # rank of the factors
    alpha: Alpha = 8  # numerator of the scale: alpha / r
    rank_dropout: Share = 0.0  # share of the update's outputs left out in a forward of training
    module_dropout: Share = 0.0  # how often a site goes without its update in training
    rank_pattern: dict[str, Rank] = field(default_factory=dict)  # rank by module name
    alpha_pattern: dict[str, Alpha] = field(default_factory=dict)  # alpha by module name

    files: ClassVar = LycorisFiles()
    patterns: ClassVar = ("rank_pattern", "alpha_pattern")

    def rank_and_scale(self, site: Site) -> tuple[int, float]:
        """Return (r, alpha / r) at one site."""
        r = int(by_pattern(self.rank_pattern, site.name, self.r))
        return r, scale_from(by_pattern(self.alpha_pattern, site.name, self.alpha), r)


class Product(Insert):
    """s·ΔW x added to one projection; subclasses define ΔW.

    rescaled: the outputs that stay are scaled up to make up for those that are dropped.
    """

    def __init__(self, scale: float, config: Lycoris, *, rescaled: bool) -> None:
        super().__init__()
        self.scale, self.rescaled = scale, rescaled
        self.rank_dropout, self.module_dropout = config.rank_dropout, config.module_dropout

    @abstractmethod
    def delta(self, dtype: torch.dtype) -> torch.Tensor:
        """Return s·ΔW (out, in), for merging."""

    @abstractmethod
    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return s·ΔW x without building ΔW."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        update = self.product(x).to(y.dtype)
        if self.training and (self.rank_dropout or self.module_dropout):
            update = update * self._stays(y.shape[-1], y.device).to(y.dtype)
        return y + update

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return weight + self.delta(weight.dtype), bias

    def _stays(self, outputs: int, device: torch.device) -> torch.Tensor:
        """Return 1 for outputs that take part in this forward, 0 for the others."""
        whole = torch.rand(1, device=device) >= self.module_dropout
        mask = (torch.rand(outputs, device=device) >= self.rank_dropout).float()
        if self.rescaled:
            mask = mask / mask.mean().clamp_min(1 / outputs)  # the mean is 0 when none stays
        return mask * whole


def kaiming(*shape: int) -> torch.Tensor:
    """Return a new matrix, uniform in ±1/√(its columns)."""
    return nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5)
