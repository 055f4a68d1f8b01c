"""LN tuning: only the gains and biases of the norms are trained.

    y = γ' ⊙ norm₀(x) + β'       γ', β' (d,) trained, start as the base's γ, β;  β only if the norm has one

norm₀ is the norm without its γ and β: LayerNorm or RMSNorm. Zhao et al. 2023 (2312.11420).
Differs: the insert computes y + (γ' − γ) ⊙ norm₀(x) + (β' − β), so rows of one batch may use different norms,
and an update smaller than the steps of a 16-bit γ has an effect. norm₀ is the module's own code with a weight
that stands for 1. γ' is kept as the module stores it: Gemma's norms multiply by 1 + γ, which leaves γ' − γ
the same.
"""

from dataclasses import dataclass
from typing import ClassVar

from graft.core.insert import Insert
from graft.core.schema import Names
from graft.core.site import Site
from graft.layers.norm_gain import Gain
from graft.layers.targets import NamedFiles, Targeted


@dataclass(frozen=True, kw_only=True)
class LNTuning(Targeted):
    # norms, by names, last parts or regular expression; usually all
    target_modules: str | Names = ".*"

    kinds: ClassVar = ("norm",)
    files: ClassVar = NamedFiles("LN_TUNING", own=frozenset({"layers_to_transform", "layers_pattern"}))

    def build(self, site: Site) -> Insert:
        return Gain(site)
