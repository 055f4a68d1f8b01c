"""LoRA on a parameter: the matrices of all experts of a mixture, or that of a router.

    W_e + s·B_e A_e        A (E·r, in), e has rows e·r to (e+1)·r;  B (out, r·E), it has every E-th column

The layouts are those of PEFT's `target_parameters`. An expert's update is made for its own tokens, as
s·B_e (A_e x); the update of the weight itself is formed only for a router, and where a model does not say
which tokens an expert gets.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from graft.core.insert import WeightShift
from graft.core.part import Part
from graft.core.site import Site
from graft.errors import SiteError, nearest
from graft.layers import lora_start as start
from graft.layers.targets import matches
from graft.quant.experts import Order, grouped, projections

# Linears of these names are what PEFT turns into parameters, in models of families whose experts had them.
TURNED = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


class LowRankParameter(WeightShift):
    """s·B_e A_e added to the matrices of one parameter.

    after: how many parameters of the same module are adapted after this one; PEFT wraps the module once for
    each, and names every wrapper inside another `base_layer`.
    """

    def __init__(self, site: Site, r: int, scale: float, init: start.Start, after: int = 0) -> None:
        super().__init__()
        self.scale, self.experts, self.inside = scale, site.experts, "base_layer." * after
        bound = site.in_features**-0.5
        A = torch.empty(site.experts * r, site.in_features)
        self.A = nn.Parameter(A.normal_(std=1 / r) if init == "gaussian" else A.uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(site.out_features, r * site.experts))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (E, r, in) and B (E, out, r)."""
        A = self.A.view(self.experts, -1, self.A.shape[1])
        return A, self.B.view(self.B.shape[0], -1, self.experts).permute(2, 0, 1)

    def shift(self) -> torch.Tensor:
        A, B = self.factors()
        return self.scale * (B @ A).flatten(0, 1)

    def added(self, x: torch.Tensor, order: Order) -> torch.Tensor:
        A, B = self.factors()
        return grouped(grouped(x, A, order), B.contiguous(), order) * self.scale

    def saved(self) -> dict[str, torch.Tensor]:
        return {f"{self.inside}lora_A.weight": self.A, f"{self.inside}lora_B.weight": self.B}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.saved().items():
                tensor.copy_(tensors[name])


def parameters(names: Sequence[str], sites: Sequence[Site]) -> list[tuple[Site, int]]:
    """Return (site, number of chosen ones after it in its module) of the parameters that these names match.

    A name matches as in PEFT: the whole of a parameter's, or its last parts. Raises SiteError if no name
    matches.
    """
    named = weights(sites)
    chosen = [site for key, site in named.items() if matches(key, names)]
    if names and not chosen:
        ends = {".".join(key.split(".")[-2:]) for key, site in named.items() if site.kind == "parameter"}
        raise SiteError(
            f"target_parameters={', '.join(names)!r} matches no weight of this model",
            f"the end of a weight's name: {', '.join(sorted(ends)) or 'q_proj.weight, for example'}",
            f"did you mean {' or '.join(nearest(names[0], ends))}?" if ends else "use target_modules",
        )
    paths = [site.path for site in chosen]
    return [(site, paths[index + 1 :].count(site.path)) for index, site in enumerate(chosen)]


def weights(sites: Sequence[Site]) -> dict[str, Site]:
    """Return the sites by the names of their weights. That of a linear is the linear's own site."""
    return {
        f"{site.name}.weight" if site.kind in ("linear", "head") else site.name: site
        for site in sites
        if site.kind in ("parameter", "linear", "head")
    }


def peft_targets(method: Any, part: Part) -> dict[str, Any]:
    """Return those of PEFT's settings of what is adapted that differ from ours.

    In a model that stacks its experts, PEFT takes a module named as an expert's projection once was, such as
    `gate_proj` of a dense block, for the experts. It is named by its weight instead, which is the same LoRA.
    """
    given = list(method.target_parameters)
    modules = [site for site, _ in part.inserts if site.kind in ("linear", "head")]
    by_weight = {site.name for site in modules if matches(f"{site.name}.weight", given)}
    turned = {s.name for s in modules if s.leaf in TURNED and stacks_experts(s.root)} - by_weight
    if method.use_dora or method.lora_bias or not by_weight | turned:
        return {"target_parameters": given or None}
    return {
        "target_modules": sorted({site.name for site in modules} - by_weight - turned),
        "target_parameters": [*given, *(f"{name}.weight" for name in sorted(turned))],
        "lora_dropout": 0.0,  # PEFT has none on weights; it is over when training is
    }


def stacks_experts(model: Any) -> bool:
    """Return whether a model holds the matrices of all experts in one parameter."""
    return any("gate_up_proj" in projections(module) for module in model.modules())
