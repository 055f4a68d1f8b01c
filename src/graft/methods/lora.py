"""LoRA: a trained low-rank update added to a frozen projection.

    y = W₀x + b + s·B A drop(x)        A (r, in), B (out, r), B = 0 at birth;  s = α/r, with rsLoRA α/√r
    DoRA:  W' = m/‖W₀ + sBA‖ ⊙ (W₀ + sBA), one norm (a constant) and one trained magnitude m per output row
    PiSSA, OLoRA:  y = W₀x + b + s·(BA − B₀A₀)x, with B₀A₀ the principal part of W₀ at birth
    LoftQ:  sBA starts as the rank-r part of W − Ŵ, what quantisation took from the checkpoint's weight
    on an embedding:  E[id] + s·B A[:, id]        A (r, ids) = 0 at birth, B (width, r)
                      and s·AᵀBᵀx more at a head that is tied to it, with ensure_weight_tying
    on the experts of a mixture:  W_e + s·B_e A_e, e = 1 … E, every expert with factors of its own

Hu et al. 2021 (2106.09685). rsLoRA: Kalajdzievski 2023 (2312.03732); DoRA: Liu et al. 2024 (2402.09353);
PiSSA: Meng et al. 2024 (2404.02948); OLoRA: Büyükakyüz 2024 (2406.01775); LoftQ: Li et al. 2023 (2310.08659);
LoRA+: Hayou et al. 2024 (2402.12354).
Differs: the base is never rewritten. PiSSA and OLoRA subtract B₀A₀ in the forward and are saved as an
ordinary LoRA of rank 2r; LoftQ takes one step against the bytes that are there. Length: five published
variants share this arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.insert import Insert, LowRankForm, Weights
from graft.core.part import Part, Seats
from graft.core.schema import Alpha, Id, Ids, Names, Positive, Rank, Share
from graft.core.site import Site
from graft.errors import UsageError, notice
from graft.layers import lora_start as start
from graft.layers.expert_lora import LowRankParameter, parameters, weights
from graft.layers.lora_files import REFUSED, TRAINING, LoRAFiles
from graft.layers.replacements import Replacement
from graft.layers.targets import Targeted, biases, by_pattern, check_bias, matches, scale_from
from graft.layers.tied import follow, group
from graft.layers.token_rows import Rows, beside, check_ids
from graft.layers.unmatched import say_unmatched


@dataclass(frozen=True, kw_only=True)
class LoRA(Targeted):
    r: Rank = 8  # rank of the update
    lora_alpha: Alpha = 16  # numerator of the scale: alpha / r
    lora_dropout: Share = 0.0  # dropout on the input of A only
    use_rslora: bool = False  # scale alpha / sqrt(r), so that large ranks keep learning
    use_dora: bool = False  # train magnitude and direction apart
    init_lora_weights: bool | str = True  # true, gaussian, pissa, pissa_niter_N, olora, loftq
    bias: str = "none"  # biases of the base that are trained too: none, lora_only, all
    lora_bias: bool = False  # a bias after B
    rank_pattern: dict[str, Rank] = field(default_factory=dict)  # rank by module name
    alpha_pattern: dict[str, Alpha] = field(default_factory=dict)  # alpha by module name
    loraplus_lr_ratio: Positive = 1.0  # LoRA+: learning rate of B over that of A
    # rows of the table that are trained in full beside it: ids of tokens, or ids by the name of a table
    trainable_token_indices: Ids | dict[str, list[Id]] = ()
    # what is trained at a table is trained at the head that is tied to it
    ensure_weight_tying: bool = False
    # weights without a module of their own, such as experts.down_proj: names or their last parts
    target_parameters: Names = ()

    kinds: ClassVar = ("linear", "head", "embed")
    files: ClassVar = LoRAFiles(
        "LORA",
        own=frozenset({"loraplus_lr_ratio"}),
        idle=TRAINING | {"megatron_core", "qalora_group_size"},
        refused=REFUSED,
        absent={"lora_alpha": 8},
    )
    patterns: ClassVar = ("rank_pattern", "alpha_pattern")

    def __post_init__(self) -> None:
        check_bias(self.bias, "lora_only")
        start.check(self.init_lora_weights)
        indices = self.trainable_token_indices
        for ids in indices.values() if isinstance(indices, dict) else [indices] if indices else []:
            check_ids("trainable_token_indices", ids)
        plain = self.init_lora_weights in (True, False, "gaussian")
        if self.target_parameters and (self.lora_dropout or self.lora_bias or self.use_dora or not plain):
            raise UsageError(
                "target_parameters with lora_dropout, lora_bias, use_dora or a start from the weights",
                "plain LoRA on parameters: their products with x are not made one by one",
                "leave these settings out, or use target_modules alone",
            )

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """Return the modules that it goes to; none if only parameters are named."""
        if not self.target_modules and self.target_parameters:
            self._say_unmatched(sites, (), (), ())
            return []
        return super().targets(sites)

    def _say_unmatched(
        self, sites: Sequence[Site], places: Sequence[Site], named: Sequence[Site], chosen: Sequence[Site]
    ) -> None:
        others = [site for site, _ in parameters(self.target_parameters, sites)]
        of = "the weights of this model"
        say_unmatched("target_parameters", self.target_parameters, weights(sites), matches, of)
        super()._say_unmatched(sites, places, named, [*chosen, *others])

    def assemble(self, sites: Sequence[Site]) -> Seats:
        seats: Seats = [(site, self.build(site)) for site in self.targets(sites)]
        seats += [(site, self.build(site, after)) for site, after in self._parameters(sites, seats)]
        saved = self.replacements(sites)
        if self.ensure_weight_tying:
            if not {site.name for site, _ in seats + saved} & set(group(sites)):
                notice("ensure_weight_tying has no effect: nothing is trained at a table with a tied head")
            seats, saved = follow(seats, sites, self.build), follow(saved, sites, Replacement)
        tokens = beside(self.trainable_token_indices, sites)
        return seats + biases(self.bias, sites, seats) + saved + tokens

    def _parameters(self, sites: Sequence[Site], seats: Seats) -> list[tuple[Site, int]]:
        """Return what `target_parameters` adds to these seats, with the number that follows in its module."""
        taken = {site.name for site, _ in seats}
        return [(s, after) for s, after in parameters(self.target_parameters, sites) if s.name not in taken]

    def build(self, site: Site, after: int = 0) -> Insert:
        r = int(by_pattern(self.rank_pattern, site.name, self.r))
        alpha = by_pattern(self.alpha_pattern, site.name, self.lora_alpha)
        scale = scale_from(alpha, r, root=self.use_rslora)
        if site.kind == "embed":
            return LowRankEmbedding(site, r, scale, self)
        if site.kind == "parameter":
            return LowRankParameter(site, r, scale, self.init_lora_weights, after)
        return LowRank(site, r, scale, self)

    def param_groups(self, part: Part, lr: float) -> list[dict[str, Any]]:
        """Return groups in which B learns `loraplus_lr_ratio` times as fast as A (LoRA+).

        Rows of a table are not decayed: that would pull them to 0, not to where they started.
        """
        rows = [insert.R for _, insert in part.of(Rows) if insert.keeps]
        if rows:
            others = Part(seat for seat in part.inserts if not isinstance(seat[1], Rows))
            return [*self.param_groups(others, lr), {"params": rows, "lr": lr, "weight_decay": 0.0}]
        if self.loraplus_lr_ratio == 1.0:
            return super().param_groups(part, lr)
        fast = [low_rank.B for kind in CLASSES for _, low_rank in part.of(kind)]
        rest = [p for p in part.parameters() if all(p is not B for B in fast)]
        return [{"params": rest, "lr": lr}, {"params": fast, "lr": lr * self.loraplus_lr_ratio}]


class LowRank(Insert):
    """s·B A drop(x) added to one projection."""

    A0: torch.Tensor
    B0: torch.Tensor
    row_norms2: torch.Tensor

    names: ClassVar = {
        "A": "lora_A.weight",
        "B": "lora_B.weight",
        "bias": "lora_B.bias",
        "magnitude": "lora_magnitude_vector",
    }

    def __init__(self, site: Site, r: int, scale: float, config: LoRA) -> None:
        super().__init__()
        self.site = site
        self.scale = scale
        self.dora = config.use_dora
        self.dropout = nn.Dropout(config.lora_dropout)
        A, B = start.factors(site, r, scale, config.init_lora_weights)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        if start.subtracts(config.init_lora_weights):
            self.register_buffer("A0", A.clone())
            self.register_buffer("B0", B.clone())
        self.bias = nn.Parameter(torch.zeros(site.out_features)) if config.lora_bias else None
        if self.dora:
            self.reads_base_weight = True
            self.register_buffer(
                "row_norms2", site.weight().detach().float().square().sum(1), persistent=False
            )
            self.magnitude = nn.Parameter(self._norm(site.weight().detach()))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        dropped = self.dropout(x)
        update = self._update(dropped)
        if not self.dora:
            return y + update.to(y.dtype)
        weight, bias = self.site.weight(), self.site.bias()
        ratio = (self.magnitude / self._norm(weight.detach())).to(y.dtype)
        if self.training and self.dropout.p:  # the base term must see the same dropout as the update
            plain = F.linear(dropped, weight.to(x.dtype))
        else:
            plain = y if bias is None else y - bias
        return y + (ratio - 1) * plain + ratio * update.to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        A, B = (t.detach().to(weight.dtype) for t in self.factors())
        merged = weight + self.scale * (B @ A)
        if self.dora:
            merged = merged * (self.magnitude.detach() / merged.norm(dim=1))[:, None]
        if self.bias is not None:
            bias = (0 if bias is None else bias) + self.scale * self.bias.detach()
        return merged, bias

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (r, in) and B (out, r) of the whole update; twice the ranks if a start is subtracted."""
        if hasattr(self, "A0"):
            return torch.cat([self.A, self.A0]), torch.cat([self.B, -self.B0], dim=1)
        return self.A, self.B

    def low_rank(self) -> LowRankForm | None:
        return None if self.dora or self.bias is not None else (*self.factors(), self.scale)

    def saved(self) -> dict[str, torch.Tensor]:
        tensors = {self.names[name]: p for name, p in self.named_parameters()}
        A, B = self.factors()
        return tensors | {"lora_A.weight": A, "lora_B.weight": B}

    def _update(self, x: torch.Tensor) -> torch.Tensor:
        A, B = self.factors()
        update = F.linear(
            F.linear(x, A.to(x.dtype)), B.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        )
        return update * self.scale

    @torch.no_grad()
    def _norm(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ‖W + sBA‖ of every row without forming BA: the root of ‖W‖² + 2s⟨WAᵀ, B⟩ + s²⟨BAAᵀ, B⟩."""
        A, B = (t.to(weight.dtype) for t in self.factors())
        cross = ((weight @ A.T) * B).sum(1).float()
        update = ((B @ (A @ A.T)) * B).sum(1).float()
        return (self.row_norms2 + 2 * self.scale * cross + self.scale**2 * update).sqrt()


class LowRankEmbedding(Insert):
    """s·B A[:, id] added to the embedding table."""

    names: ClassVar = {"A": "lora_embedding_A", "B": "lora_embedding_B"}

    def __init__(self, site: Site, r: int, scale: float, config: LoRA) -> None:
        super().__init__()
        init = config.init_lora_weights
        if config.use_dora or (isinstance(init, str) and init != "gaussian"):
            raise UsageError(
                f"use_dora or init_lora_weights={config.init_lora_weights!r} on {site.name}",
                "plain LoRA on embeddings",
                "leave the table out of target_modules",
            )
        self.site, self.scale = site, scale
        self.A = nn.Parameter(torch.zeros(r, site.in_features))
        self.B = nn.Parameter(torch.randn(site.out_features, r))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        update = F.embedding(x, self.A.T.to(y.dtype)) @ self.B.T.to(y.dtype)
        return y + update * self.scale * self.site.multiplier

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return weight + self.scale * (self.B.to(weight) @ self.A.to(weight)).T.detach(), bias

    def low_rank(self) -> LowRankForm:
        return self.A, self.B, self.scale

    def follower(self, head: Site) -> Insert:
        """Return what a head gets that is tied to this table."""
        return TiedLowRank(head, self)


class TiedLowRank(Insert):
    """s·Aᵀ Bᵀ x added to the logits of a head that is tied to a table: the table's update."""

    def __init__(self, site: Site, table: LowRankEmbedding) -> None:
        super().__init__()
        self.site, self.scale = site, table.scale
        self._borrowed = (table,)  # in a tuple torch does not see it: its tensors are kept once

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        A, B, scale = self.low_rank()
        return y + (F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype)) * scale).to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return self._borrowed[0].merge(weight, bias)

    def low_rank(self) -> LowRankForm:
        return self._borrowed[0].B.T, self._borrowed[0].A.T, self.scale

    def saved(self) -> dict[str, torch.Tensor]:
        """Return copies: PEFT writes the factors under both names."""
        A, B, _ = self.low_rank()
        return {"lora_A.weight": A.detach().contiguous(), "lora_B.weight": B.detach().contiguous()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take nothing: the table's own insert does."""


CLASSES = (LowRank, LowRankEmbedding, LowRankParameter)
