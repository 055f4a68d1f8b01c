"""What a run holds in memory besides its steps: weights, adapter, gradients, optimizer states."""

import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graft.base.base import Base
from graft.core.method import Method
from graft.errors import Notice
from graft.planning.costs import Held
from graft.planning.sketch import (
    attached,
    depth_of,
    same_in_every_block,
    shallow,
    sketch,
    stored,
    unreal,
    weights,
)
from graft.quant import Scheme
from graft.quant.replace import matrix, packable, packable_experts
from graft.stages.stage import Stage
from graft.training.optimizers import BLOCK, PIECE, AdamW8bit
from graft.training.parking import originals

TEMPORARIES = 5  # fp32 tensors of a piece that an update of the optimizer makes


def held_by(
    config: Any,
    methods: Sequence[Method],
    stage: Stage,
    optimizer: str,
    budget: int,
    loading: dict[str, Any],
) -> Held:
    """Return what a run holds: its objects are built as sketches, the adapter on a few blocks.

    stage: may train more beside these methods.
    budget: bytes of a paged optimizer's states that stay on the device.  loading: keywords of `sketch`.
    """
    with unreal():
        whole = sketch(config, **loading | {"quant": "none", "group_size": 0})
        sizes = {quant: packed_weights(whole, quant, group) for quant, group in _formats(loading)}
        own = sizes[loading["quant"]]
        trained, uniform = _trained(config, methods, stage, optimizer, loading)
    parts = {
        "weights": own - trained.parked,
        "adapter": trained.state,
        "gradients": trained.gradients,
        "optimizer": min(trained.states, budget) if optimizer.startswith("paged") else trained.states,
    }
    return Held(
        parts,
        parameters=whole.count(),
        trained=trained.count,
        sites=trained.sites,
        uniform=uniform,
        states=trained.states,
        update=TEMPORARIES * 4 * min(PIECE, trained.largest),
        packed=own - sizes["nf4"] if loading["quant"] == "none" else 0,
    )


def _formats(loading: dict[str, Any]) -> list[tuple[str, int]]:
    """Return the (quant, group_size) whose bytes are asked for: the run's, and nf4, which would save."""
    return [(loading["quant"], loading["group_size"]), *([("nf4", 0)] if loading["quant"] == "none" else [])]


def packed_weights(base: Base, quant: str, group_size: int) -> int:
    """Return the bytes that a base in 16 or 32 bits has if it is packed: codes, constants, rest, buffers."""
    total = weights(base)
    if quant == "none":
        return total
    scheme = Scheme(quant, group_size)
    shapes: Counter[tuple[int, int]] = Counter()
    for _, module in packable(base.model):
        rows, columns = matrix(module).shape
        shapes[int(rows), int(columns)] += 1
        total -= matrix(module).nbytes
    for module, name in packable_experts(base.model).values():
        stack = getattr(module, name).mT if module.is_transposed else getattr(module, name)
        shapes[math.prod(stack.shape[:-1]), int(stack.shape[-1])] += 1
        total -= stack.nbytes
    for (rows, columns), count in shapes.items():
        tensors = scheme.shapes(rows, columns).values()
        total += count * sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors)
    return total


@dataclass(frozen=True)
class _Trained:
    """What is trained: counts and bytes.  parked: of the tensors that an in-place method keeps in a file."""

    count: int
    sites: int
    state: int
    gradients: int
    states: int
    parked: int
    largest: int


def _trained(
    config: Any, methods: Sequence[Method], stage: Stage, optimizer: str, loading: dict[str, Any]
) -> tuple[_Trained, bool]:
    """Return what is trained on all blocks, and whether a few blocks represent all.

    Where they do, what two and three blocks hold is carried on; four blocks prove it.
    """

    def on(blocks: int) -> tuple[_Trained, bool]:
        base = sketch(config if blocks == depth else shallow(config, blocks), **loading)
        adapter = attached(base, methods, stage)
        tensors = adapter.parameters()
        found = _Trained(
            count=adapter.count(),
            sites=len({site.name for site, _ in adapter.inserts}),
            state=stored(list(adapter.checkpoint_state().values())),
            gradients=stored(tensors),
            states=optimizer_bytes(optimizer, tensors),
            parked=stored(list(originals(adapter).values())),
            largest=max((p.numel() for p in tensors), default=0),
        )
        return found, same_in_every_block(base)

    depth = depth_of(config)
    if depth > 4 and not any(map(_names_blocks, methods)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # of blocks that are left out
            (two, _), (three, same), (four, _) = map(on, (2, 3, 4))
        if same and _carried(two, three, 4) == four:
            return _carried(two, three, depth), True
    return on(depth)


def _carried(two: _Trained, three: _Trained, depth: int) -> _Trained:
    """Return what so many blocks hold, by what two and three do."""
    grown = {key: a + (vars(three)[key] - a) * (depth - 2) for key, a in vars(two).items()}
    return _Trained(**grown | {"largest": max(two.largest, three.largest)})


def _names_blocks(method: Method) -> bool:
    """Return whether a method's settings may single out blocks: by numbers, or by patterns with digits."""
    settings = method.config()
    if settings.get("layers_to_transform") is not None or settings.get("layers_pattern") is not None:
        return True
    texts = json.dumps([value for value in settings.values() if isinstance(value, str | list | tuple | dict)])
    return any(mark.isdigit() for mark in texts) or "\\d" in texts


def optimizer_bytes(optimizer: str, trained: Sequence[torch.Tensor]) -> int:
    """Return the bytes of AdamW's states: two moments in fp32 or 8 bits, and what 16-bit tensors lose."""
    total = 0
    for p in trained:
        wide = torch.promote_types(p.dtype, torch.float32)
        in_8_bits = optimizer.endswith("8bit") and p.numel() >= AdamW8bit.smallest
        one_moment = p.numel() + 4 * -(-p.numel() // BLOCK) if in_8_bits else wide.itemsize * p.numel()
        lost = 2 if p.dtype == torch.bfloat16 else 4 if p.dtype == torch.float16 else 0  # `training.master`
        master = lost * p.numel()
        total += 2 * one_moment + master
    return total
