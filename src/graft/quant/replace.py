"""Decide which linears of a model are packed, and pack them in a model that is in memory.

The linears of the blocks are packed: those below an `nn.ModuleList`; and the matrices of all experts there,
if transformers runs them through its registry (`graft.quant.experts`). Left alone are the head and the
embeddings, tied weights, heads of classifiers (they lie outside the blocks), and what transformers keeps in
fp32, for example T5's `wo`, whose dtype is read in every forward.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional as F

from graft.errors import GraftError, ModelError, UsageError
from graft.quant.experts import PackedExperts, outer_modules, packed_experts, projections, seat, use_ours
from graft.quant.finite import not_finite_error
from graft.quant.linear import PACKED, Quantise, QuantLinear
from graft.quant.origin import digest_of
from graft.quant.scheme import Scheme

# What to do about a checkpoint with a NaN or an infinity.
DAMAGED = "download or convert the model again; a checkpoint saved in fp16 may have overflowed"


def is_linear(module: nn.Module) -> bool:
    """Return whether a module computes x Wᵀ + b: an nn.Linear, or a Conv1D of transformers, which stores
    (in, out).

    A subclass with a forward of its own counts if a small one of its kind gives the same values.
    """
    if is_conv1d(module):
        return True
    return isinstance(module, nn.Linear) and (
        type(module).forward is nn.Linear.forward or _computes_the_product(module)
    )


def _computes_the_product(module: nn.Linear) -> bool:
    """Return whether a subclass of nn.Linear computes x Wᵀ + b, by a copy with a weight of (4, 3)."""
    # Real numbers, wherever this runs: memory is planned with fake tensors.
    with unset_fake_temporarily(), torch.device("cpu"), torch.no_grad():
        x, weight = torch.linspace(-1, 1, 6).view(1, 2, 3), torch.linspace(-2, 3, 12).view(4, 3)
        bias = None if module.bias is None else torch.linspace(1, 2, 4)
        small = copy.copy(module)
        small._parameters = {
            "weight": nn.Parameter(weight),
            "bias": None if bias is None else nn.Parameter(bias),
        }
        small._forward_hooks, small._forward_pre_hooks = OrderedDict(), OrderedDict()
        small.in_features, small.out_features = 3, 4
        try:
            y = small(x)
        except Exception:  # somebody else's forward: what it needs is unknown
            return False
        expected = F.linear(x, weight, bias)
        return isinstance(y, torch.Tensor) and y.shape == expected.shape and torch.allclose(y, expected)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is GPT-2's linear layer."""
    return type(module).__name__ == "Conv1D"


