"""The operations of `graft.kernels` on a CUDA device: Triton's kernels, bitsandbytes' where it has the same.

    linear, few rows of x     a product that decodes in registers
    linear, many rows         decode into a workspace that is used again, then torch's product
    norm, gated, rotary       a block's other parts in one pass each, forward and backward
    token_logprobs            a chunk of logits that becomes its gradient
    adamw                     a tensor's update in one pass

Triton is imported at the first call. Without it, on fake tensors and for layouts that the kernels do not
know, torch's references do the work. With TRITON_INTERPRET=1 in the environment Triton interprets the kernels
on tensors of the processor; the tests do that.
"""

import functools
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.kernels import bitsandbytes_cuda, groups, reference
from graft.kernels.packed import Codebook, Grouped, Packed

__all__ = [
    "dequantise",
    "dequantise_groups",
    "linear",
    "linear_backward",
    "linear_backward_groups",
    "linear_groups",
]

Given = ParamSpec("Given")
Result = TypeVar("Result")
# The kind of device whose tensors the kernels take.
SERVES = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 8192  # columns of a norm, which a program holds in its registers
FEW = 16  # rows of x that a product decodes for: see `triton_packed.MOST_ROWS`
_workspaces: dict[tuple[torch.device, int], Tensor] = {}


def installed() -> bool:
    """Return whether Triton can be found, without importing it."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def working() -> bool:
    """Return whether Triton can be imported: one that does not fit the driver or Python may fail."""
    try:
        import triton  # noqa: F401
    except Exception:  # whatever a broken installation raises, torch's references still work
        return False
    return True


def usable(*tensors: Tensor | None) -> bool:
    """Return whether Triton's kernels can work on these: real tensors of a device that they serve."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != SERVES or type(tensor) not in (Tensor, torch.nn.Parameter):
            return False
    return working()


def fits(first: Tensor, *others: Tensor | None) -> bool:
    """Return whether the kernels of a block's parts can work on these tensors of one format."""
    if first.device.type != SERVES or first.dtype not in DTYPES or torch.compiler.is_compiling():
        return False
    return all(t is None or t.dtype == first.dtype for t in others) and usable(first, *others)


