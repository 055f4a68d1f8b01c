"""Choose places for modules inside the blocks, under the settings of the `adapters` library.

mh_adapter, cross_adapter, output_adapter: at the self-attention, cross-attention and feed-forward sublayers

    y + Δ(y)          after a sublayer, before its residual is added
    y + Δ(x)          parallel to it: x is what its first projection reads
    norm(u₀ + Δ(u))   after the residual of a post-norm block: u₀ its sum, u = norm(u₀); its norm acts twice
    u + Δ(u)          the same on pre-norm blocks, which end with a sum that is not normed
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from graft.core.file_layout import FileLayout
from graft.core.insert import Insert
from graft.core.method import Method
from graft.core.part import Seats
from graft.core.schema import Numbers
from graft.core.site import Site
from graft.errors import SiteError, listed
from graft.layers.norm_gain import Gain
from graft.layers.unmatched import say_idle

KINDS = {"attention": "mh_adapter", "cross": "cross_adapter", "mlp": "output_adapter"}  # kind: its switch


class PlacedFiles(FileLayout):
    """The `adapters` library trains no norms."""

    def understand_library(self, cls: Any, settings: dict[str, Any], sites: Sequence[Site]) -> Any:
        return self.understand(cls, settings | {"train_norms": False})


@dataclass(frozen=True, kw_only=True)
class Placed(Method):
    """Base class of methods that add one module to each sublayer of the chosen kinds."""

    mh_adapter: bool = False  # at self-attention
    output_adapter: bool = True  # at the feed-forward network
    cross_adapter: bool = False  # at the decoder's cross-attention
    leave_out: Numbers = ()  # blocks without (AdapterDrop), numbered through encoder and decoder
    train_norms: bool = False  # train the gains and biases of all norms of the base too

    kinds: ClassVar = ("attention", "cross", "mlp")  # as in KINDS: cards read literals only
    files: ClassVar = PlacedFiles()

    @abstractmethod
    def insert(self, sublayer: Site, place: Site, block: int) -> Insert:
        """Return the insert for one place.

        sublayer: has the widths.  block: its number, through all stacks.
        """

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        return [sublayer for sublayer, _, _ in self.places(sites)]

    def places(self, sites: Sequence[Site]) -> list[tuple[Site, Site, int]]:
        """Return (sublayer, site of the insert, number of the block) for each sublayer that gets one."""
        blocks = [site for site in sites if site.kind == "block"]
        seats = [
            (site, self._place(site, block, sites), number)
            for number, block in enumerate(blocks)
            if number not in self.leave_out
            for site in sites
            if site.name.startswith(block.name + ".")
            and site.kind in KINDS
            and getattr(self, KINDS[site.kind])
        ]
        if not seats:
            wanted = [kind for kind, switch in KINDS.items() if getattr(self, switch)]
            given = f"{type(self).__name__} at {', '.join(wanted) or 'no kind of sublayer'} finds no place"
            raise SiteError(
                given,
                "a sublayer of a block that is not left out; a feed-forward network of experts is none",
                "set mh_adapter or output_adapter, or leave out fewer blocks",
            )
        self._say_gaps(blocks, {(sublayer.kind, number) for sublayer, _, number in seats})
        beyond = [number for number in self.leave_out if number >= len(blocks)]
        say_idle("leave_out", beyond, f"name no block: there are {len(blocks)}")
        return seats

    def _say_gaps(self, blocks: Sequence[Site], filled: set[tuple[str, int]]) -> None:
        """Give a notice of the blocks that have no sublayer of a kind that was asked for.

        filled: (kind, number of the block). Only decoders have cross-attention.
        """
        kept = [number for number in range(len(blocks)) if number not in self.leave_out]
        for kind, switch in KINDS.items():
            bare = [blocks[number].name for number in kept if (kind, number) not in filled]
            if getattr(self, switch) and bare and (kind != "cross" or len(bare) == len(kept)):
                why = f"finds no {kind} sublayer in {len(bare)} of {len(kept)} blocks (experts are none)"
                say_idle(self.name(), [switch], f"{why}: {listed(bare)}")

    def assemble(self, sites: Sequence[Site]) -> Seats:
        seats: Seats = [(place, self.insert(sublayer, place, n)) for sublayer, place, n in self.places(sites)]
        return seats + self.norms(sites)

    def norms(self, sites: Sequence[Site]) -> Seats:
        """Return the gains and biases of all norms of the base, if they are trained too."""
        return [(site, Gain(site)) for site in sites if site.kind == "norm"] if self.train_norms else []

    def _place(self, sublayer: Site, block: Site, sites: Sequence[Site]) -> Site:
        # Only methods that may sit after the residual have this setting.
        after_residual: bool | None = getattr(self, "original_ln_before", False)
        if after_residual is False:
            return sublayer
        if post_norm(sites):
            return norm_after(sublayer, block, sites)
        if after_residual is None:
            return sublayer
        if sublayer.kind != "mlp":
            raise SiteError(
                f"original_ln_before at the {sublayer.kind} of {block.name}, whose sum no module returns",
                "the feed-forward network, or a post-norm model such as BERT",
                "leave original_ln_before out",
            )
        return block


class Addition(Insert):
    """Adds `delta` at one place, as the top of this file says.

    d: width there.  parallel: Δ reads x instead of y.
    """

    def __init__(self, place: Site, d: int, *, parallel: bool = False) -> None:
        super().__init__()
        self.place = place
        self.d = d
        self.parallel = parallel

    @abstractmethod
    def delta(self, u: torch.Tensor) -> torch.Tensor:
        """Return Δ(u), of u's shape (..., d)."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.place.kind == "norm":
            total = x + self.delta(y).to(x.dtype)
            again: torch.Tensor = self.place.module.forward(total)  # `forward`: its hooks must not run again
            return again.to(y.dtype)
        return y + self.delta(x if self.parallel else y).to(y.dtype)


def post_norm(sites: Sequence[Site]) -> bool:
    """Return whether blocks end with a norm (BERT, BART).

    Pre-norm stacks have one after the last block instead.
    """
    base = sites[0].root.base_model
    inside = {id(module) for module in base.modules()}
    outer = [s for s in sites if s.kind == "norm" and s.layer is None and id(s.module) in inside]
    return all("emb" in site.name for site in outer)


def norm_after(sublayer: Site, block: Site, sites: Sequence[Site]) -> Site:
    """Return the norm after a sublayer of a post-norm block: the next one in the order of the modules."""
    inside = [s for s in sites if s.name.startswith(block.name + ".") and s.kind in ("linear", "norm")]
    start = next(i for i, site in enumerate(inside) if site.name == sublayer.name)
    norms = [site for site in inside[start:] if site.kind == "norm"]
    if not norms:
        raise SiteError(
            f"no norm follows {sublayer.name}", "one after the residual", "set original_ln_before to false"
        )
    return norms[0]
