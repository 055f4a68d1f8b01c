"""Inserts: what an adapter puts at a site of the model.

An `Insert` hooks a module. It sees what entered the site (x) and what left it (y), and returns what must
leave. One that acts before the site computes overrides `enter`. Laws that every insert keeps:

    the result has y's shape and dtype
    trained tensors are fp32, and are cast to x's dtype for the product
    random choices come from torch's generator
    nothing is kept on the module between two forwards

An insert that does not hook a module has another base class: `KeyValues` (in attention), `VirtualTokens`
(around the rows), `WeightShift` (added to a weight of no linear), `InPlace` (instead of the module's own
parameters) or `Head` (after the last hidden state). All are `AdapterModule`s, which can be saved and loaded.
`layers.replacements` has inserts that serve many methods.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import nn

from graft.errors import MergeError
from graft.quant.experts import Order

Weights = tuple[torch.Tensor, torch.Tensor | None]  # weight (out, in), bias (out,) or None
LowRankForm = tuple[torch.Tensor, torch.Tensor, float]  # A (r, in), B (out, r), scale s


class AdapterModule(nn.Module):
    """Base class of everything that an adapter puts at one site.

    names: {tensor of this module: its suffix in an adapter file}, for those whose names differ.
    """

    names: ClassVar[dict[str, str]] = {}

    def extra_repr(self) -> str:
        """Return what torch writes between the brackets of its name: where it is, and what it trains."""
        place = getattr(getattr(self, "site", None), "name", "")
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return ", ".join(filter(None, [place, f"{trained:,} parameters"]))

    def low_rank(self) -> LowRankForm | None:
        """Return (A, B, s) if adding s·B A x to the base is all this does, apart from dropout; else None.

        At `embed` x is one-hot: A (r, ids), B (width, r).
        """
        return None

    def saved(self) -> dict[str, torch.Tensor]:
        """Return {suffix in the file: tensor} with everything that another program needs to use the adapter.

        A suffix that starts with "/" is a whole key: its tensor belongs to the adapter, not to one site.
        """
        return {self.names.get(name, name): tensor for name, tensor in self.state_dict().items()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy tensors that `saved` returned into this module. Their shapes have been checked."""
        mine = {self.names.get(name, name): tensor for name, tensor in self.state_dict().items()}
        with torch.no_grad():
            for suffix, tensor in tensors.items():
                mine[suffix].copy_(tensor)


class Insert(AdapterModule):
    """Base class of inserts that hook a module.

    reads_base_weight: forward depends on the base's weight, so this insert can be merged only as the first
    one at its site.
    """

    reads_base_weight: bool = False

    @property
    def enters(self) -> bool:
        """Whether it changes what enters the site."""
        return type(self).enter is not Insert.enter

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Return what must enter the site's module and every insert there; same shape and dtype as x."""
        return x

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return what must leave the site; same shape and dtype as y."""
        return y

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        """Return the weight (out, in) and bias that have the same effect without the insert.

        They are in fp32, or in fp64 on a base in fp64.  Raises MergeError if there is no such weight.
        """
        raise MergeError(
            f"{type(self).__name__} has no merged form",
            "inserts whose effect is one weight and one bias",
            "keep the adapter attached, or export it as an adapter",
        )

    def merge_groups(self, minimum: torch.Tensor, bias: torch.Tensor | None, block: int) -> Weights | None:
        """Return merged minima (out, groups) and bias of a packed weight, or None if there are no exact ones.

        minimum: one number for every `block` inputs of a row. The effect must be constant within these
        groups.
        """
        return None


class KeyValues(AdapterModule):
    """Base class of inserts that add keys and values to one attention module, at a `kv` site.

    ahead: number of position ids that are reserved before the first token of the rows.
    """

    ahead = 0

    @abstractmethod
    def keys_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (heads, p, width of a head) that every query of the rows sees."""


class VirtualTokens(AdapterModule):
    """Base class of inserts that put vectors around the embedded rows, at the `prompt` site.

    reads: index of the trailing vector whose final state replaces that of the first token, for task heads; or
    None.
    """

    reads: int | None = None

    @abstractmethod
    def around(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vectors (p, d) to put in front of every row, and (q, d) to put after it."""


class WeightShift(Insert):
    """Base class of inserts that add to a weight which no linear owns, at a `parameter` site."""

    @abstractmethod
    def shift(self) -> torch.Tensor:
        """Return what is added to the matrices (E·out, in), those of all experts below each other."""

    @abstractmethod
    def added(self, x: torch.Tensor, order: Order) -> torch.Tensor:
        """Return what that adds to the products (S, out) of x (S, in) with the matrices of their experts."""

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return weight + self.shift().detach().to(weight.dtype), bias


class InPlace(AdapterModule):
    """Base class of inserts that train a module's own parameters, at a `module` site."""

    @abstractmethod
    def swap(self) -> dict[str, nn.Parameter]:
        """Return the parameters that replace the module's own while the adapter is in use."""


class Head(AdapterModule):
    """Base class of task heads, at the `final` site."""

    @abstractmethod
    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return logits in fp32, (B, classes) or (B, T, classes).

        states: last hidden states (B, T, D).  mask: the attention mask (B, T), or None.
        """
