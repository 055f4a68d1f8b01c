"""What a block does besides products and attention, in one pass each.

    norm      (x − mean) / √(mean((x − mean)²) + ε) · (weight + plus) + bias     RMSNorm: mean = 0, no bias
    gated     act(gate) · up
    rotary    x cos + [−x₂, x₁] sin                                              x₁, x₂: the halves of a head

Sums and functions are in fp32, and results are rounded once. On a GPU the kernels are Triton's (`gpu`). Where
none can work, on fake tensors and under torch.compile, the reference of the same name does.
Zhang and Sennrich 2019, arXiv 1910.07467; Shazeer 2020, arXiv 2002.05202; Su et al. 2021, arXiv 2104.09864.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from graft.kernels import gpu, native
from graft.kernels.attention import Heads, as_rows, heads_of, like_projection
from graft.kernels.native import address

ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")


def ready(*tensors: Tensor | None) -> bool:
    """Return whether the kernels can work on these tensors of one format, outside of compiled code."""
    if torch.compiler.is_compiling() or not native.shaped(*tensors):
        return False
    return len({t.dtype for t in tensors if t is not None}) == 1


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    centred: bool = False,
    plus: float = 0.0,
) -> Tensor:
    """Return RMSNorm of x (..., n), or LayerNorm if `centred`.

    weight, bias: (n,) of x's dtype.  plus: is added to the weight; 1 in Gemma, whose weights stand around 0.
    """
    if gpu.norms(x, weight, bias):
        return gpu.norm(x, weight, bias, eps=eps, centred=centred, plus=plus)
    if not ready(x, weight, bias):
        return norm_reference(x, weight, bias, eps=eps, centred=centred, plus=plus)
    out: Tensor = _Norm.apply(x, weight, bias, eps, centred, plus)
    return out


def norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, centred: bool, plus: float
) -> Tensor:
    """Do the same by torch."""
    z = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    if centred:
        z = z - z.mean(-1, keepdim=True)
    z = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + eps) * (weight + plus)
    return (z if bias is None else z + bias).to(x.dtype)


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Return act(gate) · up.  activation: one of `ACTIVATIONS`."""
    if gate.shape == up.shape and gpu.fits(gate, up):
        return gpu.gated(gate, up, ACTIVATIONS.index(activation))
    if gate.shape != up.shape or not ready(gate, up):
        return gated_reference(gate, up, activation)
    out: Tensor = _Gated.apply(gate, up, ACTIVATIONS.index(activation))
    return out


def gated_reference(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Do the same by torch."""
    if activation.startswith("gelu"):
        return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up
    return getattr(F, activation)(gate) * up


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (B, H, T, D) turned by its positions.  cos, sin: (B or 1, T, D), D even, without gradients."""
    if x.shape[3] % 2 == 0 and gpu.fits(x) and gpu.fits(cos, sin):
        return gpu.rotary(x, cos, sin)
    if x.shape[3] % 2 or not ready(x) or not ready(cos, sin):
        return rotary_reference(x, cos, sin)
    out: Tensor = _Rotary.apply(x, cos, sin)
    return out


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Do the same by torch."""
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


class _NormCall(ctypes.Structure):
    """`graft_norm` of csrc/norm.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "bias", "y", "mean", "rate")),
        *((name, c_void_p) for name in ("dy", "dx", "dweight", "dbias")),
        ("rows", c_int64),
        ("width", c_int64),
        ("eps", c_float),
        ("plus", c_float),
        ("dtype", c_int32),
    )


def _norm_call(x: Tensor, weight: Tensor, moments: Tensor, eps: float, plus: float) -> _NormCall:
    mean = moments[1].data_ptr() if len(moments) > 1 else None
    return _NormCall(
        x.data_ptr(), weight.data_ptr(), mean=mean, rate=moments.data_ptr(), rows=moments.shape[1],
        width=len(weight), eps=eps, plus=plus, dtype=native.DTYPES[x.dtype],
    )  # fmt: skip


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool, plus: float
    ) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        width = x.shape[-1]
        y, moments = torch.empty_like(x), torch.empty(1 + centred, x.numel() // width, device="cpu")
        ctx.save_for_backward(x, weight, moments)
        ctx.settings = eps, plus
        if native.plain(y):
            call = _norm_call(x, weight, moments, eps, plus)
            call.bias, call.y = address(bias), y.data_ptr()
            native.function("norm")(ctypes.byref(call), torch.get_num_threads())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, moments = ctx.saved_tensors
        _, wanted, shifted, *_ = ctx.needs_input_grad
        dy, dx = gradients[0].contiguous(), torch.empty_like(x)
        dweight = torch.empty(len(weight), device="cpu") if wanted else None
        dbias = torch.empty(len(weight), device="cpu") if shifted else None
        if native.plain(dx):
            call = _norm_call(x, weight, moments, *ctx.settings)
            call.dy, call.dx = dy.data_ptr(), dx.data_ptr()
            call.dweight, call.dbias = address(dweight), address(dbias)
            if native.function("norm_backward")(ctypes.byref(call), torch.get_num_threads()):
                raise MemoryError(f"no memory for the gradient of {len(weight)} weights of a norm")
        sums = [None if d is None else d.to(x.dtype) for d in (dweight, dbias)]
        return dx, *sums, None, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: int) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        if native.plain(y):
            native.function("gate")(
                address(gate), address(up), address(y), c_int64(y.numel()), kind, native.DTYPES[y.dtype],
                torch.get_num_threads(),
            )  # fmt: skip
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        dy, dgate, dup = gradients[0].contiguous(), torch.empty_like(gate), torch.empty_like(up)
        if native.plain(dgate):
            native.function("gate_backward")(
                address(gate), address(up), address(dy), address(dgate), address(dup), c_int64(dy.numel()),
                ctx.kind, native.DTYPES[dy.dtype], torch.get_num_threads(),
            )  # fmt: skip
        return dgate, dup, None


class _RotaryCall(ctypes.Structure):
    """`graft_rotary` of csrc/elementwise.h."""

    _fields_ = (
        ("x", Heads),
        ("y", Heads),
        ("cos", c_void_p),
        ("sin", c_void_p),
        *((name, c_int64) for name in ("tables_batch", "batch", "heads", "length", "width")),
        ("dtype", c_int32),
        ("tables_dtype", c_int32),
        ("back", c_int32),
    )


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    batch, heads, length, width = x.shape
    x, y = as_rows(x), like_projection(batch, heads, length, width, x.dtype)
    if not native.plain(y):
        return y
    own_tables = length * width if len(cos) > 1 else 0
    call = _RotaryCall(
        heads_of(x), heads_of(y), cos.data_ptr(), sin.data_ptr(), own_tables, batch, heads, length, width,
        native.DTYPES[x.dtype], native.DTYPES[cos.dtype], back,
    )  # fmt: skip
    native.function("rotary")(ctypes.byref(call), torch.get_num_threads())
    return y


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _turn(gradients[0], *ctx.saved_tensors, back=True), None, None
