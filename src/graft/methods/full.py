"""Full fine-tuning: every parameter of the base is trained.

    θ ← θ + Δθ        for all θ of the base

The baseline of every comparison in the field. The file holds the trained tensors.
Differs: the originals are kept, so that the bare base still answers (`using(None)`) and a detach is exact to
the bit; this costs one more copy of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from graft.core.file_layout import FileLayout
from graft.core.method import Method, No
from graft.core.part import Seats
from graft.core.site import Site
from graft.layers.replacements import Thaw


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    kinds: ClassVar = ("module",)
    files: ClassVar = FileLayout("GRAFT_FULL")
    in_place: ClassVar = True
    routable: ClassVar = No("it trains the base's own tensors, which all rows share")
    quantisable: ClassVar = No("packed weights take no gradient")

    def assemble(self, sites: Sequence[Site]) -> Seats:
        shared: dict[int, nn.Parameter] = {}
        return [(site, Thaw(site, shared)) for site in self.targets(sites)]
