"""Stage 1 of intrinsic prompt tuning: the subspace in which the prompts of many tasks lie.

    z_i = W_e vec(P_i) + b_e        P̂_i = W₂ tanh(W₁z_i + b₁) + b₂
    minimise Σ_i ‖P̂_i − P_i‖²/‖P_i − P̄‖² + L_i(P̂_i)    L_i: loss of task i under a prompt; P̄: mean prompt

Qin et al. 2021 (2110.07867). Differs: the prompts are centred and scaled to unit size first, and each task's
distance is divided by its own distance from the mean, so that no task dominates; W₂ and b₂ in the file undo
both.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from graft.core.part import Seat
from graft.errors import UsageError
from graft.layers.soft_prompt import KEY, check_sizes


class Holder(Protocol):
    """An adapter, or a part of one: its (site, insert) pairs, one of which holds a prompt."""

    @property
    def inserts(self) -> list[Seat]: ...


def find_subspace(
    prompts: Sequence[torch.Tensor | Holder],
    path: str | Path,
    intrinsic_dim: int = 250,
    *,
    hidden_size: int = 768,
    steps: int = 1000,
    lr: float = 1e-3,
    task_loss: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    seed: int = 0,
) -> float:
    """Train the auto-encoder on prompts of several tasks, and write its decoder.

    prompts: tensors (p, d) of one shape, or adapters that hold one each.  path: of the file to write.
    task_loss: (number of the task, its decoded prompt (p, d)) -> loss of that task; None: distances alone
    count.
    Returns the share of the prompts' variance that the subspace does not hold; 0 is perfect.
    """
    check_sizes(intrinsic_dim=intrinsic_dim, hidden_size=hidden_size)
    stack = torch.stack(_tensors(prompts))
    mean = stack.mean(0)
    size = (stack - mean).std().clamp(min=1e-8)
    X = ((stack - mean) / size).flatten(1)
    spread = X.square().sum(1).clamp(min=1e-8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        coder = AutoEncoder(X.shape[1], intrinsic_dim, hidden_size).to(X.device)
    optimizer = torch.optim.Adam(coder.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        decoded = coder(X)
        loss = ((decoded - X).square().sum(1) / spread).mean()
        if task_loss is not None:
            decoded_prompts = decoded.view_as(stack) * size + mean
            losses = [task_loss(i, prompt) for i, prompt in enumerate(decoded_prompts)]
            loss = loss + torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        missed = float((coder(X) - X).square().sum() / spread.sum())
    _write(coder, size, mean, Path(path))
    return missed


class AutoEncoder(nn.Module):
    """Encodes vectors of `width` numbers by one layer, and decodes them by two.

    Its inputs are centred, so the encoder's bias is the z of their mean.
    """

    def __init__(self, width: int, intrinsic_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.encode = nn.Linear(width, intrinsic_dim)
        self.decode = nn.Sequential(
            nn.Linear(intrinsic_dim, hidden_size), nn.Tanh(), nn.Linear(hidden_size, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.decode(self.encode(x))
        return decoded


def _write(coder: AutoEncoder, size: torch.Tensor, mean: torch.Tensor, path: Path) -> None:
    """Write the decoder of prompts in their own scale, and the z at which a new task starts."""
    first: Any = coder.decode[0]
    last: Any = coder.decode[2]
    b2 = last.bias.view_as(mean) * size + mean
    decoder = {
        "W1": first.weight,
        "b1": first.bias,
        "W2": last.weight * size,
        "b2": b2,
        "z": coder.encode.bias,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in decoder.items()}, path)


def _tensors(prompts: Sequence[torch.Tensor | Holder]) -> list[torch.Tensor]:
    """Return every prompt as a tensor (p, d) in fp32.

    Raises UsageError for too few, or for different shapes.
    """
    tables = [p if isinstance(p, torch.Tensor) else _held(p) for p in prompts]
    shapes = sorted({tuple(p.shape) for p in tables})
    if len(tables) < 2 or len(shapes) != 1 or tables[0].ndim != 2:
        raise UsageError(
            f"{len(tables)} prompts of the shapes {', '.join(map(str, shapes)) or 'none'}",
            "at least two prompts (p, d) of one shape, trained on the same model",
            "train each with the method `prompt` and the same num_virtual_tokens",
        )
    return [p.detach().float() for p in tables]


def _held(holder: Holder) -> torch.Tensor:
    """Return the prompt that an adapter holds, or an empty tensor."""
    return next((i.saved()[KEY] for _, i in holder.inserts if KEY in i.saved()), torch.empty(0))
