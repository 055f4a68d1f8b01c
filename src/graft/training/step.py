"""One optimizer step's gradient: the mean loss over all its supervised tokens, in any cut into micro-batches.

    L = Σ_micro Σ_tokens loss / N        N supervised tokens of the WHOLE step

Dividing each micro-batch by its own count would weigh a token by how short its neighbours are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graft.errors import TrainingError, listed
from graft.kernels.optimizer import gradient_norm
from graft.objectives import consistent
from graft.objectives.sums import add, numbers
from graft.quant.finite import not_finite
from graft.training import rng

if TYPE_CHECKING:
    from graft.base.base import Base
    from graft.training.together import Trained

Objective = Callable[
    [Any, Any], tuple[torch.Tensor, dict[str, float]]
]  # (base, batch) -> sum over tokens, metrics
SHOWN = 8  # rows and tensors that an error names


@dataclass
class Measured:
    """A step before it is applied.

    loss: per supervised token.  norm: of the whole gradient.  metrics: of the objective, added up.
    trouble: what is not finite, "" if nothing.
    sources: the rows of the step, or those to which the trouble can be traced.
    """

    loss: float
    tokens: int
    norm: float
    metrics: dict[str, Any]
    trouble: str
    sources: list[str]


def measure(
    base: "Base", adapter: "Trained", objective: Objective, batches: Sequence[Any], arm: Callable[..., None]
) -> Measured:
    """Compute the gradient of one optimizer step and leave it in `.grad` of the adapter's parameters.

    batches: the step's micro-batches.  arm: called with the attention mask before each forward (`neftune`).
    Raises TrainingError if no token is supervised.
    """
    tokens = sum(batch.tokens for batch in batches)
    sources = [source for batch in batches for source in batch.sources]
    if not tokens:
        raise TrainingError(
            f"no token of {listed(sources, SHOWN)} is supervised",
            "at least one label in every step",
            "check the template and data.max_length with `graft data show`: the answers may be cut off",
        )
    clear_gradients(adapter)
    summed: list[tuple[torch.Tensor, Any]] = []
    sums: dict[str, Any] = {}
    for batch in batches:
        if batch.tokens:
            loss, batch_metrics = backward(base, adapter, objective, batch, tokens, arm)
            summed.append((loss, batch))
            add(sums, batch_metrics)
    losses = torch.stack([loss for loss, _ in summed]).tolist()  # one synchronisation for the whole step
    norm = gradient_norm([p.grad for p in adapter.parameters() if p.grad is not None])
    trouble = _trouble(losses, norm, adapter)
    if trouble:  # a loss names its rows; a gradient may come from any of them
        bad = [batch for value, (_, batch) in zip(losses, summed, strict=True) if not math.isfinite(value)]
        sources = [source for batch in bad for source in batch.sources] or sources
    return Measured(sum(losses) / tokens, tokens, norm, numbers(sums), trouble, sources)


def backward(
    base: "Base", adapter: "Trained", objective: Objective, batch: Any, tokens: int, arm: Callable[..., None]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Add one micro-batch's share to the gradient; return its summed loss and its metrics.

    tokens: supervised tokens of the whole step.
    """
    batch = batch.to(base.device)

    def before_pass() -> None:
        arm(batch.inputs.get("attention_mask"))

    losses: list[torch.Tensor] = []
    if adapter.consistency:
        loss, metrics = consistent(objective)(base, batch, adapter.consistency, before_pass)
        losses.append(loss)
    else:
        for _ in range(adapter.passes):
            before_pass()
            loss, metrics = objective(base, batch)
            losses.append(loss)
    summed = torch.stack(losses).mean()
    total = summed / tokens
    extra = adapter.extra_loss([loss / batch.tokens for loss in losses])
    if extra is not None:
        total = total + extra * (batch.tokens / tokens)
    total.backward()
    return summed.detach(), metrics


def preflight(base: "Base", adapter: "Trained", objective: Objective, batch: Any) -> None:
    """Run forward and backward once, to learn whether memory suffices for this batch; leave no trace."""
    with rng.preserved():
        if batch.tokens:
            backward(base, adapter, objective, batch, batch.tokens, no_noise)
    clear_gradients(adapter)


def no_noise(mask: torch.Tensor | None) -> None:
    """Do nothing before a forward: the `arm` of a step without noise."""


def clear_gradients(adapter: "Trained") -> None:
    """Free the gradients of the adapter's parameters."""
    for p in adapter.parameters():
        p.grad = None


def not_finite_error(step: int, measured: Measured, lr: float, base: "Base") -> TrainingError:
    """Return the error for a step that is not finite.

    If a weight of the base is not finite, the error names it, because no learning rate would help.
    """
    broken = not_finite(base.model.named_parameters())
    remedy = "look at these rows, lower train.lr or set train.on_nan=skip; the last checkpoint is untouched"
    if broken:
        names = listed(broken, SHOWN)
        remedy = f"load the base again from a sound source: its own weights are damaged ({names})"
    numbers = f"lr {lr:.3g}, gradient norm {measured.norm:.3g}, {str(base.dtype).removeprefix('torch.')}"
    return TrainingError(
        f"step {step}: {measured.trouble} ({numbers}) in rows {listed(measured.sources, SHOWN)}",
        "finite numbers; this step was not applied",
        remedy,
    )


def _trouble(losses: list[float], norm: float, adapter: "Trained") -> str:
    """Return what is not finite, in words; "" if everything is finite."""
    bad = [value for value in losses if not math.isfinite(value)]
    if bad:
        return f"the loss is {bad[0]}"
    if not math.isfinite(norm):
        gradients = [(name, p.grad) for name, p in adapter.named_parameters() if p.grad is not None]
        names = not_finite(gradients)
        if names:
            return f"the gradient of {listed(names, SHOWN)} is not finite"
        return "the gradient norm overflows"
    return ""
