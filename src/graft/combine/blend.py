"""Blending: adapters of one base combined, with a weight each, into a new one.

`average` and `linear` take any method, tensor by tensor (`combine.average`). The others, and `linear` with
any, take low-rank adapters by what they add to a weight, Dᵢ = sᵢBᵢAᵢ (`Insert.low_rank`), and give a LoRA of
scale 1:

    cat       A = [wᵢsᵢAᵢ], B = [Bᵢ]: Σ wᵢDᵢ exactly; ranks add up
    svd       the best rank r of Σ wᵢDᵢ
    linear    A = Σ ±√|wᵢsᵢ| Aᵢ, B = Σ √|wᵢsᵢ| Bᵢ        the rank stays, at the price of cross terms BᵢAⱼ
    ties      as linear, but a tensor keeps only its largest entries, and of these only those of the elected
              sign, averaged over the adapters that have it
    dare_linear, dare_ties     entries dropped at random, the others divided by the density
    magnitude_prune            the largest entries, summed
    …_svd     the same on the Dᵢ themselves, then the best rank r

LoRA: 2106.09685; TIES: Yadav et al. 2023 (2306.01708); DARE: Yu et al. 2023 (2311.03099). Names and results
are those of PEFT's `add_weighted_adapter`. Neither `linear` nor the `average` of factors is the mean of the
Dᵢ: `cat` and `svd` are. Differs: what two factors cannot hold (DoRA, biases, modules trained in full) is
refused instead of dropped; `svd` never forms Dᵢ; the ranks of different sites may differ; a blend of rsLoRA
adapters keeps its size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graft.base.adapter import Adapter
from graft.base.choice import named
from graft.combine.average import add_up
from graft.combine.low_rank import Factors, attach, shortened, truncated
from graft.core.by_name import answered, require_base
from graft.core.insert import LowRankForm
from graft.errors import AdapterError, UsageError, one_of

if TYPE_CHECKING:
    from graft.base.base import Base

Part = tuple[float, torch.Tensor, torch.Tensor, float]  # weight, A, B, scale
# What a tensor keeps (all, its largest entries, random ones), and whether a sign is elected.
KINDS = {
    "linear": ("all", False),
    "magnitude_prune": ("largest", False),
    "ties": ("largest", True),
    "dare_linear": ("random", False),
    "dare_ties": ("random", True),
}
SPARSE = [kind for kind, (keep, _) in KINDS.items() if keep != "all"]
SHORTENED = ["svd", *(f"{kind}_svd" for kind in SPARSE)]
HOWS = ["average", "cat", *KINDS, *SHORTENED]
SIGNS = ("total", "frequency")


@answered
def blend(
    base: "Base",
    weights: Mapping[str, float] | Mapping[Adapter, float],
    name: str,
    how: str = "average",
    *,
    density: float | None = None,
    r: int | None = None,
    majority_sign: str = "total",
    seed: int = 0,
) -> Adapter:
    """Attach the blend of the adapters that `weights` names, and return it.

    weights: {adapter, or its name: its weight}.
    how: one of HOWS.  density: share of the entries that ties, dare and magnitude_prune keep.  r: rank of svd
    and …_svd; left out, the largest of the adapters'.  majority_sign: elected by the sum of entries ("total")
    or by their number ("frequency").  seed: of DARE's draws.
    Raises UsageError for arguments that mean nothing, AdapterError where these adapters cannot be blended so.
    """
    require_base("graft.blend", base)
    _check(weights, how, density, r)
    adapters = [_usable(base, one) for one in weights]
    low_rank = any(insert.low_rank() is not None for adapter in adapters for _, insert in adapter.inserts)
    if how == "average" or (how == "linear" and not low_rank):
        return add_up(base, adapters, list(weights.values()), name, average=how == "average")
    forms = [_forms(adapter) for adapter in adapters]
    rank = r or max(len(A) for form in forms for A, _, _ in form.values())
    mix = None if how in ("cat", "svd") else _mix(how, density, majority_sign, seed)
    factors = {}
    for site in dict.fromkeys(site.name for site in base.sites):  # the model's order, in which PEFT draws too
        parts = [(w, *form[site]) for w, form in zip(weights.values(), forms, strict=True) if site in form]
        if parts:
            factors[site] = _factors(site, parts, how, rank, mix)
    return attach(base, name, factors)


def _forms(adapter: Adapter) -> dict[str, LowRankForm]:
    """Return {site: (A, B, s)}; several inserts at one site become one."""
    by_site: dict[str, list[Part]] = {}
    for site, insert in adapter.inserts:
        form = insert.low_rank()
        if form is None:
            tensors = ", ".join(insert.saved()) or "no tensors"
            raise AdapterError(
                f"{adapter.name!r} is more than two factors a site: "
                f"its {type(insert).__name__} at {site.name} holds {tensors}",
                "adapters that a low-rank blend keeps whole",
                "use how='average' for adapters of equal settings, or merge them one after the other",
            )
        A, B, scale = form
        by_site.setdefault(site.name, []).append((1.0, A.detach().float(), B.detach().float(), scale))
    return {
        site: parts[0][1:] if len(parts) == 1 else (*_stacked(parts), 1.0) for site, parts in by_site.items()
    }


def _factors(site: str, parts: Sequence[Part], how: str, rank: int, mix: "_Mix | None") -> Factors:
    """Return the blend at one site."""
    if mix is None:
        A, B = _stacked(parts)
        return (A, B) if how == "cat" else shortened(A, B, rank)
    if how in SHORTENED:
        A, B, _ = truncated(mix([scale * (B @ A) for _, A, B, scale in parts], [w for w, *_ in parts]), rank)
        return A, B
    ranks = {len(A) for _, A, _, _ in parts}
    if len(ranks) > 1:
        raise AdapterError(
            f"how={how!r} with ranks {', '.join(map(str, sorted(ranks)))} at {site}",
            "adapters of one rank",
            "use how='cat', 'svd' or one that ends in _svd",
        )
    signed = [w * scale for w, _, _, scale in parts]
    roots = [math.sqrt(abs(weight)) for weight in signed]
    A = mix(
        [A for _, A, _, _ in parts], [math.copysign(root, w) for root, w in zip(roots, signed, strict=True)]
    )
    return A, mix([B for _, _, B, _ in parts], roots)


def _stacked(parts: Sequence[Part]) -> Factors:
    """Return A and B whose product is Σ w s B A."""
    A = torch.cat([w * scale * A for w, A, _, scale in parts])
    return A, torch.cat([B for _, _, B, _ in parts], dim=1)


@dataclass
class _Mix:
    """A weighted sum of matrices of one shape, with some entries left out.

    keep: all, largest or random.  elect: of each entry only the sign that prevails, averaged over those that
    have it.
    """

    keep: str
    elect: bool
    density: float
    majority_sign: str
    generator: torch.Generator

    def __call__(self, matrices: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        kept = torch.stack([self._thinned(matrix) for matrix in matrices])
        weighted = kept * torch.tensor(weights, device=kept.device)[:, None, None]
        if not self.elect:
            return weighted.sum(0)
        votes = kept if self.majority_sign == "total" else kept.sign()
        agrees = kept.sign() == torch.where(votes.sum(0) >= 0, 1, -1)
        return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)

    def _thinned(self, matrix: torch.Tensor) -> torch.Tensor:
        if self.density == 1:
            return matrix
        if self.keep == "random":  # drawn on the CPU: the same on every device
            mask = torch.bernoulli(torch.full(matrix.shape, self.density), generator=self.generator)
            return matrix * mask.to(matrix.device) / self.density
        mask = torch.zeros(matrix.numel(), device=matrix.device)
        mask[matrix.abs().flatten().topk(int(self.density * matrix.numel())).indices] = 1
        return matrix * mask.view_as(matrix)


def _mix(how: str, density: float | None, majority_sign: str, seed: int) -> _Mix:
    one_of("majority_sign", majority_sign, SIGNS)
    keep, elect = KINDS[how.removesuffix("_svd")]
    return _Mix(keep, elect, density or 1.0, majority_sign, torch.Generator().manual_seed(seed))


def _check(weights: Mapping[Any, float], how: str, density: float | None, r: int | None) -> None:
    one_of("how", how, HOWS)
    sparse = how.removesuffix("_svd") in SPARSE
    if sparse and not (density is not None and 0 < density <= 1):
        raise UsageError(f"density={density} with how={how!r}", "above 0, up to 1", "0.5 is usual")
    if density is not None and not sparse:
        able = f"one of {', '.join(SPARSE)}, or these with _svd"
        raise UsageError(
            f"density={density} with how={how!r}, which keeps every entry", able, "leave density out"
        )
    if r is not None and (how not in SHORTENED or r < 1):
        able = f"a rank from 1, with one of {', '.join(SHORTENED)}"
        raise UsageError(f"r={r} with how={how!r}", able, "leave r out")
    if not weights or not all(map(math.isfinite, weights.values())):
        raise UsageError(
            f"weights {dict(weights)}", "a finite number for each adapter", 'try {"sql": 0.7, "poet": 0.3}'
        )


def _usable(base: "Base", given: str | Adapter) -> Adapter:
    """Return an adapter of the base. Raises AdapterError if there is none, or if it is merged."""
    with base.using(given):
        return base.adapters[named(given, base.adapters)]
