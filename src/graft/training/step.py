"""One optimiser step's gradient: the mean loss over all supervised tokens, however they are cut into micro-batches.

    L = Σ_micro Σ_tokens loss / N        N supervised tokens of the WHOLE step

Dividing each micro-batch by its own count would weigh a token by how short its neighbours are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graft.errors import TrainingError
from graft.objectives import consistent
from graft.training import rng

if TYPE_CHECKING:
    from graft.base.adapter import Adapter
    from graft.base.base import Base

Objective = Callable[
    [Any, Any], tuple[torch.Tensor, dict[str, float]]
]  # (base, batch) -> sum over tokens, metrics


@dataclass
class Measured:
    """A step before it is applied.  norm: of the whole gradient; trouble: what is not finite, "" if nothing."""

    loss: float
    tokens: int
    norm: float
    metrics: dict[str, float]
    trouble: str
    sources: list[str]


def measure(
    base: "Base", adapter: "Adapter", objective: Objective, batches: Sequence[Any], arm: Callable[..., None]
) -> Measured:
    """Leave the gradient of the step in the adapter's parameters.

    batches: micro-batches.  arm: called with each batch's attention mask before each forward (see `neftune`).
    Raises TrainingError where no token is supervised.
    """
    tokens = sum(batch.tokens for batch in batches)
    sources = [source for batch in batches for source in batch.sources]
    if not tokens:
        raise TrainingError(
            f"no token of {_listed(sources)} is supervised",
            "at least one label in every step",
            "check the template and data.max_length with `graft data show`: the answers may be cut off",
        )
    for p in adapter.parameters():
        p.grad = None
    sums, metrics = [], {}
    for batch in batches:
        if batch.tokens:
            loss, own = backward(base, adapter, objective, batch, tokens, arm)
            sums.append((loss, batch))
            metrics = {key: metrics.get(key, 0.0) + float(value) for key, value in own.items()}
    losses = torch.stack([loss for loss, _ in sums]).tolist()  # one synchronisation for the whole step
    norm = _norm([p.grad for p in adapter.parameters() if p.grad is not None])
    trouble = _trouble(losses, norm, adapter)
    if trouble:  # a loss names its rows; a gradient may come from any of them
        bad = [b for value, (_, b) in zip(losses, sums, strict=True) if not _finite(value)]
        sources = [source for b in bad for source in b.sources] or sources
    return Measured(sum(losses) / tokens, tokens, norm, metrics, trouble, sources)


def backward(
    base: "Base", adapter: "Adapter", objective: Objective, batch: Any, tokens: int, arm: Callable[..., None]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Add one micro-batch's share to the gradient; its summed loss and metrics."""
    batch = batch.to(base.device)
    before_pass = lambda: arm(batch.inputs.get("attention_mask"))
    losses = []
    if adapter.consistency:
        loss, metrics = consistent(objective)(base, batch, adapter.consistency, before_pass)
        losses.append(loss)
    else:
        for _ in range(adapter.passes):
            before_pass()
            loss, metrics = objective(base, batch)
            losses.append(loss)
    summed = torch.stack(losses).mean()
    share = batch.tokens / tokens
    extra = adapter.extra_loss([loss / batch.tokens for loss in losses])
    (summed / tokens if extra is None else summed / tokens + extra * share).backward()
    return summed.detach(), metrics


def preflight(base: "Base", adapter: "Adapter", objective: Objective, batch: Any) -> None:
    """A forward and backward of the longest batch whose only trace is that memory sufficed."""
    with rng.preserved():
        if batch.tokens:
            backward(base, adapter, objective, batch, batch.tokens, lambda mask: None)
    for p in adapter.parameters():
        p.grad = None


def unsound(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    return [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]


def stop(step: int, measured: Measured, lr: float, base: "Base") -> TrainingError:
    """The error for a step that is not finite; a broken base weight is named, as no learning rate will mend it."""
    broken = unsound(dict(base.model.named_parameters()))
    remedy = "look at these rows, lower train.lr or set train.on_nan=skip; the last checkpoint is untouched"
    if broken:
        remedy = f"the base itself is damaged ({_listed(broken)}): load it again from a sound source"
    numbers = f"lr {lr:.3g}, gradient norm {measured.norm:.3g}, {str(base.dtype).removeprefix('torch.')}"
    return TrainingError(
        f"step {step}: {measured.trouble} ({numbers}) in rows {_listed(measured.sources)}",
        "finite numbers; this step was not applied",
        remedy,
    )


def _norm(gradients: Sequence[torch.Tensor]) -> float:
    """The norm of all gradients together; summed in fp32 at least, where bf16 would keep two digits."""
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
    return float(torch.stack([torch.linalg.vector_norm(g, dtype=dtype) for g in gradients]).norm())


def _trouble(losses: list[float], norm: float, adapter: "Adapter") -> str:
    bad = [value for value in losses if not _finite(value)]
    if bad:
        return f"the loss is {bad[0]}"
    if not _finite(norm):
        names = unsound({name: p.grad for name, p in adapter.named_parameters() if p.grad is not None})
        return f"the gradient of {_listed(names)} is not finite" if names else "the gradient norm overflows"
    return ""


def _finite(value: float) -> bool:
    return value - value == 0.0


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
