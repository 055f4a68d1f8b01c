"""BitFit: only biases are trained, of linears and of norms.

    y = W x + b'        b' (out,) trained, starts as the base's b

Ben Zaken et al. 2022 (2106.10199). In the paper half of the biases are nearly as good: on BERT
`target_modules: [query, intermediate.dense]`. If no target has a bias (Llama, T5), the linears among them get
one that starts at zero, and a run says so before its first step; norms without a bias get none, because their
modules have no place for it. The head's bias stays frozen.
Differs: b' − b is added after the layer, so rows of one batch may use different biases and the base may be
quantised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from graft.core.insert import Insert
from graft.core.part import Part
from graft.core.schema import Names
from graft.core.site import Site
from graft.errors import SiteError
from graft.layers.replacements import Shift
from graft.layers.targets import NamedFiles, Targeted, matches
from graft.layers.unmatched import say_idle


@dataclass(frozen=True, kw_only=True)
class BitFit(Targeted):
    # linears and norms, by name, last parts or regular expression
    target_modules: str | Names = ".*"

    kinds: ClassVar = ("linear", "norm")
    files: ClassVar = NamedFiles("GRAFT_BITFIT")

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """Return the targets that have a bias; if none has, the linears."""
        named = super().targets(sites)
        chosen = [site for site in named if _has_bias(site)] or [
            site for site in named if site.kind == "linear"
        ]
        if not chosen:
            raise SiteError(
                f"target_modules={self.target_modules!r} names only norms without a bias",
                "linears, or norms that have a bias",
                "leave target_modules out to train what can be trained",
            )
        if not isinstance(self.target_modules, str):
            bare = [site.name for site in named if site not in chosen]
            idle = [e for e in self.target_modules if _matches_only(e, bare, [site.name for site in chosen])]
            say_idle("target_modules", idle, "have no bias and get none")
        return chosen

    def build(self, site: Site) -> Insert:
        return Shift(site)

    def notice(self, part: Part) -> str | None:
        added = sum(not _has_bias(site) for site, _ in part.inserts)
        return f"no target has a bias: {added} linears get one that starts at zero" if added else None


def _matches_only(entry: str, these: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether an entry of target_modules matches some of these names and none of the others."""
    return any(matches(n, [entry]) for n in these) and not any(matches(n, [entry]) for n in others)


def _has_bias(site: Site) -> bool:
    return isinstance(site.bias(), torch.Tensor)
