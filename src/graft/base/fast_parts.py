"""Forwards that modules of transformers get in place of their own, where both are known to compute the same.

No model is known by name. A module qualifies by its shape (one weight and an epsilon; gate_proj, up_proj,
down_proj and act_fn; a rotation by the usual name), and its code is tried against ours on a few random
numbers, values and gradients, once for each class. What differs stays as it is.

On other devices, in mixed formats and under torch.compile a module's own forward runs.
"""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from graft.kernels import native
from graft.kernels.elementwise import ACTIVATIONS, gated, gated_reference, norm, ready, rotary

ROTATION = "apply_rotary_pos_emb"
CLOSE = 1e-5
REAL: Any = {"dtype": torch.float32, "device": "cpu"}
Forward = Callable[..., Any]


def faster_forward(module: nn.Module) -> Forward | None:
    """Return a forward (module, ...) for this module that computes the same faster; None if there is none."""
    names, kind = set(module._modules), cast(Any, type(module))
    if not names and set(module._parameters) == {"weight"} and _eps_name(module):
        plus = _norm_offset(kind, _eps_name(module))
        return None if plus is None else functools.partial(_norm_forward, _eps_name(module), plus)
    if names == {"gate_proj", "up_proj", "down_proj", "act_fn"} and not module._parameters:
        activation = _activation(module.act_fn)
        if activation is None or not _is_gated(kind):
            return None
        return functools.partial(_gated_forward, activation)
    return _with_rotation(kind) if names else None


def _norm_forward(eps: str, plus: float, module: Any, hidden_states: Tensor) -> Tensor:
    if ready(hidden_states, module.weight):
        return norm(hidden_states, module.weight, eps=getattr(module, eps), plus=plus)
    own: Tensor = type(module).forward(module, hidden_states)
    return own


def _gated_forward(activation: str, module: Any, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or not native.shaped(x):
        own: Tensor = type(module).forward(module, x)
        return own
    down: Tensor = module.down_proj(gated(module.gate_proj(x), module.up_proj(x), activation))
    return down


def _eps_name(module: nn.Module) -> str:
    return next((name for name in ("variance_epsilon", "eps") if hasattr(module, name)), "")


def _draw(*shape: int) -> Tensor:
    """Return numbers that leave torch's generator as it is."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), **REAL)


def _bare(kind: Any, **inside: Any) -> Any:
    """Return a module of a class without running its __init__."""
    module: Any = kind.__new__(kind)
    nn.Module.__init__(module)
    for name, value in inside.items():
        setattr(module, name, value)
    return module


def _same(stock: Callable[..., Any], ours: Callable[..., Any], *inputs: Tensor) -> bool:
    """Return whether two functions of these inputs agree, in values and gradients."""
    found = []
    for function in (stock, ours):
        with torch.enable_grad():
            leaves = [x.clone().requires_grad_() for x in inputs]
            try:
                out = function(*leaves)
                outs = out if isinstance(out, tuple) else (out,)
                sums = sum((o * _draw(*o.shape)).sum() for o in outs)
                found.append([*outs, *torch.autograd.grad(sums, leaves)])
            except Exception:  # code of others may want what a bare module lacks: then it stays
                return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=CLOSE, atol=CLOSE)
        for a, b in zip(*found, strict=True)
    )


@functools.cache
def _norm_offset(kind: Any, eps: str) -> float | None:
    """Return what a norm's class adds to its weight; None if it is no RMSNorm."""

    def stock(x: Tensor, weight: Tensor) -> Tensor:
        module = _bare(kind, **{eps: 1e-2})
        module.weight = nn.Parameter(weight.detach())
        module._parameters["weight"] = weight  # no leaf: its gradient is asked for
        out: Tensor = type(module).forward(module, x)
        return out

    # Rows of 1 and of 0.1: eps counts in one, and cannot hide in the other.
    x = _draw(3, 5, 24) * torch.tensor([1.0, 0.1, 3.0], **REAL)[:, None, None]
    for plus in (0.0, 1.0):
        if _same(stock, functools.partial(norm, eps=1e-2, plus=plus), x, _draw(24)):
            return plus
    return None


def _activation(act_fn: Any) -> str | None:
    """Return the activation that a module computes, by its values."""
    x = torch.cat([torch.linspace(-12, 12, 97, **REAL), torch.tensor([-40.0, 40.0], **REAL)])
    one = torch.ones_like(x)
    for name in ACTIVATIONS:
        if _same(act_fn, lambda x, name=name: gated_reference(x, one, name), x):
            return name
    return None


@functools.cache
def _is_gated(kind: Any) -> bool:
    """Return whether a class's forward is down(act(gate(x)) * up(x)), whatever its linears are."""
    sizes = {"gate_proj": (8, 12), "up_proj": (8, 12), "down_proj": (12, 8)}
    linears = {name: nn.Linear(*size, bias=False, **REAL) for name, size in sizes.items()}
    for linear in linears.values():
        linear.weight.data = _draw(*linear.weight.shape)
    module = _bare(kind, **linears, act_fn=nn.SiLU())
    return _same(
        lambda x: kind.forward(module, x),
        functools.partial(_gated_forward, "silu", module),
        _draw(5, 8),
    )


@functools.cache
def _with_rotation(kind: Any) -> Forward | None:
    """Return a class's forward with our rotation under the name that its code looks up among its globals.

    transformers lets nobody choose the rotation of one module. So the code of its forward is run as it is,
    on globals of its own; the class and its module are not touched.
    """
    forward: Any = kind.forward
    if not isinstance(forward, types.FunctionType) or hasattr(forward, "__wrapped__"):
        return None
    stock = forward.__globals__.get(ROTATION)
    if stock is None or ROTATION not in forward.__code__.co_names or forward.__closure__:
        return None
    turned = functools.partial(_rotate, stock)
    tables = _draw(2, 7, 12)
    cos, sin = tables.cos(), tables.sin()
    if not _same(
        lambda q, k: stock(q, k, cos, sin),
        lambda q, k: turned(q, k, cos, sin),
        _draw(2, 4, 7, 12),
        _draw(2, 2, 7, 12),
    ):
        return None
    known = {**forward.__globals__, ROTATION: turned}
    ours = types.FunctionType(forward.__code__, known, forward.__name__, forward.__defaults__)
    ours.__kwdefaults__ = copy.copy(forward.__kwdefaults__)
    return functools.partial(_rotating_forward, ours)


def _rotating_forward(ours: Forward, module: Any, *args: Any, **keywords: Any) -> Any:
    compiling = torch.compiler.is_compiling()
    return (type(module).forward if compiling else ours)(module, *args, **keywords)


def _rotate(stock: Forward, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **others: Any) -> Any:
    """Rotate queries and keys (B, H, T, D) by tables (B or 1, T, D), as transformers' function does."""
    usual = not rest and not others and cos.ndim == 3 and cos.shape[2] == q.shape[3] == k.shape[3]
    if usual and ready(q, k, cos, sin) and not cos.requires_grad and not q.shape[3] % 2:
        return rotary(q, cos, sin), rotary(k, cos, sin)
    return stock(q, k, cos, sin, *rest, **others)
