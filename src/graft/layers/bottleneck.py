"""Bottleneck: two projections with a non-linearity between them, which adapters of many kinds share.

    Δ(u) = s · drop(W_up φ(W_down u + b_down) + b_up)    W_down (m, d), W_up (d, m);  m = d / reduction_factor

Settings have the names of the `adapters` library. Differs: W_up starts at zero by default, so a newborn
adapter changes nothing bit for bit; `houlsby` and `bert` draw it, as the papers do, and are only near the
base at birth.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from graft.core.insert import Insert
from graft.core.method import No
from graft.core.schema import Count, Positive, Scale, Share
from graft.core.site import Site
from graft.errors import UsageError, one_of
from graft.layers.sublayers import Addition, Placed

WIDEST = 4  # times d: no bottleneck is wider; a file that asks for more is hostile
STARTS = ("mam_adapter", "bert", "houlsby")


@dataclass(frozen=True, kw_only=True)
class Bottlenecked(Placed):
    """Base class of methods whose added module is a bottleneck."""

    # d / m; or by number of the block, {"0": 8, "default": 16}
    reduction_factor: Positive | dict[str, Positive] = 16
    m: Count | None = None  # width of the bottleneck, in place of reduction_factor
    non_linearity: str = "relu"  # φ: relu, gelu, gelu_new, swish, tanh, ... as transformers names them
    scaling: Scale | str = 1.0  # s: a number, or trained from 1 on: learned (one), channel (one per output)
    dropout: Share = 0.0  # on what is added
    original_ln_before: bool | None = False  # read the sum with the residual, normed if so; null: if so only

    mergeable: ClassVar = No("a non-linearity lies between the two projections")

    def __post_init__(self) -> None:
        one_of("non_linearity", self.non_linearity.lower(), [*ACT2FN, "leakyrelu"])
        if isinstance(self.scaling, str) and self.scaling not in ("learned", "channel"):
            raise UsageError(
                f"scaling={self.scaling!r}", "a number, learned or channel", "leave it out for 1"
            )

    def width(self, d: int, block: int) -> int:
        """Return m at one block."""
        factor = self.reduction_factor
        if isinstance(factor, dict):
            if not {str(block), "default"} & set(factor):
                raise UsageError(
                    f"reduction_factor has no entry for block {block}",
                    "one for every block, or a default",
                    'add {"default": 16}',
                )
            factor = factor.get(str(block), factor.get("default", 1))
        width = max(1, int(d // factor)) if self.m is None and factor > 0 else self.m
        if width is None or not 1 <= width <= WIDEST * d:
            raise UsageError(
                f"m={self.m}, reduction_factor={factor}",
                f"a bottleneck of 1 to {WIDEST * d} (d is {d})",
                "m=64 is usual",
            )
        return width


@dataclass(frozen=True, kw_only=True)
class Dense(Bottlenecked):
    """Base class of those whose projections are ordinary matrices."""

    # W_up zero; bert: both N(0, 0.02); houlsby: both N(0, 0.01), cut at 2 deviations
    init_weights: str = "mam_adapter"

    parallel: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("init_weights", self.init_weights, STARTS)

    def insert(self, sublayer: Site, place: Site, block: int) -> Insert:
        d, m = sublayer.out_features, self.width(sublayer.out_features, block)
        down, up = Projection(d, m, self.init_weights), Projection(m, d, self.init_weights, zero=True)
        return Bottleneck(place, down, up, self, d, parallel=self.parallel)


class Projection(nn.Module):
    """W u + b in u's dtype.  start: one of STARTS.  zero: `mam_adapter` starts this projection at zero."""

    def __init__(self, inputs: int, outputs: int, start: str, *, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(started(torch.empty(outputs, inputs), start, zero=zero))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return F.linear(u, self.weight.to(u.dtype), self.bias.to(u.dtype))


class Bottleneck(Addition):
    """s · drop(up φ(down u)) at one place.  down, up: modules from d to m and back."""

    names: ClassVar = {
        f"{side}.{part}": f"adapter_{side}.{part}" for side in ("down", "up") for part in ("weight", "bias")
    }

    def __init__(
        self,
        place: Site,
        down: nn.Module,
        up: nn.Module,
        config: Bottlenecked,
        d: int,
        *,
        parallel: bool = False,
    ) -> None:
        super().__init__(place, d, parallel=parallel)
        self.down, self.up = down, up
        self.act = activation(config.non_linearity)
        self.dropout = nn.Dropout(config.dropout)
        self.scaling: Any = config.scaling
        if isinstance(config.scaling, str):
            self.scaling = nn.Parameter(torch.ones(d if config.scaling == "channel" else 1))

    def delta(self, u: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = self.up(self.act(self.down(u)))
        scaling = self.scaling.to(u.dtype) if isinstance(self.scaling, torch.Tensor) else self.scaling
        return self.dropout(update * scaling)


def activation(name: str) -> nn.Module:
    """Return φ by the library's names, which are those of transformers and leakyrelu."""
    return nn.LeakyReLU() if name.lower() == "leakyrelu" else ACT2FN[name.lower()]


def started(weight: torch.Tensor, start: str, *, zero: bool) -> torch.Tensor:
    """Fill `weight` by one of the library's three starts, and return it."""
    if start == "bert":
        return nn.init.normal_(weight, std=0.02)
    if start == "houlsby":
        # By the inverse of the distribution. torch's own function draws until all numbers fit, which fake
        # tensors cannot do.
        cut = math.erf(2**0.5)
        return weight.uniform_(-cut, cut).erfinv_().mul_(0.01 * 2**0.5)
    return weight.zero_() if zero else nn.init.kaiming_uniform_(weight, a=5**0.5)
