"""AdaLoRA: low-rank updates in the form of a singular value decomposition, whose rank goes where it matters.

    y = W₀x + b + s·B (E ⊙ A) drop(x)     A (r, in), B (out, r) ~ N(0, 0.02²), E (r, 1) = 0;  s = α/(r + 1e-5)
    loss += orth_reg_weight · mean over all A and B of ‖A Aᵀ − I‖_F and ‖Bᵀ B − I‖_F
    importance of a number w with gradient g:  I = |w g|,  Ī ← β₁Ī + (1−β₁)I,  Ū ← β₂Ū + (1−β₂)|I − Ī|
    score of a number:  Ī·Ū
    score of a triplet (E_i, A_i, B_·i):  score(E_i) + mean score(A_i) + mean score(B_·i)
    triplets kept, of all sites together:  b(t) = b_T + (b_0 − b_T)(1 − (t − tinit)/(T − tfinal − tinit))³

Every deltaT steps the E of all but the b(t) best triplets become 0; they may grow back until step T − tfinal,
when the choice becomes final. Zhang et al. 2023 (2303.10512).
Differs: the norm of the penalty is not squared, as in PEFT; and T is the length of the run unless it is
given.
Length: the allocation of ranks is half of the method.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional as F

from graft.core.insert import Insert, Weights
from graft.core.part import Part, Seats
from graft.core.schema import Count, Memory, Positive, Rank, Share, Steps, Weight
from graft.core.site import Site
from graft.errors import UsageError
from graft.layers.lora_files import FURTHER, REFUSED, TRAINING
from graft.layers.targets import Targeted, TargetedFiles, biases, check_bias, scale_from


class AdaLoRAFiles(TargetedFiles):
    """PEFT's config, which wants some number of steps and names the triplets that the file still has."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        masks = {f"{site.name}.lora_E": method.mask(site, t) for site, t in part.of(Triplets)}
        pruned = not all(all(mask) for mask in masks.values())
        total = method.total_step or method.tinit + method.tfinal + 1
        return super().describe(method, part) | {
            "total_step": total,
            "rank_pattern": masks if pruned else None,
        }


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Targeted):
    init_r: Rank = 12  # rank of every update at birth
    target_r: Rank = 8  # mean rank in the end
    tinit: Steps = 0  # steps before the first rank is taken
    tfinal: Steps = 0  # last steps, in which ranks stand still
    deltaT: Count = 1  # steps from one allocation to the next
    beta1: Memory = 0.85  # memory of the importance
    beta2: Memory = 0.85  # memory of its uncertainty
    orth_reg_weight: Weight = 0.5  # weight of the orthogonality penalty
    total_step: Steps | None = None  # T; left out: the length of the run
    lora_alpha: Positive = 8  # numerator of the scale: alpha / init_r
    lora_dropout: Share = 0.0  # dropout on the input of A only
    bias: str = "none"  # biases of the base that are trained too: none, lora_only, all
    rank_pattern: dict[str, list[bool]] = field(default_factory=dict)  # of a file: which triplets are left

    files: ClassVar = AdaLoRAFiles(
        "ADALORA",
        own=frozenset({"total_step"}),
        idle=TRAINING | {"r", "init_lora_weights", "megatron_core", "qalora_group_size"},
        refused=REFUSED | FURTHER,
    )

    def __post_init__(self) -> None:
        check_bias(self.bias, "lora_only")
        if any(len(mask) != self.init_r for mask in self.rank_pattern.values()):
            raise UsageError(
                "a rank_pattern of another length", f"lists of {self.init_r} booleans", "leave it out"
            )
        if self.total_step is not None:
            self._end(self.total_step)

    def assemble(self, sites: Sequence[Site]) -> Seats:
        seats: Seats = [(site, self.build(site)) for site in self.targets(sites)]
        return seats + biases(self.bias, sites, seats) + self.replacements(sites)

    def build(self, site: Site) -> Insert:
        return Triplets(site, sum(self._left(site)), self)

    def extra_loss(self, part: Part, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return how far the rows of A and the columns of B are from orthonormal."""
        bases = [rows for _, t in part.of(Triplets) for rows in (t.A, t.B.T)]
        gaps = [torch.linalg.norm(rows @ rows.T - torch.eye(len(rows), device=rows.device)) for rows in bases]
        return self.orth_reg_weight * torch.stack(gaps).mean()

    def after_step(self, part: Part, step: int, total: int) -> None:
        """Update every number's importance by its gradient, and take ranks at the steps of the schedule."""
        end = self._end(self.total_step or total)
        triplets = [t for _, t in part.of(Triplets)]
        if step < end:
            for t in triplets:
                t.weigh(self.beta1, self.beta2)
        if step > end:
            for t in triplets:
                t.keep(t.kept)
        elif step == end or (step > self.tinit and step % self.deltaT == 0):
            allocate(triplets, self._budget(step, end, triplets))

    def _end(self, total: int) -> int:
        """Return the step at which the allocation becomes final."""
        if total - self.tfinal <= self.tinit:
            raise UsageError(
                f"tinit={self.tinit} and tfinal={self.tfinal} of {total} steps",
                "steps left between them, in which ranks are taken",
                "lower them, or train longer",
            )
        return total - self.tfinal

    def _budget(self, step: int, end: int, triplets: "list[Triplets]") -> int:
        first, last = sum(len(t.A) for t in triplets), self.target_r * len(triplets)
        return int(last + (first - last) * (1 - (step - self.tinit) / (end - self.tinit)) ** 3)

    def _left(self, site: Site) -> list[bool]:
        """Return which of the first `init_r` triplets this adapter was built with."""
        return self.rank_pattern.get(f"{site.name}.lora_E", [True] * self.init_r)

    def mask(self, site: Site, triplets: "Triplets") -> list[bool]:
        """Return which of the first `init_r` triplets are left now."""
        now = iter(triplets.left().tolist())
        return [before and next(now) for before in self._left(site)]


class Triplets(Insert):
    """s·B (E ⊙ A) drop(x) added to one projection, with the importance of every number."""

    names: ClassVar = {"A": "lora_A", "B": "lora_B", "E": "lora_E"}
    kept: torch.Tensor

    def __init__(self, site: Site, r: int, config: AdaLoRA) -> None:
        super().__init__()
        self.scale = scale_from(config.lora_alpha, config.init_r + 1e-5)
        self.dropout = nn.Dropout(config.lora_dropout)
        self.A = nn.Parameter(torch.randn(r, site.in_features) * 0.02)
        self.B = nn.Parameter(torch.randn(site.out_features, r) * 0.02)
        self.E = nn.Parameter(torch.zeros(r, 1))
        self.register_buffer("kept", torch.ones(r, dtype=torch.bool))  # by the last allocation
        for name, p in list(self.named_parameters()):
            self.register_buffer(f"importance_{name}", torch.zeros_like(p, requires_grad=False))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(p, requires_grad=False))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        A, B, E = (t.to(x.dtype) for t in (self.A, self.B, self.E))
        return y + F.linear(F.linear(self.dropout(x), A) * (self.scale * E.T[0]), B).to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        A, B, E = (t.detach().to(weight.dtype) for t in (self.A, self.B, self.E))
        return weight + self.scale * B @ (E * A), bias

    def saved(self) -> dict[str, torch.Tensor]:
        left = slice(None) if is_fake(self.E) else self.left()  # a plan has no numbers: all are left
        return {"lora_A": self.A[left], "lora_B": self.B[:, left], "lora_E": self.E[left]}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        left = self.left()
        with torch.no_grad():
            self.A[left], self.B[:, left], self.E[left] = (
                tensors[f"lora_{name}"].to(self.A) for name in "ABE"
            )

    def left(self) -> torch.Tensor:
        """Return (r,) bool: the triplets with an effect.

        Triplets that were pruned may have grown back since.
        """
        return self.kept | (self.E.detach() != 0).flatten()

    def weigh(self, beta1: float, beta2: float) -> None:
        """Update importance and uncertainty from the gradients of this step."""
        for name, p in self.named_parameters():
            if p.grad is not None:
                now = (p.detach() * p.grad).abs()
                importance = self.get_buffer(f"importance_{name}").lerp_(now, 1 - beta1)
                self.get_buffer(f"uncertainty_{name}").lerp_((now - importance).abs(), 1 - beta2)

    def scores(self) -> torch.Tensor:
        """Return (r,): how much each triplet matters."""
        A, B, E = (
            self.get_buffer(f"importance_{name}") * self.get_buffer(f"uncertainty_{name}") for name in "ABE"
        )
        return E.flatten() + A.mean(1) + B.mean(0)

    def keep(self, kept: torch.Tensor) -> None:
        """Set E of all triplets but these to 0."""
        self.kept.copy_(kept)
        with torch.no_grad():
            self.E.masked_fill_(~kept[:, None], 0.0)


def allocate(triplets: Sequence[Triplets], budget: int) -> None:
    """Keep the `budget` best triplets of all; fewer where scores are equal."""
    scores = [t.scores() for t in triplets]
    everything = torch.cat(scores)
    surplus = len(everything) - budget
    if surplus > 0:
        least = everything.kthvalue(surplus).values
        for t, score in zip(triplets, scores, strict=True):
            t.keep(score > least)
