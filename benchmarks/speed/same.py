"""What all sides of a row do alike: rows, rates, and the parameters of an optimizer's row."""

from typing import Any

import torch
import weights
from shapes import Shape

RATE = 1e-3
ROWS = 4  # different rows; they come again and again, so that the loss can fall
SAMPLED = 64  # values of a parameter that are compared


def rate(spec: dict[str, Any]) -> float:
    """Return the learning rate: all weights move less than an adapter's."""
    return RATE / 10 if spec["method"] == "full" else RATE


def parameters(shape: Shape, layers: int) -> dict[str, torch.nn.Parameter]:
    """Return the linears of some blocks as trained parameters with gradients, equal in every process."""
    generator = torch.Generator().manual_seed(3)
    named = {}
    for layer in range(layers):
        for name, size in shape.block().items():
            value = torch.nn.Parameter(torch.randn(size, generator=generator) * weights.STD)
            value.grad = torch.randn(size, generator=generator) * 1e-3
            named[f"{layer}.{name}"] = value
    return named


def count(named: dict[str, torch.nn.Parameter]) -> int:
    """Return how many values the parameters have."""
    return sum(p.numel() for p in named.values())


def sample(named: dict[str, torch.nn.Parameter]) -> torch.Tensor:
    """Return some values of every parameter."""
    flat = [p.detach().flatten() for p in named.values()]
    return torch.cat([values[:: max(len(values) // SAMPLED, 1)][:SAMPLED].clone() for values in flat])
