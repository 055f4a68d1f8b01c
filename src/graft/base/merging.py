"""Merging: an adapter folded into the base's weights, and taken out again without a rounding error.

The old tensors are kept and put back; nothing is ever subtracted. A packed layer becomes a 16-bit layer made
from its dequantised values, or is packed again. There is one exception: if it is packed in groups and the
change is constant within each group, the groups' minima take the change, rounded to half precision, and codes
and scales stay. Of two tied tensors only the merged one changes, so the tie is broken while the merge lasts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from graft.base.adapter import Adapter
from graft.core import html_card
from graft.core.insert import InPlace, Insert, Weights
from graft.core.site import Site
from graft.errors import MergeError
from graft.quant import QuantLinear
from graft.quant.experts import PackedExperts, seat
from graft.quant.finite import require_finite
from graft.quant.replace import unpacked


@dataclass
class Merged:
    """What one merge did.

    dequantised, repacked, shifted: names of packed layers that are 16-bit now, that were packed again, and
    whose minima hold the change.  untied: the head no longer shares the table's tensor.
    """

    adapter: str
    dequantised: list[str] = field(default_factory=list)
    repacked: list[str] = field(default_factory=list)
    shifted: list[str] = field(default_factory=list)
    untied: bool = False
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        changed = {
            "are 16-bit now": self.dequantised,
            "were packed again": self.repacked,
            "hold the change in their minima": self.shifted,
        }
        layers = [f"{len(names):,} packed layers {how}" for how, names in changed.items() if names]
        untied = ["the head no longer shares the table of embeddings"] if self.untied else []
        return "\n".join(
            [
                f"Merged    {self.adapter!r} into the base's weights",
                *(f"layers    {text}" for text in [*layers, *untied]),
                f"back      base.unmerge({self.adapter!r}) puts the old weights back",
            ]
        )

    def _repr_html_(self) -> str:
        return html_card.of_text(repr(self))


class Merges:
    """The stack of merges of one model; the last one in is the first one out."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._stack: list[Merged] = []

    def __contains__(self, name: str) -> bool:
        return any(merged.adapter == name for merged in self._stack)

    @property
    def done(self) -> list[Merged]:
        """All merges, oldest first."""
        return list(self._stack)

    def add(self, adapter: Adapter, *, repack: bool = False) -> Merged:
        """Fold an adapter into the weights: all of it or, on an error, nothing.

        repack: pack changed layers again, instead of leaving them in 16 bits.
        """
        for method in adapter.methods:
            if not method.mergeable:
                raise MergeError(
                    f"{type(method).__name__}: {method.mergeable}",
                    "a mergeable method",
                    "keep the adapter attached",
                )
        merged = Merged(adapter.name)
        try:
            for site, insert in adapter.inserts:
                if isinstance(insert, InPlace):  # shares the trained values, so tied tensors stay tied
                    trained = {name: _frozen(p.detach()) for name, p in insert.swap().items()}
                    _put(site.module, trained, merged)
            for site, inserts in places(adapter):
                self._fold(site, inserts, merged, repack)
        except BaseException:
            _undo(merged)
            raise
        self._stack.append(merged)
        return merged

    def remove(self, name: str) -> None:
        """Put back what was there before the merge of `name`."""
        if not self._stack or self._stack[-1].adapter != name:
            order = ", ".join(merged.adapter for merged in self._stack) or "none"
            raise MergeError(
                f"{name!r} is not the last merge", f"the last of: {order}", "unmerge in reverse order"
            )
        _undo(self._stack.pop())

    def _fold(self, site: Site, inserts: list[Insert], merged: Merged, repack: bool) -> None:
        for index, insert in enumerate(inserts):
            if index and insert.reads_base_weight:
                pair = f"{type(inserts[index - 1]).__name__}, then {type(insert).__name__}"
                raise MergeError(
                    f"{site.name}: {pair}",
                    "the one that reads the base's weight first",
                    "change the order of the methods, or do not merge",
                )
        module = site.module
        if (shifted := in_minima(site, inserts)) is not None:
            self._shift(site, *shifted, merged)
            return
        dtype = site.dtype
        weight, wide_bias = folded(site, inserts)
        weight = weight.to(dtype)
        _check_finite(weight, site)  # fp16 may not hold what fp32 does
        bias = None if wide_bias is None else _frozen(wide_bias.to(dtype))
        if isinstance(module, QuantLinear):
            self._replace(site.name, module, weight, bias, merged, repack)
            return
        stored = site.stored(weight)
        if site.kind == "parameter":
            self._seat(site, stored, merged, repack)
            return
        merged.untied |= site.kind in ("head", "embed") and self._shared(module)
        _put(module, {"weight": _frozen(stored), "bias": bias}, merged)

    def _shift(self, site: Site, minimum: torch.Tensor, bias: torch.Tensor | None, merged: Merged) -> None:
        module = site.module
        minimum = minimum.to(module.minimum.dtype)
        _check_finite(minimum, site)
        new_bias = None if bias is None else _frozen(bias.to(module.dtype))
        _put(module, {"minimum": _frozen(minimum), "bias": new_bias}, merged)
        merged.shifted.append(site.name)

    def _replace(
        self,
        name: str,
        packed: QuantLinear,
        weight: torch.Tensor,
        bias: nn.Parameter | None,
        merged: Merged,
        repack: bool,
    ) -> None:
        if repack:
            new: Any = QuantLinear.pack(weight, packed.scheme)
            new.transposed = packed.transposed
        else:
            new = unpacked(packed, weight)
        new.requires_grad_(False).eval().bias = bias
        self._model.set_submodule(name, new)
        (merged.repacked if repack else merged.dequantised).append(name)
        merged._undo.append(lambda: self._model.set_submodule(name, packed))

    def _seat(self, site: Site, weight: torch.Tensor, merged: Merged, repack: bool) -> None:
        """Put a weight in the place of a parameter, or of the packed matrices of experts."""
        module, name, held = site.module, site.leaf, site.held
        new: Any = _frozen(weight)
        if isinstance(held, PackedExperts):
            new = held.packed_again(weight) if repack else new
            (merged.repacked if repack else merged.dequantised).append(site.name)
        seat(module, name, new)
        merged._undo.append(lambda: seat(module, name, held))

    def _shared(self, module: Any) -> bool:
        """Return whether another module has the same weight."""
        weight = module._parameters["weight"]
        return sum(other._parameters.get("weight") is weight for other in self._model.modules()) > 1


