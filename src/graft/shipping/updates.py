"""What a model should be after a merge, tensor by tensor, and merges that last for a block of code."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from graft.base.merging import folded, places
from graft.core.insert import Insert
from graft.core.site import Site
from graft.errors import Notice
from graft.quant import QuantLinear
from graft.quant.experts import PackedExperts, outer_modules

if TYPE_CHECKING:
    from graft.base.base import Base


@contextlib.contextmanager
def stacked(base: "Base", names: Sequence[str], *, repack: bool = False) -> Iterator[None]:
    """Merge these adapters inside the block, in this order."""
    done: list[str] = []
    try:
        for name in names:
            base.merge(name, repack=repack)
            done.append(name)
        yield
    finally:
        for name in reversed(done):
            base.unmerge(name)


@contextlib.contextmanager
def unmerged(base: "Base") -> Iterator[list[str]]:
    """Unmerge everything inside the block, and merge it again afterwards.

    Yields the names of what was merged, oldest first.
    """
    merged = [(done.adapter, bool(done.repacked)) for done in base.merged]
    for name, _ in reversed(merged):
        base.unmerge(name)
    try:
        yield [name for name, _ in merged]
    finally:
        for name, repack in merged:
            base.merge(name, repack=repack)


@contextlib.contextmanager
def without_head(base: "Base", name: str) -> Iterator[str | None]:
    """Let a copy of an adapter without its task head stand on the base inside the block.

    Yields its name, None where nothing is left. Only such a copy can be merged: a head stays after the base.
    """
    adapter = base.adapters[name]
    kept = [index for index, method in enumerate(adapter.methods) if not method.is_head()]
    if not kept:
        yield None
        return
    body = f"{name} without its head"
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # told when the adapter itself came
        copy = base.attach(body, [adapter.methods[index] for index in kept])
    try:
        moved = {f"{old}.": f"{new}." for new, old in enumerate(kept)}
        state = {}
        for key, tensor in adapter.checkpoint_state().items():
            index, _, rest = key.partition(".")
            if f"{index}." in moved:
                state[moved[f"{index}."] + rest] = tensor
        copy.restore_checkpoint_state(state)
        copy.trained_on = adapter.trained_on
        yield body
    finally:
        base.detach(body)


def ideal(base: "Base", adapters: Sequence[str]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield (name, W, W + D) of every tensor of the model, with transformers' shapes and names.

    D is all that these adapters add, before any rounding. In-place methods count into W: they are merged
    exactly.
    """
    changes: dict[str, dict[str, tuple[Site, list[Insert]]]] = {}
    with contextlib.ExitStack() as stack:
        for adapter in (base.adapters[name] for name in adapters):
            stack.enter_context(adapter.swapped())
            for site, inserts in places(adapter):
                changes.setdefault(site.path, {}).setdefault(site.name, (site, []))[1].extend(inserts)
        for path, module in outer_modules(base.model):
            before = tensors(module)
            after = dict(before)
            for place in changes.get(path, {}).values():
                after |= _changed(module, *place)
            for name, tensor in after.items():
                yield f"{path}.{name}", before.get(name, torch.zeros_like(tensor)), tensor


def tensors(module: Any) -> dict[str, torch.Tensor]:
    """Return a module's own parameters as files of transformers hold them; packed ones are dequantised."""
    if not isinstance(module, QuantLinear):
        packed = {name: m.weight for name, m in module.named_children() if isinstance(m, PackedExperts)}
        return packed | {name: p.detach() for name, p in module._parameters.items() if p is not None}
    weight = module.weight.T if module.transposed else module.weight
    return {"weight": weight} if module.bias is None else {"weight": weight, "bias": module.bias.detach()}


def _changed(module: Any, site: Site, inserts: Sequence[Insert]) -> dict[str, torch.Tensor]:
    weight, bias = folded(site, inserts)
    if site.kind == "parameter":
        return {site.leaf: site.stored(weight)}
    weight = weight.T if site.transposed or getattr(module, "transposed", False) else weight
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
