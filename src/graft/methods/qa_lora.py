"""QA-LoRA: a low-rank update, constant within the groups of a packed base, that merges into their minima.

    y = W̃x + b + s·B A drop(P(x))        P(x)_k = Σ_{i in group k} x_i;  A (r, in/g), B (out, r);  s = α/r
                                         A Kaiming-uniform, B = 0 at birth
    ΔW[o, i] = s·(BA)[o, group(i)]       W̃[o, i] = scale·code + minimum, per row o and group of g inputs
    merged:                              minimum[o, k] + s·(BA)[o, k]; codes and scales stay

The merge is exact but for the rounding of a minimum.

Xu et al. 2023 (2309.14717), the sum pooling of algorithm 1. Files hold the A of the sum and say so; those of
PEFT and of the authors' code, which pool differently, are converted when they are read (`layers.pooling`).
Dropout acts after the pooling, in PEFT before it.
Differs: A starts as LoRA's does (Kaiming; the paper has Xavier); the base may be rounded to nearest (the
paper's is GPTQ's); the update also works on a base in 16 bits, in NF4 or in groups wider than its own, where
it merges like any other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.anatomy import sites as sites_of
from graft.core.insert import Insert, LowRankForm, Weights
from graft.core.part import Part, Seats
from graft.core.schema import Alpha, Rank, Share
from graft.core.site import Site, shown
from graft.errors import SiteError
from graft.layers.lora_files import FURTHER, REFUSED, TRAINING, refuse_start
from graft.layers.pooling import as_sums
from graft.layers.targets import Targeted, TargetedFiles, biases, check_bias, scale_from
from graft.quant import is_packed
from graft.quant.scheme import GROUPED

GROUP = 32  # the paper's, where the base has no groups


class QALoRAFiles(TargetedFiles):
    """PEFT's names, with the pooling, the group and the bits. Files of other poolings are converted."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        pooled = part.of(PooledLowRank)
        groups: set[Any] = {insert.group for _, insert in pooled}
        bits: set[Any] = {
            GROUPED.get(site.module.scheme.name) for site, _ in pooled if is_packed(site.module)
        }
        facts = {"qalora_group_size": groups, "qalora_bits": bits}
        known = {key: values.pop() if len(values) == 1 else None for key, values in facts.items()}
        return super().describe(method, part) | {"qalora_pool": "sum"} | known

    def convert(
        self, config: dict[str, Any], tensors: dict[str, torch.Tensor], sites: Sequence[Site]
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        refuse_start(config.get("init_lora_weights", True))
        pool = "sum" if config["peft_type"] == self.peft_type else "mean_x_groups"
        return as_sums(config | {"peft_type": self.peft_type}, tensors, config.get("qalora_pool") or pool)


@dataclass(frozen=True, kw_only=True)
class QALoRA(Targeted):
    r: Rank = 64  # rank of the update
    lora_alpha: Alpha = 16  # numerator of the scale: alpha / r
    lora_dropout: Share = 0.0  # dropout on the pooled input
    # inputs that share an update; none: the base's groups, 32 where it has none
    qalora_group_size: Rank | None = None
    bias: str = "none"  # biases of the base that are trained too: none, lora_only, all

    files: ClassVar = QALoRAFiles(
        "GRAFT_QALORA",
        marks={"peft_type": "LORA", "use_qalora": True},
        idle=TRAINING | {"use_qalora", "qalora_pool", "qalora_bits", "init_lora_weights", "megatron_core"},
        refused=REFUSED | FURTHER,
    )

    def __post_init__(self) -> None:
        check_bias(self.bias, "lora_only")

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """Return the targets whose input is whole groups.

        "all-linear" leaves the others out, and `notice` names them; others that were named are an error.
        """
        named = super().targets(sites)
        fit = [site for site in named if site.in_features % self.group(site) == 0]
        if not fit or (len(fit) < len(named) and self.target_modules != "all-linear"):
            site = next(site for site in named if site not in fit)
            raise SiteError(
                f"the input of {site.name} has {site.in_features} features",
                f"a multiple of the group of {self.group(site)}",
                "set qalora_group_size (and the group_size of the base), or leave it out of target_modules",
            )
        return fit

    def group(self, site: Site) -> int:
        """Return the number of inputs of a group at one site."""
        scheme = getattr(site.module, "scheme", None)
        return self.qalora_group_size or (scheme.block if scheme and scheme.grouped else GROUP)

    def assemble(self, sites: Sequence[Site]) -> Seats:
        seats: Seats = [(site, self.build(site)) for site in self.targets(sites)]
        return seats + biases(self.bias, sites, seats) + self.replacements(sites)

    def build(self, site: Site) -> Insert:
        return PooledLowRank(site, self.group(site), self)

    def notice(self, part: Part) -> str | None:
        pooled = [site for site, _ in part.of(PooledLowRank)]
        left = [s for s in super().targets(sites_of(pooled[0].root)) if s.in_features % self.group(s)]
        packed = [(s, s.module.scheme) for s in pooled if is_packed(s.module)]
        wide = [s for s, scheme in packed if not scheme.grouped or self.group(s) % scheme.block]
        reasons = {
            "left out, as the group does not divide their input": left,
            "merging will make 16-bit, as not packed in such groups": wide,
        }
        texts = [f"{reason}: {shown(s.name for s in those)}" for reason, those in reasons.items() if those]
        return "; ".join(texts) or None


class PooledLowRank(Insert):
    """s·B A drop(P(x)) added to one projection."""

    names: ClassVar = {"A": "lora_A.weight", "B": "lora_B.weight"}

    def __init__(self, site: Site, group: int, config: QALoRA) -> None:
        super().__init__()
        self.group, self.scale = group, scale_from(config.lora_alpha, config.r)
        self.dropout = nn.Dropout(config.lora_dropout)
        self.A = nn.Parameter(torch.empty(config.r, site.in_features // group))
        self.B = nn.Parameter(torch.zeros(site.out_features, config.r))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)  # a sum of outliers leaves the range of fp16
        pooled = x.unflatten(-1, (-1, self.group)).sum(-1, dtype=wide)
        narrow = self.scale * F.linear(self.dropout(pooled), self.A.to(wide))
        return y + F.linear(narrow.to(x.dtype), self.B.to(x.dtype)).to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return weight + self._update(weight.dtype).repeat_interleave(self.group, dim=1), bias

    def merge_groups(self, minimum: torch.Tensor, bias: torch.Tensor | None, block: int) -> Weights | None:
        if self.group % block:
            return None
        return minimum + self._update(minimum.dtype).repeat_interleave(self.group // block, dim=1), bias

    def low_rank(self) -> LowRankForm:
        return self.A.repeat_interleave(self.group, dim=1), self.B, self.scale

    def _update(self, dtype: torch.dtype) -> torch.Tensor:
        return self.scale * (self.B.detach().to(dtype) @ self.A.detach().to(dtype))