def places(adapter: Adapter) -> list[tuple[Site, list[Insert]]]:
    """Return the inserts that change a weight, by place, in the order in which they are folded.

    Sites of different kinds with one name are one place. In-place methods are merged exactly, and task heads
    keep answering after the merged base, so neither is among them.
    """
    grouped: dict[str, tuple[Site, list[Insert]]] = {}
    for site, insert in adapter.inserts:
        if isinstance(insert, Insert):
            grouped.setdefault(site.name, (site, []))[1].append(insert)
    # Every insert reads what the last `enter` returned. So those that change the input are folded at the end,
    # the last one first.
    return [
        (site, [i for i in inserts if not i.enters] + [i for i in reversed(inserts) if i.enters])
        for site, inserts in grouped.values()
    ]


def folded(site: Site, inserts: Sequence[Insert]) -> Weights:
    """Return weight (out, in) and bias of a site with these inserts, in fp32 or fp64, before any rounding."""
    wide = torch.promote_types(site.dtype, torch.float32)
    weight, bias = site.weight().detach().to(wide), site.bias()
    bias = None if bias is None else bias.detach().to(wide)
    for insert in inserts:
        weight, bias = insert.merge(weight, bias)
    return weight, bias


def in_minima(site: Site, inserts: Sequence[Insert]) -> Weights | None:
    """Return minima and bias of a layer packed in groups, with these inserts, in fp32 or fp64, not rounded.

    None for any other layer, or if an insert changes more than the minima.
    """
    module, bias = site.module, site.bias()
    if getattr(module, "minimum", None) is None:
        return None
    minimum = module.minimum.detach().to(torch.promote_types(module.minimum.dtype, torch.float32))
    bias = None if bias is None else bias.detach().to(minimum.dtype)
    for insert in inserts:
        taken = insert.merge_groups(minimum, bias, module.scheme.block)
        if taken is None:
            return None
        minimum, bias = taken
    return minimum, bias


def _check_finite(weight: torch.Tensor, site: Site) -> None:
    """Raise MergeError for a merged weight that holds NaN or infinity."""
    remedy = "train with a lower lr, or use an earlier checkpoint"
    require_finite([(site.name, weight)], MergeError, remedy, "the merged weight")


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _put(module: nn.Module, new: Mapping[str, nn.Parameter | None], merged: Merged) -> None:
    """Replace parameters of a module, and note in `merged` how to put the old ones back.

    None: left as it is.
    """
    before = dict(module._parameters)
    module._parameters.update({name: p for name, p in new.items() if p is not None})

    def back() -> None:
        module._parameters.clear()
        module._parameters.update(before)

    merged._undo.append(back)


def _undo(merged: Merged) -> None:
    for step in reversed(merged._undo):
        step()
