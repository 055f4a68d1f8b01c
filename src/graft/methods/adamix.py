"""AdaMix: several experts of an adapter or a LoRA. Each forward draws one; at the end they are averaged.

    training:   y ← y + W_up^(j) φ(W_down^(i) u)       LoRA: y ← y + s·B^(j) A^(i) drop(x)
                i, j uniform, drawn anew for each pass and each site; all experts have one of the two sides in
                common
    afterwards: W̄ = 1/E Σ_e W^(e) of each side: one ordinary adapter or LoRA, at the same cost

    L = ½(CE(p₁) + CE(p₂)) + consistency · ½(KL(p₁‖p₂) + KL(p₂‖p₁))     p₁, p₂: two passes with separate draws

W_down (E, m, d), W_up (1, d, m); A (E, r, in), B (1, out, r). L(E(dm + m) + md + d) numbers are trained, of
which L(2dm + m + d) remain. In evaluation the averages answer. Files hold them, too: an adapter of Pfeiffer,
or a LoRA that PEFT loads. Checkpoints keep every expert. Wang et al. 2022 (2205.12410). Differs:
up-projections start at zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.insert import Insert
from graft.core.method import Method, No
from graft.core.part import Part, Seats
from graft.core.schema import Alpha, Names, Rank, Share, Weight
from graft.core.site import Site
from graft.errors import AdapterError, one_of
from graft.layers import lora_start as start
from graft.layers.bottleneck import Bottleneck, Dense, Projection
from graft.layers.sublayers import PlacedFiles
from graft.layers.targets import scale_from
from graft.methods.lora import LoRA, LowRank
from graft.methods.pfeiffer import Pfeiffer


class AdaMixFiles(PlacedFiles):
    """The files of the host: what is saved is one of its adapters."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        host = method.hosted()
        return {**host.files.describe(host, part), "peft_type": host.files.peft_type}

    def understand(self, cls: Any, settings: dict[str, Any]) -> Any:
        raise AdapterError(
            "a file of AdaMix itself", "the one adapter that it is saved as", "save the adapter again"
        )


@dataclass(frozen=True, kw_only=True)
class AdaMix(Dense):
    host: str = "adapter"  # what there are experts of: adapter (that of Pfeiffer), lora
    num_experts: Rank = 4  # E
    share: str = "up"  # the side that all experts share: up, down, none
    consistency: Weight = 1.0  # weight of the symmetric KL between two passes
    non_linearity: str = "gelu"  # φ: relu, gelu, gelu_new, swish, tanh, ... as transformers names them
    original_ln_before: bool | None = None  # read the sum with the residual, normed if so; null: if so only
    r: Rank = 4  # lora: rank of each expert
    lora_alpha: Alpha = 16  # lora: numerator of the scale, alpha / r
    lora_dropout: Share = 0.0  # lora: dropout on the input of A
    # lora: names or their last parts, or a regular expression
    target_modules: str | Names = "all-linear"

    files: ClassVar = AdaMixFiles("GRAFT_ADAMIX")
    mergeable: ClassVar = No("a non-linearity lies between the two projections", unless={"host": "lora"})
    passes: ClassVar = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("host", self.host, ("adapter", "lora"))
        one_of("share", self.share, ("up", "down", "none"))
        self.hosted()  # checks what it is given

    def consistency_weight(self) -> float:
        return self.consistency

    def hosted(self) -> Method:
        """Return the method that the average is an adapter of."""
        host = LoRA if self.host == "lora" else Pfeiffer
        shared = {f.name for f in fields(self)} & {f.name for f in fields(host)}
        return host(**{name: getattr(self, name) for name in shared})

    def assemble(self, sites: Sequence[Site]) -> Seats:
        host = self.hosted()
        if not isinstance(host, LoRA):
            return super().assemble(sites)
        return [(site, MixedLowRank(site, host, self.experts)) for site in host.targets(sites)]

    def insert(self, sublayer: Site, place: Site, block: int) -> Insert:
        d = sublayer.out_features
        m = self.width(d, block)
        downs, ups = self.experts
        down = Experts([Projection(d, m, self.init_weights) for _ in range(downs)])
        up = Experts([Projection(m, d, self.init_weights, zero=True) for _ in range(ups)])
        return Mixed(place, down, up, self, d)

    @property
    def experts(self) -> tuple[int, int]:
        """The numbers of down-projections and of up-projections."""
        shared = self.share
        return 1 if shared == "down" else self.num_experts, 1 if shared == "up" else self.num_experts


class Experts(nn.Module):
    """Several projections. Training draws one of them; in evaluation their average answers."""

    def __init__(self, projections: Sequence[Projection]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([p.weight.detach() for p in projections]))
        self.bias = nn.Parameter(torch.stack([p.bias.detach() for p in projections]))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        stacks = (self.weight, self.bias)
        weight, bias = drawn(*stacks) if self.training else [stack.mean(0) for stack in stacks]
        return F.linear(u, weight.to(u.dtype), bias.to(u.dtype))


class Mixed(Bottleneck):
    """A bottleneck with experts."""

    def saved(self) -> dict[str, torch.Tensor]:
        stacked = self.names.values()
        return {key: t.mean(0) if key in stacked else t for key, t in super().saved().items()}


class MixedLowRank(LowRank):
    """s·B^(j) A^(i) drop(x) added to one projection."""

    def __init__(self, site: Site, host: LoRA, experts: tuple[int, int]) -> None:
        super().__init__(site, host.r, scale_from(host.lora_alpha, host.r), host)
        others = [start.factors(site, host.r, self.scale, True)[0] for _ in range(experts[0] - 1)]
        self.A = nn.Parameter(torch.stack([self.A.detach(), *others]))
        self.B = nn.Parameter(self.B.detach().repeat(experts[1], 1, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x, y)
        (A,), (B,) = drawn(self.A), drawn(self.B)
        update = F.linear(F.linear(self.dropout(x), A.to(x.dtype)), B.to(x.dtype))
        return y + (self.scale * update).to(y.dtype)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.A.mean(0), self.B.mean(0)


def drawn(*stacks: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of one expert, drawn at random; the same one from each stack.

    A recomputed block finds torch's generator as it was, so it draws the same expert again.
    """
    expert = torch.randint(len(stacks[0]), (1,), device=stacks[0].device)
    return [stack.index_select(0, expert)[0] for stack in stacks]
