"""Experts of a mixture, whose matrices lie in one parameter (E, out, in), plain or packed one by one.

    y = Σ_k w_k · D_e φ(G_e x)        e: the k-th expert of a token, w_k its share; G_e, D_e: its matrices

transformers keeps a registry of functions that compute this. Ours wraps the one that a model has. It steps in
only where experts are packed, or where an adapter adds something between x and φ or behind D: tokens are
sorted by expert, and a packed expert is decoded for its own tokens alone, again in backward. Some models
store their matrices as (in, out); packed ones are always (out, in), as a linear's are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from graft.quant.linear import Quantise, QuantLinear
from graft.quant.scheme import Scheme

PREFIX = "graft_"
PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Order:
    """The (token, expert) pairs of one forward, sorted by expert.

    pairs: (S,) which pair of the caller's stands here; pair k·t + j is choice j of token t.
    expert: (S,) ascending.  count: number of experts.  choices: k.
    """

    pairs: Tensor
    expert: Tensor
    count: int
    choices: int

    @classmethod
    def of(cls, index: Tensor, count: int) -> "Order":
        """Sort the choices (tokens, k) of a router."""
        expert, pairs = index.reshape(-1).sort(stable=True)
        return cls(pairs, expert, count, index.shape[-1])

    @property
    def token(self) -> Tensor:
        """The token of each pair."""
        return self.pairs // self.choices

    @cached_property
    def sizes(self) -> list[int]:
        """The number of pairs of each expert; a plan without numbers shares them out evenly."""
        if isinstance(self.expert, FakeTensor):
            total = self.expert.shape[0]
            return [total // self.count + (e < total % self.count) for e in range(self.count)]
        return torch.bincount(self.expert, minlength=self.count).tolist()

    @cached_property
    def ends(self) -> Tensor:
        """The position after the last pair of each expert, int32."""
        edges = torch.arange(self.count, device=self.expert.device)
        return torch.searchsorted(self.expert.contiguous(), edges, right=True).int()

    def only(self, chosen: Tensor) -> "Order":
        """Return the pairs at these positions, which ascend."""
        return Order(self.pairs[chosen], self.expert[chosen], self.count, self.choices)


# What is added to a projection of a module's experts: (name of the projection, x (S, in), order) -> (S, out).
Correction = Callable[[str, Tensor, Order], Tensor | None]
corrections: WeakKeyDictionary[nn.Module, Correction] = WeakKeyDictionary()


class PackedExperts(nn.ModuleList):
    """The matrices of all experts, each packed (out, in) as the layer of a linear would be.

    transposed: the parameter that they replace stores (in, out).  origin: see `QuantLinear`, of all of them.
    """

    transposed = False
    origin = ""
    _is_hf_initialized = True  # transformers draws no numbers for it

    @property
    def layers(self) -> list[QuantLinear]:
        """The packed matrices, in the order of the experts."""
        return [layer for layer in self if isinstance(layer, QuantLinear)]

    @property
    def scheme(self) -> Scheme:
        """How they are packed."""
        return self.layers[0].scheme

    @property
    def shape(self) -> torch.Size:
        """The shape of the parameter that they replace."""
        count, first = len(self.layers), self.layers[0]
        rows, columns = first.out_features, first.in_features
        return torch.Size((count, columns, rows) if self.transposed else (count, rows, columns))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which they are decoded."""
        return self.layers[0].dtype

    @property
    def weight(self) -> Tensor:
        """The parameter that they replace, decoded at every call."""
        weight = torch.stack([layer.weight for layer in self.layers])
        return weight.mT.contiguous() if self.transposed else weight

    def packed_again(self, weight: Tensor) -> "PackedExperts | None":
        """Pack another parameter of this shape in the same scheme."""
        again = PackedExperts.pack(weight, self.scheme, transposed=self.transposed)
        return None if again is None else again.requires_grad_(False)

    @classmethod
    def pack(
        cls, weight: Tensor, scheme: Scheme, *, transposed: bool, quantise: Quantise | None = None
    ) -> "PackedExperts | None":
        """Quantise a parameter (E, ., .); None if it holds a NaN or an infinity."""
        matrices = weight.mT if transposed else weight
        layers = [QuantLinear.pack(matrix.contiguous(), scheme, None, quantise) for matrix in matrices]
        if any(layer is None for layer in layers):
            return None
        return cls.of(layers, transposed=transposed)

    @classmethod
    def empty(cls, shape: torch.Size, scheme: Scheme, dtype: torch.dtype, *, transposed: bool) -> Any:
        """Return layers of the right shape on the meta device, for a checkpoint to fill."""
        count, rows, columns = shape if not transposed else (shape[0], shape[2], shape[1])
        layers = [QuantLinear(columns, rows, scheme, None, dtype, "meta") for _ in range(count)]
        return cls.of(layers, transposed=transposed)

    @classmethod
    def of(cls, layers: list[Any], *, transposed: bool) -> "PackedExperts":
        """Put the layers of all experts together."""
        packed = cls(layers)
        packed.transposed = transposed
        return packed


