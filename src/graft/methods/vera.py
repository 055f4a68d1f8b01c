"""VeRA: one frozen random pair of projections for the whole model; each layer trains two vectors.

    y = W₀x + λ_b ⊙ B (λ_d ⊙ A drop(x))       A (r, max in), B (max out, r): frozen; sites use a corner
    λ_d (r,) = d_initial, λ_b (out,) = 0 at birth

Kopiczko et al. 2023 (2310.11454). A, then B, are Kaiming-uniform (±√(6/fan_in)) from `projection_prng_key`,
drawn as PEFT draws them. They are in the file unless save_projection is off, because generators may differ
between machines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.insert import Insert, Weights
from graft.core.part import Seats
from graft.core.schema import Rank, Scale, Share
from graft.core.site import Site
from graft.layers.targets import Targeted, TargetedFiles, biases, check_bias


@dataclass(frozen=True, kw_only=True)
class VeRA(Targeted):
    r: Rank = 256  # rank of the shared projections; costs r numbers per site
    projection_prng_key: int = 0  # seed of the shared projections
    save_projection: bool = True  # the projections go into the file; without, the seed must be enough
    vera_dropout: Share = 0.0  # dropout on the input of A
    d_initial: Scale = 0.1  # λ_d at birth
    bias: str = "none"  # biases of the base that are trained too: none, vera_only, all

    files: ClassVar = TargetedFiles(
        "VERA", own=frozenset({"exclude_modules"}), idle=frozenset({"init_weights"})
    )

    def __post_init__(self) -> None:
        check_bias(self.bias, "vera_only")

    def assemble(self, sites: Sequence[Site]) -> Seats:
        targets = self.targets(sites)
        widest = max(site.in_features for site in targets), max(site.out_features for site in targets)
        shared = Projections(self.r, *widest, self.projection_prng_key)
        seats: Seats = [(site, Vectors(site, shared, self, owner=site is targets[0])) for site in targets]
        return seats + biases(self.bias, sites, seats) + self.replacements(sites)


class Projections(nn.Module):
    """A (r, inputs) and B (outputs, r), the same for the same seed on every device."""

    A: torch.Tensor
    B: torch.Tensor

    def __init__(self, r: int, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, shape in (("A", (r, inputs)), ("B", (outputs, r))):
            bound = (6 / shape[1]) ** 0.5
            self.register_buffer(
                name, torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)
            )


class Vectors(Insert):
    """λ_b ⊙ B (λ_d ⊙ A drop(x)) added to one projection.

    owner: it keeps the shared projections; the others borrow.
    """

    def __init__(self, site: Site, shared: Projections, config: VeRA, *, owner: bool) -> None:
        super().__init__()
        self.inputs, self.outputs = site.in_features, site.out_features
        self.kept = owner and config.save_projection
        self.dropout = nn.Dropout(config.vera_dropout)
        self.b = nn.Parameter(torch.zeros(self.outputs))
        self.d = nn.Parameter(torch.full((config.r,), config.d_initial))
        self._borrowed = (shared,)  # in a tuple torch does not see it: checkpoints hold the projections once
        if owner:
            self.owned = shared

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        A, B, b, d = (t.to(x.dtype) for t in (*self._corner(), self.b, self.d))
        return y + (b * F.linear(d * F.linear(self.dropout(x), A), B)).to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        A, B, b, d = (t.detach().to(weight.dtype) for t in (*self._corner(), self.b, self.d))
        return weight + (b[:, None] * B) @ (d[:, None] * A), bias

    def saved(self) -> dict[str, torch.Tensor]:
        vectors: dict[str, torch.Tensor] = {"vera_lambda_b": self.b, "vera_lambda_d": self.d}
        if not self.kept:
            return vectors
        shared = self._borrowed[0]
        return vectors | {"/base_model.vera_A": shared.A, "/base_model.vera_B": shared.B}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for suffix, tensor in self.saved().items():
                tensor.copy_(tensors[suffix])

    def _corner(self) -> tuple[torch.Tensor, torch.Tensor]:
        shared = self._borrowed[0]
        return shared.A[:, : self.inputs], shared.B[: self.outputs]