def matrix(module: nn.Module, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Return the weight as (out, in)."""
    stored: torch.Tensor = module.get_parameter("weight") if weight is None else weight
    return stored.T if is_conv1d(module) else stored


def packed_layers(model: nn.Module) -> dict[str, QuantLinear]:
    """Return {path: layer} of every packed layer of a model, those of experts left out."""
    return {name: module for name, module in outer_modules(model) if isinstance(module, QuantLinear)}


def packable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return (path, module) of every linear of the blocks, packed ones included."""
    fp32 = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    fp32 |= set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    tied_stems = {key.rpartition(".")[0] for pair in tied.items() for key in pair}
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    lists = _lists(model)
    for name, module in outer_modules(model):
        linear = is_linear(module) or isinstance(module, QuantLinear)
        in_block = _block(name, lists) is not None
        if (
            linear
            and in_block
            and module is not head
            and name not in tied_stems
            and not fp32 & set(name.split("."))
        ):
            yield name, module


def packable_experts(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return {path: (module, name)} of the parameters that hold the matrices of experts of the blocks.

    Packed ones are included. A model that keeps them in fp32, or cannot be told how to compute them, has
    none.
    """
    if not hasattr(model, "set_experts_implementation"):
        return {}
    fp32 = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    fp32 |= set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    lists = _lists(model)
    return {
        f"{path}.{name}": (module, name)
        for path, module in model.named_modules()
        if _block(path, lists) is not None and not fp32 & set(path.split("."))
        for name in projections(module)
        if name not in fp32
    }


def blocks(model: nn.Module) -> dict[str, list[tuple[str, nn.Module]]]:
    """Return path of every block -> its linears that can be packed and are not yet."""
    lists = _lists(model)
    linears: dict[str, list[tuple[str, nn.Module]]] = {}
    for name, module in packable(model):
        if not isinstance(module, QuantLinear):
            linears.setdefault(str(_block(name, lists)), []).append((name, module))
    return linears


def unpacked_sizes(model: nn.Module) -> dict[str, int]:
    """Return {path: numbers} of the matrices in the blocks that are not packed: experts, convolutions, ..."""
    lists = _lists(model)
    return {
        name: p.numel()
        for name, p in model.named_parameters()
        if p.ndim > 1 and name.rpartition(".")[2] not in PACKED and _block(name, lists) is not None
    }


def _lists(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def _block(name: str, lists: set[str]) -> str | None:
    """Return the entry of the outermost list that a module lies in."""
    parts = name.split(".")
    return next(
        (".".join(parts[: d + 1]) for d in range(1, len(parts)) if ".".join(parts[:d]) in lists), None
    )


def quantise_model(
    model: nn.Module, scheme: str | Scheme, *, block: int = 0, double: bool = True
) -> nn.Module:
    """Pack the linears of the blocks in place, one after the other; return the model.

    Raises ModelError, naming the tensor, for a weight with a NaN or an infinity.
    """
    scheme = scheme if isinstance(scheme, Scheme) else Scheme(scheme, block, double)
    linears = [(name, module) for name, module in packable(model) if not isinstance(module, QuantLinear)]
    if not linears:
        raise UsageError(
            f"{type(model).__name__} has no linear layer left to quantise",
            "a transformer in 16 or 32 bits",
            "use quant: none",
        )
    bad = [f"{name}.weight" for name, module in linears if not replace(model, name, module, scheme)]
    bad += quantise_experts(model, scheme)
    if bad:
        raise damaged(bad)
    return model


def quantise_experts(model: nn.Module, scheme: Scheme) -> list[str]:
    """Pack the experts of the blocks in place; return the names of those that are not finite."""
    experts = packable_experts(model)
    bad = [path for path, place in experts.items() if not replace_experts(*place, scheme)]
    if experts:
        use_ours(model)
    return bad


def replace_experts(module: Any, name: str, scheme: Scheme, weight: torch.Tensor | None = None) -> bool:
    """Replace a parameter of experts by packed matrices; return False if its values are not finite.

    weight: its values, as it stores them.
    """
    held = getattr(module, name)
    if isinstance(held, PackedExperts):
        return True
    with torch.no_grad():
        values = held.detach() if weight is None else weight
        packed = PackedExperts.pack(values, scheme, transposed=module.is_transposed)
    if packed is not None:
        packed.origin = digest_of(values)
        seat(module, name, packed.train(module.training).requires_grad_(False))
    return packed is not None


def replace(
    model: nn.Module,
    name: str,
    module: Any,
    scheme: Scheme,
    weight: torch.Tensor | None = None,
    quantise: Quantise | None = None,
) -> bool:
    """Replace `module` by a packed layer; return False if its values are not finite.

    weight: its values, as it stores them.  quantise: chooses the codes; None: the scheme does.
    """
    with torch.no_grad():
        layer = QuantLinear.pack(matrix(module, weight).detach(), scheme, module.bias, quantise)
    if layer is not None:
        layer.origin = digest_of(module.weight if weight is None else weight)
        layer.transposed = is_conv1d(module)
        model.set_submodule(name, layer.train(module.training).requires_grad_(False))
    return layer is not None


def unpacked(layer: QuantLinear, weight: torch.Tensor | None = None) -> nn.Module:
    """Return the plain layer to put in the place of a packed one: nn.Linear, or Conv1D if it was one.

    weight: (out, in); by default the values that the codes stand for.
    """
    weight = layer.weight if weight is None else weight
    if layer.transposed:
        # Late: optimizer states use this package without transformers.
        from transformers.pytorch_utils import Conv1D

        plain: Any = Conv1D(0, 0)
        plain.nf, plain.nx = layer.out_features, layer.in_features
        weight = weight.T.contiguous()
    else:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)


def dequantise_model(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Make every packed layer plain again, in place; return the model.

    dtype: of the weights; None: the layer's.
    """
    for name, layer in packed_layers(model).items():
        model.set_submodule(name, unpacked(layer, None if dtype is None else layer.weight.to(dtype)))
    for name, experts in packed_experts(model).items():
        path, _, leaf = name.rpartition(".")
        weight = experts.weight if dtype is None else experts.weight.to(dtype)
        seat(model.get_submodule(path), leaf, nn.Parameter(weight, requires_grad=False))
    return model


def damaged(names: list[str]) -> GraftError:
    """Return the error for weights of a checkpoint that hold a NaN or an infinity."""
    return not_finite_error(names, ModelError, DAMAGED)


def outline(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return {path: {block, double}} of every packed layer; experts of one parameter are one layer."""
    layers: list[tuple[str, Any]] = [*packed_layers(model).items(), *packed_experts(model).items()]
    schemes = {name: layer.scheme for name, layer in layers}
    return {name: {"block": scheme.block, "double": scheme.double} for name, scheme in schemes.items()}
