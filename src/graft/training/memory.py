"""What to say when memory runs out: what was used, and which keys would save how much, largest first."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from graft.errors import TrainingError
from graft.quant import is_packed
from graft.training.log import usage

if TYPE_CHECKING:
    from graft.base.adapter import Adapter
    from graft.base.base import Base

GIB = 2**30
_NF4 = 4.127 / 8  # bytes per number, double-quantised


@contextlib.contextmanager
def advice(base: "Base", adapter: "Adapter", settings: Any, batches: Sequence[Any]) -> Iterator[None]:
    """Running out of memory inside the block becomes a TrainingError with its levers.  batches: what is computed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _exhausted(error):
            raise
        shape = max((tuple(batch.inputs["input_ids"].shape) for batch in batches), key=math.prod)
        peak = usage(base.device)[1]
        found = sorted(levers(base, adapter, settings, shape, peak), reverse=True)
        raise TrainingError(
            f"memory ran out on a micro-batch of {shape[0]} rows x {shape[1]} tokens"
            f" (peak {peak / GIB:.2f} GiB on {base.device})",
            "micro-batches that fit",
            "set one or more of these (estimated saving): "
            + ", ".join(f"{key} ({saving / GIB:.2f} GiB)" for saving, key in found),
        ) from error


def _exhausted(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def levers(
    base: "Base", adapter: "Adapter", settings: Any, shape: tuple[int, ...], peak: int
) -> list[tuple[int, str]]:
    """(bytes saved, "key=value") of everything not yet used. Activations are what the peak holds beyond the tensors."""
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in adapter.parameters())
    moments = 2 * adapter.count() * (1 if "8bit" in settings.optimizer else 4)
    activations = max(peak - weights - 2 * trained - moments, peak // 10)
    found = [(activations // 2, f"data.max_length={max(1, shape[-1] // 2)}")]
    if settings.micro_batch_size > 1:
        half = settings.micro_batch_size // 2
        found.append(
            (
                activations * (settings.micro_batch_size - half) // settings.micro_batch_size,
                f"train.micro_batch_size={half}",
            )
        )
    if not settings.gradient_checkpointing:
        found.append((activations * 7 // 10, "train.gradient_checkpointing=true"))
    if not any(is_packed(module) for module in base.model.modules()):
        found.append((int(weights - base.count() * _NF4), "quant=nf4"))
    if not settings.optimizer.endswith("8bit"):
        found.append((moments * 3 // 4, "train.optimizer=paged_adamw_8bit"))
    elif not settings.optimizer.startswith("paged"):
        found.append((moments, "train.optimizer=paged_adamw_8bit"))
    found.append(
        ((2 * trained + moments) // 2, "a smaller method (half of method.r, or fewer target_modules)")
    )
    return found
