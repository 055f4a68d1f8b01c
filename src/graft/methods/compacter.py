"""Compacter: bottlenecks whose matrices are sums of Kronecker products; one of the factors is shared.

    Δ(u) = s · drop(LPHM_up(φ(LPHM_down(u))))        φ GELU (tanh form), m = d / 32
    LPHM(x) = x H + b,  H (k, d) = Σ_i A_i ⊗ (s_i t_i)        A (n, n, n) shared by the whole model;
    s_i (k/n, rank), t_i (rank, d/n) each layer's own: k + d numbers at rank 1, where a matrix has k·d

H is never built: with X (n, k/n) the reshape of x,  (x H)[a', :] = Σ_i Σ_a A_i[a, a'] (X[a, :] s_i) t_i,
which costs n(k + n² + d) instead of kd. After attention and the feed-forward network, with all norms trained,
it has 161,728 numbers on T5-base; Compacter++ (mh_adapter=false) has 104,704. Mahabadi et al. 2021
(2106.04647). A is N(0, 1e-4), s and t are Glorot-uniform with gain √2: at birth it is near the base, not
equal to it.
Differs: A, which all layers share, has no weight decay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.method import No
from graft.core.part import Part, Seats
from graft.core.schema import Positive, Rank, Weight
from graft.core.site import Site
from graft.errors import UsageError
from graft.layers.bottleneck import Bottleneck, Bottlenecked
from graft.layers.sublayers import PlacedFiles


@dataclass(frozen=True, kw_only=True)
class Compacter(Bottlenecked):
    mh_adapter: bool = True  # at self-attention; without it is Compacter++
    # d / m; or by number of the block, {"0": 8, "default": 16}
    reduction_factor: Positive | dict[str, Positive] = 32
    non_linearity: str = "gelu_new"  # φ: relu, gelu, gelu_new, swish, tanh, ... as transformers names them
    train_norms: bool = True  # train the gains and biases of all norms of the base too
    phm_dim: Rank = 4  # n, number and size of the shared matrices; divides d and m
    phm_rank: Rank = 1  # rank of each layer's own matrices
    phm_init_range: Weight = 0.0001  # deviation of the shared matrices at birth

    files: ClassVar = PlacedFiles("GRAFT_COMPACTER", library_marks={"is_parallel": False, "phm_layer": True})
    newborn: ClassVar = No("three small factors multiply: what is added starts near zero, not at it")

    def width(self, d: int, block: int) -> int:
        """Return m. If it follows from d, it is rounded down to a multiple of n."""
        width, n = super().width(d, block), self.phm_dim
        return width if self.m else max(n, width // n * n)

    def assemble(self, sites: Sequence[Site]) -> Seats:
        rule = Rule(self.phm_dim, self.phm_init_range)
        seats: Seats = []
        for sublayer, place, block in self.places(sites):
            d, m = sublayer.out_features, self.width(sublayer.out_features, block)
            down, up = LPHM(rule, d, m, self.phm_rank), LPHM(rule, m, d, self.phm_rank)
            # The first keeps the rule, in checkpoints and files; the others borrow it.
            seats.append((place, Hypercomplex(place, down, up, self, d, None if seats else rule)))
        return seats + self.norms(sites)

    def param_groups(self, part: Part, lr: float) -> list[dict[str, Any]]:
        shared = [b.rule.A for _, b in part.of(Hypercomplex) if b.rule is not None]
        groups = super().param_groups(part, lr)
        rest = [group | {"params": [p for p in group["params"] if p is not shared[0]]} for group in groups]
        return [*rest, {"params": shared, "lr": lr, "weight_decay": 0.0}]


class Rule(nn.Module):
    """A (n, n, n), one tensor for the whole model."""

    def __init__(self, n: int, deviation: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(n, n, n) * deviation)


class LPHM(nn.Module):
    """x H + b of the top of this file; tensors as in the `adapters` library: W_left s, W_right t."""

    def __init__(self, rule: Rule, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        n = len(rule.A)
        if inputs % n or outputs % n:
            raise UsageError(
                f"phm_dim={n} for a projection from {inputs} to {outputs}",
                "a divisor of both",
                "choose another phm_dim or m",
            )
        self._rule = (rule,)  # in a tuple torch does not see it: its tensor is kept once
        left, right = torch.empty(n, inputs // n, rank), torch.empty(n, rank, outputs // n)
        for matrix in (*left, *right):
            nn.init.xavier_uniform_(matrix, gain=2**0.5)
        self.W_left, self.W_right = nn.Parameter(left), nn.Parameter(right)
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        A, s, t, b = (p.to(x.dtype) for p in (self._rule[0].A, self.W_left, self.W_right, self.b))
        rows = torch.einsum("...ak,ikr->...air", x.unflatten(-1, (len(A), -1)), s)
        mixed = torch.einsum("...air,iac->...cir", rows, A)
        return torch.einsum("...cir,ird->...cd", mixed, t).flatten(-2) + b


class Hypercomplex(Bottleneck):
    """A bottleneck of two LPHM layers.  rule: given to the one that keeps it."""

    names: ClassVar = {"rule.A": "/base_model.phm_rule"} | {
        f"{side}.{part}": f"adapter_{side}.{part}"
        for side in ("down", "up")
        for part in ("W_left", "W_right", "b")
    }

    def __init__(
        self, place: Site, down: LPHM, up: LPHM, config: Compacter, d: int, rule: Rule | None = None
    ) -> None:
        super().__init__(place, down, up, config, d)
        self.rule = rule
