"""Combine adapters of equal settings tensor by tensor, whatever their method.

    average   θ = Σ wᵢθᵢ / Σ wᵢ                   model soups, Wortsman et al. 2022 (2203.05482)
    linear    θ = θ₀ + Σ wᵢ(θᵢ − θ₀)              task arithmetic, Ilharco et al. 2022 (2212.04089)

θ₀ is the base's own value. Only methods that train the base in place have one, so for others `linear` needs
Σ wᵢ = 1. For LoRAs this averages the factors, which is not the mean of their products: for that, use `cat` or
`svd` of `graft.blend`.
"""

import math
from typing import TYPE_CHECKING, Any

import torch

from graft.base.adapter import Adapter
from graft.errors import AdapterError, UsageError, listed

if TYPE_CHECKING:
    from graft.base.base import Base

# Settings that choose sites: what they chose is compared by the tensors there.
PLACES = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}


def add_up(
    base: "Base", adapters: list[Adapter], weights: list[float], name: str, *, average: bool
) -> Adapter:
    """Attach the combination of these adapters under a new name.

    Raises UsageError if the weights have no meaning, AdapterError if the adapters' tensors mean different
    things.
    """
    total = math.fsum(weights)
    if average and math.isclose(total, 0, abs_tol=1e-9):
        raise UsageError("weights that sum to 0", "a sum to divide by", "use how='linear'")
    weights = [w / total for w in weights] if average else weights
    rest = 0.0 if average or math.isclose(total, 1, abs_tol=1e-6) else 1 - total
    if rest and not all(method.in_place for method in adapters[0].methods):
        raise UsageError(
            f"how='linear' with weights that sum to {total:g}, on tensors that do not start from the base's",
            "weights that sum to 1",
            "use how='average', which divides by the sum",
        )
    for other in adapters[1:]:
        _same_meaning(adapters[0], other)
    trained = _trained(adapters[0])
    states = [adapter.checkpoint_state() for adapter in adapters]
    mixed = base.attach(name, adapters[0].methods)
    values = {key: tensor for key, tensor in states[0].items() if key not in trained}
    for key, start in mixed.checkpoint_state().items():
        if key in trained:
            parts = (w * state[key].float() for w, state in zip(weights, states, strict=True))
            values[key] = sum(parts, rest * start.float())
    mixed.restore_checkpoint_state(values)
    return mixed


def _trained(adapter: Adapter) -> set[str]:
    """Return the keys of trained tensors; one that several inserts share has several keys."""
    addresses = {parameter.data_ptr() for parameter in adapter.parameters()}
    return {key for key, tensor in adapter.checkpoint_state().items() if tensor.data_ptr() in addresses}


def _same_meaning(one: Adapter, other: Adapter) -> None:
    """Raise AdapterError if the tensors of two adapters mean different things."""
    wrong = _other_settings(one, other) or _other_tensors(one, other)
    if wrong:
        raise AdapterError(
            f"{one.name!r} and {other.name!r} differ: {listed(wrong, 4, '; ')}",
            "adapters of the same methods and settings",
            "low-rank adapters of different settings are blended by how='cat' or 'svd'",
        )


def _other_settings(one: Adapter, other: Adapter) -> list[str]:
    methods = [" + ".join(type(method).__name__ for method in adapter.methods) for adapter in (one, other)]
    if methods[0] != methods[1]:
        return [f"{methods[0]}, {methods[1]}"]
    pairs = [(_settings(one, index), _settings(other, index)) for index in range(len(one.methods))]
    return [f"{key}={a[key]!r}, {b[key]!r}" for a, b in pairs for key in a if a[key] != b[key]]


def _settings(adapter: Adapter, index: int) -> dict[str, Any]:
    """Return a method's settings as a file states them, so that an adapter equals itself saved and loaded."""
    method = adapter.methods[index]
    stated = method.files.own_settings(method) | method.files.describe(method, adapter.parts[index])
    return {key: value for key, value in stated.items() if key not in PLACES}


def _other_tensors(one: Adapter, other: Adapter) -> list[str]:
    mine = one.checkpoint_state()
    theirs = other.checkpoint_state()
    trained = _trained(one)
    wrong = [f"{key} is in one only" for key in sorted(mine.keys() ^ theirs.keys())]
    for key in (key for key in mine if key in theirs):
        if mine[key].shape != theirs[key].shape:
            wrong.append(f"{key} {tuple(mine[key].shape)}, {tuple(theirs[key].shape)}")
        elif key not in trained and not torch.equal(mine[key], theirs[key]):
            wrong.append(f"{key}, which is not trained, has other values")
    return wrong
