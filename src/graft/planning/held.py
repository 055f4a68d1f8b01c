"""What a run holds in memory besides its steps: weights, adapter, gradients, optimizer states."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graft.core.method import Method
from graft.planning.sketch import attached, same_in_every_block, sketch, stored, unreal, weights
from graft.stages.stage import Stage
from graft.training.optimizers import BLOCK, PIECE, AdamW8bit
from graft.training.parking import originals

TEMPORARIES = 5  # fp32 tensors of a piece that an update of the optimizer makes


@dataclass(frozen=True)
class Held:
    """Bytes that are there before a step, and counts.

    parts: bytes of weights, adapter, gradients, and of the optimizer's states on the device.
    parameters, trained, sites: counts, of the base and of the adapter.
    uniform: see `sketch.same_in_every_block`.
    states: bytes of all optimizer states, paged ones included.  update: temporaries of one optimizer update.
    packed: bytes that the weights would lose as nf4; 0 if they are packed.
    """

    parts: dict[str, int]
    parameters: int
    trained: int
    sites: int
    uniform: bool
    states: int
    update: int
    packed: int


def held_by(
    config: Any,
    methods: Sequence[Method],
    stage: Stage,
    optimizer: str,
    budget: int,
    loading: dict[str, Any],
) -> Held:
    """Return what a run holds, exactly: its objects are built as sketches.

    stage: may train more beside these methods.
    budget: bytes of a paged optimizer's states that stay on the device.  loading: keywords of `sketch`.
    """
    with unreal():
        base = sketch(config, **loading)
        adapter = attached(base, methods, stage)
        trained = adapter.parameters()
        states = optimizer_bytes(optimizer, trained)
        parts = {
            "weights": weights(base) - stored(list(originals(adapter).values())),  # which are parked
            "adapter": stored(list(adapter.checkpoint_state().values())),
            "gradients": stored(trained),
            "optimizer": min(states, budget) if optimizer.startswith("paged") else states,
        }
        packed = 0
        if loading["quant"] == "none":
            packed = weights(base) - weights(sketch(config, **loading | {"quant": "nf4", "group_size": 0}))
        return Held(
            parts,
            parameters=base.count(),
            trained=adapter.count(),
            sites=len({site.name for site, _ in adapter.inserts}),
            uniform=same_in_every_block(base),
            states=states,
            update=TEMPORARIES * 4 * min(PIECE, max((p.numel() for p in trained), default=0)),
            packed=packed,
        )


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
