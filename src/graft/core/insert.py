"""Insert: what an adapter puts at one site.

An insert sees what entered the site (x) and what left it (y) and returns what shall leave; one that must act before the
site computes overrides `enter`. Laws: the result has y's shape and dtype; trained tensors are fp32 and cast to x's
dtype for the product; random choices come from torch's generator; nothing is kept on the module between two forwards.

Three inserts serve many methods: `Shift` (a trained bias), `Replacement` (a fully trained copy of a module) and
`Thaw` (a trained copy that stands in for the module's own parameters, for methods that train in place).
"""

import copy
from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.site import Site
from graft.errors import MergeError
from graft.quant import is_packed

Weights = tuple[torch.Tensor, torch.Tensor | None]  # weight (out, in), bias (out,) or None
LowRankForm = tuple[torch.Tensor, torch.Tensor, float]  # A (r, in), B (out, r), scale s


class Insert(nn.Module):
    """Base class. `names` maps a tensor of the insert to its suffix in an adapter file, where the two differ."""

    names: ClassVar[dict[str, str]] = {}
    reads_base_weight: ClassVar[bool] = (
        False  # forward depends on the base's weight: must come first at its site to merge
    )
    ahead = 0  # positions that it takes before the first token of its rows
    reads: int | None = (
        None  # of its vectors behind the rows, the one whose last state heads find at the first token
    )

    @property
    def enters(self) -> bool:
        """Whether it changes what enters the site."""
        return type(self).enter is not Insert.enter

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """What shall enter the site, for its module and for every insert there; same shape and dtype as x."""
        return x

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What shall leave the site; same shape and dtype as y."""
        return y

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        """The weight (out, in) and bias that give the same without the insert; fp32, or fp64 on a base in fp64."""
        raise MergeError(
            f"{type(self).__name__} has no merged form",
            "inserts whose effect is one weight and one bias",
            "keep the adapter attached, or export it as an adapter",
        )

    def merge_groups(self, minimum: torch.Tensor, bias: torch.Tensor | None, block: int) -> Weights | None:
        """The same for a weight packed with a minimum per `block` inputs of a row: the minima (out, groups) and bias.

        None where the effect is not constant within such groups.
        """
        return None

    def keys_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """At a `kv` site: keys and values (heads, p, width of a head) that every query of the rows sees."""
        raise NotImplementedError

    def around(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """At the `prompt` site: vectors (p, d) in front of every row, and (q, d) behind it."""
        return None

    def low_rank(self) -> LowRankForm | None:
        """(A, B, s) where s·B A x beside the base is all that this insert does, dropout aside; None otherwise.

        At `embed` x is one-hot: A (r, ids), B (width, r).
        """
        return None

    def swap(self) -> dict[str, nn.Parameter]:
        """Parameters that stand in for the module's own while the adapter is in use (in-place methods)."""
        return {}

    def saved(self) -> dict[str, torch.Tensor]:
        """{suffix in the file: tensor}: what another program needs to use the adapter.

        What follows a leading "/" is the whole key, which names no site: a tensor of the whole adapter.
        """
        return {self.names.get(name, name): tensor for name, tensor in self.state_dict().items()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over tensors as `saved` gave them; shapes have been checked."""
        own = self.state_dict()
        own_name = {self.names.get(name, name): name for name in own}
        with torch.no_grad():
            for suffix, tensor in tensors.items():
                own[own_name[suffix]].copy_(tensor)


class Shift(Insert):
    """y + (b' − b): a bias b' trained in the place of the base's b, or of zero where it has none.

    Trained and saved is b' itself, as PEFT does: what is loaded is then what was saved, bit for bit.
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
        own = self.copy.weight.detach()
        return (own.T if self.transposed else own), (None if bias is None else self.copy.bias.detach())

    def saved(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.copy.named_parameters()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.copy.named_parameters():
                p.copy_(tensors[name])


class Thaw(Insert):
    """Trained copies of a module's own parameters, in the base's dtype; the module computes with them while in use.

    shared: the copies made so far, by the identity of the original. A tied tensor is owned, and saved, by the first of
    its modules; the others borrow it.
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
    """A shallow copy that shares nothing mutable with `module`; a packed linear becomes a plain one."""
    if is_packed(module):
        plain = nn.Linear(
            module.in_features, module.out_features, bias=module.bias is not None, device="meta"
        )
        return plain
    clone = copy.copy(module)
    clone._parameters = dict(module._parameters)
    clone._buffers = dict(module._buffers)
    clone._modules = {}
    clone._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(clone, hooks, OrderedDict())
    return clone
