"""The error for memory that ran out: how much was used, and how much which setting would save."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from graft.errors import TrainingError
from graft.quant import QuantLinear, Scheme
from graft.recipe.levers import Lever, Use, levers
from graft.sizes import MIB, size
from graft.training.log import usage

if TYPE_CHECKING:
    from graft.base.base import Base
    from graft.training.together import Trained

CHECKPOINTED = 0.7  # share of the activations that gradient checkpointing frees, roughly
LEAST = 0.1  # share of the peak that activations take at least, even if the estimate is lower


@contextlib.contextmanager
def advice(base: "Base", adapter: "Trained", settings: Any, batches: Sequence[Any]) -> Iterator[None]:
    """Raise TrainingError, which lists what would help, if the block runs out of memory.

    settings: the recipe's `train:` section.  batches: the micro-batches that the block computes.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _exhausted(error):
            raise
        rows, length = max((tuple(batch.inputs["input_ids"].shape) for batch in batches), key=math.prod)
        peak = usage(base.device)[1]
        helpful = levers(_estimate(base, adapter, settings, length, peak))
        helpful.sort(key=lambda lever: lever.saves, reverse=True)
        raise TrainingError(
            f"memory ran out on a micro-batch of {rows} rows x {length} tokens"
            f" (peak {size(peak)} on {base.device})",
            "a micro-batch that fits",
            "set one or more of these (estimated saving): " + ", ".join(map(_worded, helpful)),
        ) from error


def _exhausted(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _worded(lever: Lever) -> str:
    return f"{lever.change} ({size(lever.saves)})"


def _estimate(base: "Base", adapter: "Trained", settings: Any, length: int, peak: int) -> Use:
    """Estimate the bytes that each lever could save; activations are the peak without the known tensors."""
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in adapter.parameters())
    moments = 2 * adapter.count() * (1 if "8bit" in settings.optimizer else 4)
    budget = int(settings.paged_budget_mb * MIB)
    activations = max(peak - weights - 2 * trained - moments, int(LEAST * peak))
    packed = any(isinstance(module, QuantLinear) for module in base.model.modules())
    return Use(
        rows=settings.micro_batch_size,
        length=length,
        rank=next((method.r for method in adapter.methods if hasattr(method, "r")), 0),
        row=activations // settings.micro_batch_size,
        recomputed=0 if settings.gradient_checkpointing is True else int(CHECKPOINTED * activations),
        states=0 if settings.optimizer.startswith("paged") else moments - min(moments, budget),
        packed=0 if packed else int(weights - base.count() * Scheme("nf4").bits / 8),
        trained=2 * trained + moments,
    )
