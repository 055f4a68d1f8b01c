"""Inserts that serve many methods: a trained bias, a trained copy of a module, a module trained in place."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from graft.core.insert import InPlace, Insert, Weights
from graft.core.site import Site
from graft.layers.tied import TiedReplacement
from graft.quant import is_packed


class Shift(Insert):
    """y + (b' − b): a trained bias b' instead of the base's b, which counts as zero if there is none.

    b' itself is trained and saved, as PEFT does, so that a loaded bias equals the saved one bit for bit.
    """

    origin: torch.Tensor

    def __init__(self, site: Site, suffix: str = "bias") -> None:
        super().__init__()
        bias = site.bias()
        origin = torch.zeros(site.out_features) if bias is None else bias.detach().float().clone()
        self.suffix = suffix
        self.register_buffer("origin", origin, persistent=False)
        self.bias = nn.Parameter(origin.clone())

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + (self.bias - self.origin).to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        shift = (self.bias - self.origin).detach()
        return weight, shift if bias is None else bias + shift

    def merge_groups(self, minimum: torch.Tensor, bias: torch.Tensor | None, block: int) -> Weights | None:
        return self.merge(minimum, bias)

    def saved(self) -> dict[str, torch.Tensor]:
        return {self.suffix: self.bias.detach()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.bias.copy_(tensors[self.suffix])


class Replacement(Insert):
    """A trained copy of one parameter-owning module (`modules_to_save`): y is what the copy makes of x."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.copy: Any = without_hooks(site.module)
        self.transposed = site.transposed
        for name, tensor in (("weight", site.module.weight), ("bias", site.bias())):
            if tensor is not None:
                setattr(self.copy, name, nn.Parameter(tensor.detach().float().clone()))
        self.copy.requires_grad_(True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        cast = {name: p.to(y.dtype) for name, p in self.copy.named_parameters()}
        replaced: torch.Tensor = torch.func.functional_call(self.copy, cast, (x,))
        return replaced

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        trained = self.copy.weight.detach()
        return (trained.T if self.transposed else trained), None if bias is None else self.copy.bias.detach()

    def saved(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.copy.named_parameters()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.copy.named_parameters():
                p.copy_(tensors[name])

    def follower(self, head: Site) -> Insert:
        """Return what a head gets that is tied to the table which this replaces."""
        return TiedReplacement(head, self)


class Thaw(InPlace):
    """Trained copies of a module's own parameters, in the base's dtype. In use, the module has them.

    shared: {identity of an original: the copy made of it so far}. A tied tensor is owned, and saved, by the
    first of its modules; the others borrow it.
    """

    def __init__(self, site: Site, shared: dict[int, nn.Parameter]) -> None:
        super().__init__()
        self._borrowed: dict[str, nn.Parameter] = {}
        for name, parameter in site.module.named_parameters(recurse=False):
            if id(parameter) in shared:
                self._borrowed[name] = shared[id(parameter)]
            else:
                shared[id(parameter)] = nn.Parameter(parameter.detach().clone())
                self.register_parameter(name, shared[id(parameter)])

    def swap(self) -> dict[str, nn.Parameter]:
        return {**self._borrowed, **dict(self.named_parameters(recurse=False))}


def without_hooks(module: Any) -> Any:
    """Return a shallow copy that shares nothing mutable with `module`, and has its class's own forward.

    A packed linear becomes a plain one.
    """
    if is_packed(module):
        bias = module.bias is not None
        return nn.Linear(module.in_features, module.out_features, bias=bias, device="meta")
    clone = copy.copy(module)
    clone._parameters = dict(module._parameters)
    clone._buffers = dict(module._buffers)
    clone._modules = {}
    clone._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(clone, hooks, OrderedDict())
    for own in ("forward", "beside"):  # a faster forward is bound to the module whose weights it reads
        vars(clone).pop(own, None)
    return clone
