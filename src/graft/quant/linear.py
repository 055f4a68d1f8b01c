"""QuantLinear: a frozen linear layer whose weight is packed in 2 to 8 bits.

    y = x Ŵᵀ + b        dx = dy Ŵ        Ŵ = dequantise(codes, constants), in x's dtype

Forward keeps neither x nor Ŵ for backward; backward dequantises again, and there is no dW. The tensors are
plain frozen parameters laid out by rows, so they shard, save and move like any others, and an insert never
sees a difference. Dettmers et al. 2023, arXiv 2305.14314, section 3.
"""

from collections.abc import Callable
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn

from graft import kernels
from graft.kernels import Grouped, Nested, Packed
from graft.kernels.low_rank import low_rank
from graft.quant.dynamic import SIGNED
from graft.quant.scheme import CODEBOOKS, GROUPED, Scheme

Quantise = Callable[[Tensor], dict[str, Tensor] | None]
PACKED = ("codes", "absmax", "nested_absmax", "nested_offset", "scale", "minimum")


def _packed(tensors: list[Tensor], scheme: str, block: int, columns: int) -> Packed | Grouped:
    if scheme in GROUPED:
        return Grouped(tensors[0], tensors[1], tensors[2], GROUPED[scheme], block, columns)
    nested = Nested(tensors[2], tensors[3], SIGNED) if len(tensors) == 4 else None
    return Packed(tensors[0], tensors[1], CODEBOOKS[scheme], block, columns, nested)


def _kernel(operation: str, scheme: str, device_type: str) -> kernels.Kernel:
    return kernels.find(operation + "_groups" if scheme in GROUPED else operation, device_type)


def _forward(x: Tensor, weight: list[Tensor], bias: Tensor | None, scheme: str, block: int) -> Tensor:
    return _kernel("linear", scheme, x.device.type)(x, _packed(weight, scheme, block, x.shape[-1]), bias)


def _backward(dy: Tensor, weight: list[Tensor], scheme: str, block: int, columns: int) -> Tensor:
    return _kernel("linear_backward", scheme, dy.device.type)(dy, _packed(weight, scheme, block, columns))


# For torch.compile each product is one opaque operation. If dequantising were visible, the compiler would
# find it in forward and backward, do it once, and keep every Ŵ of the model alive in between.
_forward_op = torch.library.custom_op("graft::linear", _forward, mutates_args=())
_backward_op = torch.library.custom_op("graft::linear_backward", _backward, mutates_args=())
_forward_op.register_fake(lambda x, weight, *_: x.new_empty(*x.shape[:-1], weight[0].shape[0]))
_backward_op.register_fake(lambda dy, weight, scheme, block, columns: dy.new_empty(*dy.shape[:-1], columns))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, scheme: str, block: int, *weight: Tensor) -> Tensor:
        ctx.save_for_backward(*weight)
        ctx.statics = scheme, block, x.shape[-1]
        product = _forward_op if torch.compiler.is_compiling() else _forward
        return product(x, list(weight), bias, scheme, block)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        product = _backward_op if torch.compiler.is_compiling() else _backward
        weight = ctx.saved_tensors  # once: under checkpointing a second look is an error
        dx = product(dy, list(weight), *ctx.statics) if ctx.needs_input_grad[0] else None
        dbias = dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return dx, dbias, None, None, *([None] * len(weight))


class QuantLinear(nn.Module):
    """A linear layer (in_features -> out_features) with a packed weight; see `Scheme.shapes` for its tensors.

    dtype: of `weight`; products follow x.
    transposed: it replaces a Conv1D, which stores (in, out).
    origin: what tells the weight that it was made from (`graft.quant.origin`); "" where nobody knows.
    """

    origin = ""
    codes: Tensor
    scale: Tensor  # of groups, as is minimum
    minimum: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scheme: Scheme,
        bias: nn.Parameter | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.scheme = scheme
        self.dtype = dtype
        self.transposed = False
        # What an adapter adds to the product while a forward runs, as (A, B, s); set by the hooks of a base.
        self.beside: Callable[[Tensor], tuple[Tensor, Tensor, float] | None] | None = None
        for name, (shape, kind) in scheme.shapes(out_features, in_features).items():
            setattr(
                self, name, nn.Parameter(torch.empty(shape, dtype=kind, device=device), requires_grad=False)
            )
        self.register_parameter("bias", bias)

    @classmethod
    def pack(
        cls,
        weight: Tensor,
        scheme: Scheme,
        bias: nn.Parameter | None = None,
        quantise: Quantise | None = None,
    ) -> Self | None:
        """Quantise weight (out, in), by `quantise` or as the scheme does.

        Returns None if the weight holds a NaN or an infinity.
        """
        tensors = (quantise or scheme.quantise)(weight)
        if tensors is None:
            return None
        layer = cls(weight.shape[1], weight.shape[0], scheme, bias, weight.dtype, device="meta")
        layer.fill(tensors)
        return layer

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Replace the packed tensors by these, as they are."""
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))

    def packed(self) -> dict[str, Tensor]:
        """Return the packed tensors by name."""
        return {name: tensor for name in PACKED if (tensor := self._parameters.get(name)) is not None}

    def described(self) -> Packed | Grouped:
        """Return the packed weight in the form that kernels take."""
        return _packed(list(self.packed().values()), self.scheme.name, self.scheme.block, self.in_features)

    @property
    def weight(self) -> Tensor:
        """Return the values the codes stand for, (out, in), computed anew in `dtype` at every call."""
        return _kernel("dequantise", self.scheme.name, self.codes.device.type)(self.described(), self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        added = None if self.beside is None or torch.compiler.is_compiling() else self.beside(x)
        if added is None:
            return self.product(x, bias)
        columns = x.shape[-1]
        weight = list(self.packed().values())
        return low_rank(
            x, weight, lambda t: _packed(t, self.scheme.name, self.scheme.block, columns), bias, added
        )

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x Ŵᵀ, plus b if given: for inserts that need the weight's product with another input."""
        product: Tensor = _Linear.apply(x, bias, self.scheme.name, self.scheme.block, *self.packed().values())
        return product

    def extra_repr(self) -> str:
        bias = self.bias is not None
        scheme = f"{self.scheme.name}, block={self.scheme.block}"
        return f"{self.in_features}, {self.out_features}, {scheme}, bias={bias}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move packed tensors between devices without changing their dtype: `.to(bf16)` would ruin them."""
        held = {id(tensor) for tensor in self.packed().values()}
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype

        def keeping_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in held and moved.dtype != tensor.dtype else moved

        return super()._apply(keeping_dtype, recurse)


def is_packed(module: Any) -> TypeGuard[QuantLinear]:
    """Return whether a module holds its weight packed."""
    return isinstance(module, QuantLinear)