def outer_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of every module of a model but the layers of packed experts."""
    inside = tuple(f"{name}." for name in packed_experts(model))
    yield from (pair for pair in model.named_modules() if not pair[0].startswith(inside))


def packed_experts(model: nn.Module) -> dict[str, PackedExperts]:
    """Return {path: matrices} of all packed experts of a model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedExperts)}


def is_experts(module: nn.Module) -> bool:
    """Return whether transformers runs a module through its registry of experts."""
    return hasattr(module, "_apply_gate") and hasattr(module, "is_transposed") and hasattr(module, "has_gate")


def projections(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters that hold the matrices of a module's experts."""
    if is_experts(module):
        yield from (name for name in PROJECTIONS if hasattr(module, name))


def seat(module: nn.Module, name: str, weight: nn.Parameter | PackedExperts) -> None:
    """Put a weight in the place of a module's parameter, or of packed matrices."""
    del (module._parameters if name in module._parameters else module._modules)[name]
    setattr(module, name, weight)


def whole(weight: Any) -> Tensor:
    """Return a parameter of experts, decoded if it is packed."""
    tensor: Tensor = weight.weight if isinstance(weight, PackedExperts) else weight
    return tensor


def use_ours(model: Any) -> None:
    """Let a model compute its experts by `run` where that is needed."""
    wrapped = model.get_experts_implementation()
    model.set_experts_implementation({key: _registered(name) for key, name in wrapped.items()})


def use_its_own(model: Any) -> None:
    """Undo `use_ours`, unless experts are packed."""
    if not any(isinstance(module, PackedExperts) for module in model.modules()):
        ours = model.get_experts_implementation()
        model.set_experts_implementation({k: name and name.removeprefix(PREFIX) for k, name in ours.items()})


def _registered(wrapped: str | None) -> str:
    """Register our wrapper around one implementation, once, and return its name."""
    # Late: optimizer states use this package without transformers.
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, ExpertsInterface

    name = PREFIX + (wrapped or "eager").removeprefix(PREFIX)
    if name not in ALL_EXPERTS_FUNCTIONS:

        def compute(module: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            packed = any(isinstance(getattr(module, leaf), PackedExperts) for leaf in projections(module))
            if packed or module in corrections:
                return run(module, hidden, index, weights)
            eager = type(module).forward.__wrapped__
            original = ALL_EXPERTS_FUNCTIONS.get(name.removeprefix(PREFIX), eager)
            result: Tensor = original(module, hidden, index, weights)
            return result

        ExpertsInterface.register(name, compute)
    return name


@torch.compiler.disable  # which expert gets which token is known only when numbers are
def run(module: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Return what a module of experts makes of its tokens.

    hidden: (tokens, D).  index, weights: (tokens, k), the experts of each token and their shares.
    """
    order = Order.of(index, module.num_experts)
    y = _project(module, "gate_up_proj" if module.has_gate else "up_proj", hidden[order.token], order)
    y = module._apply_gate(y) if module.has_gate else module.act_fn(y)
    y = _project(module, "down_proj", y, order)
    if module.has_post_expert_norm:
        y = module.post_expert_norm(y)
    y = y * weights.reshape(-1)[order.pairs][:, None]
    unsorted = y[order.pairs.argsort()].view(*index.shape, -1)  # no index_add: sums stay in one order
    return unsorted.sum(1).to(hidden.dtype)


def _project(module: Any, name: str, x: Tensor, order: Order) -> Tensor:
    weight = getattr(module, name)
    if isinstance(weight, Tensor) and module.is_transposed:
        weight = weight.mT
    y = grouped(x, weight, order)
    if module.has_bias:
        y = y + getattr(module, name + "_bias")[order.expert]
    correction = corrections.get(module)
    added = None if correction is None else correction(name, x, order)
    return y if added is None else y + added.to(y.dtype)


def grouped(x: Tensor, weight: Any, order: Order) -> Tensor:
    """Return x W_eᵀ, each row times the matrix of its expert.

    x: (S, in), sorted as `order` says.  weight: (E, out, in), or packed.
    """
    if isinstance(weight, Tensor):
        weight = weight.to(x.dtype)
        if _fast(x, weight):
            return F.grouped_mm(x, weight.mT, offs=order.ends)
        pieces = zip(x.split(order.sizes), weight.unbind(0), strict=True)
        return torch.cat([rows @ matrix.mT for rows, matrix in pieces])
    pieces = zip(x.split(order.sizes), weight.layers, strict=True)
    return torch.cat([layer.product(rows) for rows, layer in pieces if len(rows)] or [x.new_empty(0)])


def _fast(x: Tensor, weight: Tensor) -> bool:
    """Return whether torch's own kernel takes these: it wants rows of whole 16 bytes."""
    if not hasattr(F, "grouped_mm") or x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return False
    if isinstance(x, FakeTensor) or x.is_cuda:  # a plan's rule for shapes, and the kernel, know one dtype
        new = not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (8, 0)
        able = new and x.dtype == torch.bfloat16
    else:
        able = x.data_ptr() % 16 == weight.data_ptr() % 16 == 0  # a file that is mapped may lie askew
    aligned = all(size * x.itemsize % 16 == 0 for size in weight.shape[1:])
    return able and aligned and 1 in weight.stride()[1:] and x.is_contiguous()