def norms(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether `norm` can work on these."""
    return 0 < x.shape[-1] <= WIDEST and fits(x, weight, bias)


def _on_its_device(kernel: Callable[Given, Result]) -> Callable[Given, Result]:
    """Run a kernel on the device of its first tensor, which need not be the current one."""

    @functools.wraps(kernel)
    def run(*given: Given.args, **words: Given.kwargs) -> Result:
        first: Any = given[0]
        with torch.cuda.device_of(first if isinstance(first, Tensor) else first.codes):
            return kernel(*given, **words)

    return run


def _decodes(weight: Packed | Grouped, dtype: torch.dtype) -> bool:
    if dtype not in DTYPES or not usable(*(t for t in weight if isinstance(t, Tensor))):
        return False
    from graft.kernels import triton_packed

    return triton_packed.decodes(weight)


@_on_its_device
def _values(weight: Packed | Grouped, out: Tensor) -> Tensor:
    if isinstance(weight, Packed) and bitsandbytes_cuda.dequantise(weight, out):
        return out
    from graft.kernels import triton_packed

    return triton_packed.dequantise(weight, out)


def dequantise(weight: Packed, dtype: torch.dtype) -> Tensor:
    if not _decodes(weight, dtype):
        return reference.dequantise(weight, dtype)
    return _values(weight, _fresh(weight, dtype))


def dequantise_groups(weight: Grouped, dtype: torch.dtype) -> Tensor:
    if not _decodes(weight, dtype):
        return groups.dequantise_groups(weight, dtype)
    return _values(weight, _fresh(weight, dtype))


def linear(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    ready = usable(x, bias) and _decodes(weight, x.dtype)
    return _linear(x, weight, bias) if ready else reference.linear(x, weight, bias)


def linear_groups(x: Tensor, weight: Grouped, bias: Tensor | None) -> Tensor:
    ready = usable(x, bias) and _decodes(weight, x.dtype)
    return _linear(x, weight, bias) if ready else groups.linear_groups(x, weight, bias)


def linear_backward(dy: Tensor, weight: Packed) -> Tensor:
    ready = usable(dy) and _decodes(weight, dy.dtype)
    return _backward(dy, weight) if ready else reference.linear_backward(dy, weight)


def linear_backward_groups(dy: Tensor, weight: Grouped) -> Tensor:
    ready = usable(dy) and _decodes(weight, dy.dtype)
    return _backward(dy, weight) if ready else groups.linear_backward_groups(dy, weight)


def _fresh(weight: Packed | Grouped, dtype: torch.dtype) -> Tensor:
    return torch.empty(len(weight.codes), weight.columns, dtype=dtype, device=weight.codes.device)


def _scratch(x: Tensor, weight: Packed | Grouped) -> Tensor:
    """Return memory for a weight's values in x's dtype, in the workspace of the current stream."""
    wanted_for_gradient = torch.is_grad_enabled() and x.requires_grad  # torch keeps them till backward
    if wanted_for_gradient or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return _fresh(weight, x.dtype)  # a graph has memory of its own, and runs on other streams
    rows, columns = len(weight.codes), weight.columns
    needed = rows * columns * x.element_size()
    key = x.device, torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
    held = _workspaces.get(key)
    if held is None or held.numel() < needed:
        _workspaces.pop(key, None)
        del held  # so that its memory can be part of the larger one
        held = _workspaces[key] = torch.empty(needed, dtype=torch.uint8, device=x.device)
    return held[:needed].view(x.dtype).view(rows, columns)


def free_workspaces() -> None:
    """Give the memory of all workspaces back to torch."""
    _workspaces.clear()


@_on_its_device
def _linear(x: Tensor, weight: Packed | Grouped, bias: Tensor | None) -> Tensor:
    many = math.prod(x.shape[:-1])
    most = 1 if x.dtype == torch.float32 else FEW  # Triton's own products of fp32 are slow
    few = 0 < many <= most and not (torch.is_grad_enabled() and x.requires_grad) and len(weight.codes) > 0
    if not few:
        return F.linear(x, _values(weight, _scratch(x, weight)), bias)
    rows = x.reshape(many, x.shape[-1]).contiguous()
    out = bitsandbytes_cuda.product(rows, weight, bias) if isinstance(weight, Packed) else None
    if out is None:
        from graft.kernels import triton_packed

        if not triton_packed.multiplies(weight):
            return F.linear(x, _values(weight, _scratch(x, weight)), bias)
        out = triton_packed.product(rows, weight, bias)
    return out.view(*x.shape[:-1], len(weight.codes))


def _backward(dy: Tensor, weight: Packed | Grouped) -> Tensor:
    return dy @ _values(weight, _scratch(dy, weight))


@_on_its_device
def norm(x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, centred: bool, plus: float) -> Tensor:
    """Return RMSNorm of x (..., n), or LayerNorm if `centred`: see `norms`.

    weight, bias: (n,).  plus: is added to the weight.
    """
    from graft.kernels import triton_blocks

    return triton_blocks.norm(x, weight, bias, eps=eps, centred=centred, plus=plus)


@_on_its_device
def gated(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    """Return act(gate) · up, of one shape, that `fits`.  kind: an index of `elementwise.ACTIVATIONS`."""
    from graft.kernels import triton_blocks

    return triton_blocks.gated(gate, up, kind)


@_on_its_device
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (B, H, T, D) turned by its positions, D even; x fits, and cos and sin (B or 1, T, D) do."""
    from graft.kernels import triton_blocks

    return triton_blocks.rotary(x, cos, sin)


@_on_its_device
def token_logprobs(
    logits: Tensor, labels: Tensor, logprobs: Tensor, hits: Tensor, *, scale: float, cap: float, wanted: bool
) -> None:
    """Write what labels score, and the gradient over the logits if it is `wanted`: see `triton_loss`."""
    from graft.kernels import triton_loss

    triton_loss.token_logprobs(logits, labels, logprobs, hits, scale=scale, cap=cap, wanted=wanted)


@_on_its_device
def adamw(
    parameter: Tensor,
    gradient: Tensor,
    state: Mapping[str, Tensor],
    step: int,
    rates: tuple[float, float],
    betas: tuple[float, float],
    eps: float,
    clip: float,
    maps: tuple[Codebook, Codebook],
) -> None:
    """Update a parameter and its state in place: see `triton_optimizer`."""
    from graft.kernels import triton_optimizer

    triton_optimizer.adamw(parameter, gradient, state, step, rates, betas, eps, clip, maps)
