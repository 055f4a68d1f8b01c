"""The plain linears of a model, multiplied by the kernels where that pays.

It pays for 16-bit numbers on a processor that has no instructions for their products, and where an adapter
adds a low-rank update: both are then one product (`native.plain_by_torch`). The rest goes to torch, as does
everything that is traced, and trained weights in formats that torch multiplies faster.
Each linear gets a `forward` of its own; its class, its tensors and its hooks stay as they are.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graft.core.insert import LowRankForm
from graft.kernels import native
from graft.kernels.low_rank import low_rank


class Linears:
    """All `nn.Linear` of one model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def put_on(self) -> None:
        """Let the kernels multiply."""
        for module in self._model.modules():
            if type(module) is nn.Linear and "forward" not in module.__dict__:
                module.beside = None  # type: ignore[assignment]  # set by the hooks; see QuantLinear
                module.forward = functools.partial(_forward, module)  # type: ignore[method-assign]

    def take_off(self) -> None:
        """Put back the linears' own forward."""
        for module in self._model.modules():
            if is_on(module):
                del module.forward, module.beside


def is_on(module: nn.Module) -> bool:
    """Return whether a module's `forward` is the one that is put on here."""
    return getattr(module.__dict__.get("forward"), "func", None) is _forward


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = module.weight, module.bias
    plain = weight.is_contiguous() and weight.dtype == x.dtype and not torch.compiler.is_compiling()
    if not plain or not native.shaped(x, weight, bias):
        return F.linear(x, weight, bias)
    beside: Callable[[Tensor], LowRankForm | None] | None = module.beside  # type: ignore[assignment]
    added = None if beside is None or weight.requires_grad else beside(x)
    if added is not None:
        return low_rank(x, [weight], _first, bias, added)
    trained = weight.requires_grad and (x.dtype == torch.float32 or native.by_torch(x.dtype))
    if trained or native.plain_by_torch(x, weight) or not native.plain(x):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


def _first(tensors: list[Tensor]) -> Tensor:
    return tensors[0]


class _Linear(torch.autograd.Function):
    """x Wᵀ + b in x's dtype, summed in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = native.rows(x)
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        y = torch.empty(*x.shape[:-1], len(weight), dtype=x.dtype, device="cpu")
        fp32 = None if bias is None else bias.float()
        native.product([native.term(rows, native.weight(weight))], native.rows(y), fp32)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        wide = native.rows(dy)
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty(*dy.shape[:-1], weight.shape[1], dtype=dy.dtype, device="cpu")
            native.product([native.term(wide, native.weight(weight), across=True)], native.rows(dx))
        if ctx.needs_input_grad[1]:
            dweight = torch.empty_like(weight)
            native.product([native.term(wide.T, native.weight(rows), across=True)], dweight)
        return dx, dweight, wide.sum(0) if ctx.needs_input_grad[2] else None
