"""Subset fine-tuning: some of the base's own tensors are trained.

    θ_i ← θ_i + Δθ_i        for i in S;  S = the last k blocks with the final norm, or modules by name

Backward stops below the lowest trained block: nothing beneath it needs a gradient, so nothing is kept for it.
FT-Top2 of Hu et al. 2021 (2106.09685), table 3, is `top_layers=2`. Differs: originals are kept, as in `full`;
with tied embeddings, training the head trains the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from graft.core.file_layout import FileLayout
from graft.core.method import Method, No
from graft.core.part import Seats
from graft.core.schema import Amount, Names
from graft.core.site import Site
from graft.errors import SiteError, UsageError
from graft.layers.replacements import Thaw
from graft.layers.targets import matches, no_such_site
from graft.layers.unmatched import say_idle, say_unmatched


@dataclass(frozen=True, kw_only=True)
class Subset(Method):
    top_layers: Amount = 2  # the last k blocks and the norm after them; 0 with target_modules alone
    # further modules by name or last part; a string is a regular expression
    target_modules: str | Names = ()

    kinds: ClassVar = ("module",)
    files: ClassVar = FileLayout("GRAFT_SUBSET")
    in_place: ClassVar = True
    routable: ClassVar = No("it trains the base's own tensors, which all rows share")
    quantisable: ClassVar = No("packed weights take no gradient")

    def __post_init__(self) -> None:
        if not self.top_layers and not self.target_modules:
            raise UsageError(
                "top_layers=0 without target_modules",
                "at least one block or module",
                "for example top_layers=2",
            )

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        chosen = [s for s in sites if s.kind == "module" and (self._on_top(s, sites) or self._named(s))]
        if not chosen:
            raise no_such_site(self.target_modules, [s for s in sites if s.kind == "module"])
        names = [name for site in chosen for name in _parents(site)]
        say_unmatched("target_modules", self.target_modules, names, matches, "the modules of this model")
        count = len(_last_blocks(sites))
        say_idle("top_layers", [self.top_layers][: self.top_layers > count], f"are all {count} blocks")
        return chosen

    def assemble(self, sites: Sequence[Site]) -> Seats:
        shared: dict[int, nn.Parameter] = {}
        return [(site, Thaw(site, shared)) for site in self.targets(sites)]

    def _on_top(self, site: Site, sites: Sequence[Site]) -> bool:
        """Return whether a site is in the last blocks of the last stack, or the norm after them."""
        if not self.top_layers:
            return False
        blocks = _last_blocks(sites)
        if not blocks:
            raise SiteError(
                f"top_layers={self.top_layers} of a model that has no list of blocks",
                "modules by name",
                "set top_layers to 0 and target_modules to the modules",
            )
        stack, top = blocks[-1].rpartition(".")[0], blocks[-self.top_layers :]
        if site.name.startswith(tuple(f"{name}." for name in top)):
            return True
        trunk = stack.rpartition(".")[0]
        is_norm = any(s.kind == "norm" and s.name == site.name for s in sites)
        outside = (
            site.layer is None and site.name.startswith(f"{trunk}.") and "embed" not in site.name.lower()
        )
        return is_norm and outside

    def _named(self, site: Site) -> bool:
        return bool(self.target_modules) and any(
            matches(name, self.target_modules) for name in _parents(site)
        )


def _parents(site: Site) -> list[str]:
    """Return the paths of the modules around a site, and its own."""
    parts = site.name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _last_blocks(sites: Sequence[Site]) -> list[str]:
    """Return the names of the blocks of the last stack."""
    blocks = [site.name for site in sites if site.kind == "block"]
    return [name for name in blocks if name.rpartition(".")[0] == blocks[-1].rpartition(".")[0]]
