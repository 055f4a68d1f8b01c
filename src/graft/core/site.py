"""Site: a named place in the model where we can read or change a tensor.

Its name IS the module path (`model.layers.3.self_attn.q_proj`), so PEFT files and `target_modules` suffixes
mean here what they mean there. A Site looks its module up by name, so it survives the module being replaced
(a merge puts a 16-bit layer in the place of a 4-bit one).

    kind     x                               y
    linear   input of a projection           its output                  (nn.Linear, Conv1D, QuantLinear)
    norm     input of a norm                 its output
    embed    token ids                       their embeddings
    head     last hidden state               logits
    block    input of a transformer block    its output
    stack    tensors among its keywords      last hidden state           (owns a list of blocks; x is a dict)
    attention, cross, mlp: the self-attention, cross-attention and feed-forward part of a block
             input of its first projection   output of its last projection, before dropout and residual
    kv       -                               -   (attention: the insert gives keys and values to every query)
    prompt   -                               -   (input embeddings: the insert gives vectors around every row)
    final    last hidden state (B, T, D)     None: the insert gives its own logits
    module   -                               -   (owns parameters: in-place methods train them)
    parameter  -                             -   (a weight that no linear owns: a router's, or of all experts)
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from graft.quant import is_packed
from graft.quant.experts import whole

SUBLAYERS = ("attention", "cross", "mlp")
KINDS = (
    "linear", "norm", "embed", "head", "block", "stack", *SUBLAYERS, "kv", "prompt", "final", "module",
    "parameter",
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """One place of one model.

    name: module path; for a sublayer that of its last projection, for a parameter its own.
    kind: one of KINDS.  root: the model.
    layer: index of the block that it is in, or None.
    entry: for a sublayer the path of its first projection, which x enters.
    shape: at `kv` the (heads, width) of keys and values, once a forward has shown them.
    """

    name: str
    kind: str
    root: Any
    layer: int | None = None
    entry: str = ""
    shape: tuple[int, int] | None = None

    def __repr__(self) -> str:
        widths = (
            f", {self.in_features} -> {self.out_features}" if self.kind in ("linear", "embed", "head") else ""
        )
        return f"Site {self.name or '(the model)'}, {self.kind}{widths}"

    @property
    def module(self) -> Any:
        """The module that is here now; at `final` the whole model: nothing follows the last hidden state."""
        return self.root if self.kind == "final" else self.root.get_submodule(self.path)

    @property
    def path(self) -> str:
        """The path of the module: the name, or that of the module that owns a parameter."""
        return self.name.rpartition(".")[0] if self.kind == "parameter" else self.name

    @property
    def leaf(self) -> str:
        """The last part of the name: what its module calls a parameter."""
        return self.name.rpartition(".")[2]

    @property
    def held(self) -> Any:
        """What a parameter's module has under its name: a tensor, or the packed matrices of experts."""
        return getattr(self.module, self.leaf)

    @property
    def experts(self) -> int:
        """The number of matrices that a parameter stacks; 1 elsewhere."""
        return self._shape[0]

    @property
    def _shape(self) -> tuple[int, int, int]:
        """The shape (experts, out, in) of a parameter, however it is stored."""
        if self.kind != "parameter":
            return 1, self.out_features, self.in_features
        *stack, rows, columns = self.held.shape
        return (*(stack or [1]), columns, rows) if self.transposed else (*(stack or [1]), rows, columns)

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (in, out): transformers' Conv1D, and the experts of some models."""
        if self.kind == "parameter":
            stacked = len(self.held.shape) == 3
            return stacked and getattr(self.module, "is_transposed", False)
        return type(self.module).__name__ == "Conv1D"

    @property
    def in_features(self) -> int:
        """Width of x; the number of ids at `embed`."""
        module = self.root.get_submodule(self.entry) if self.entry else self.module
        if self.kind == "parameter":
            return self._shape[2]
        if self.kind == "final":
            return int(self.root.config.hidden_size)
        if type(module).__name__ == "Conv1D":
            return int(module.weight.shape[0])
        known = [a for a in ("in_features", "num_embeddings") if hasattr(module, a)]
        return int(getattr(module, known[0])) if known else int(module.weight.shape[0])

    @property
    def out_features(self) -> int:
        """Width of y."""
        module = self.module
        if self.kind == "parameter":
            return self._shape[1]
        if self.transposed:
            return int(module.weight.shape[1])
        known = [a for a in ("out_features", "embedding_dim") if hasattr(module, a)]
        return int(getattr(module, known[0])) if known else int(module.weight.shape[-1])

    @property
    def multiplier(self) -> Any:
        """The number by which a table at `embed` multiplies its rows, as Gemma's does; 1 elsewhere."""
        scale = getattr(self.module, "embed_scale", 1.0)
        return scale.to(self.module.weight.dtype) if isinstance(scale, torch.Tensor) else scale

    def weight(self) -> torch.Tensor:
        """Return the weight (out, in), dequantised; (ids, width) at `embed`; experts below each other.

        It is copied only if it is packed, or if experts are stored as (in, out).
        """
        if self.kind == "parameter":
            weight = whole(self.held)
            return (weight.mT if self.transposed else weight).flatten(0, -2)
        weight = self.module.weight
        matrix: torch.Tensor = weight.T if self.transposed else weight
        return matrix

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight, decoded."""
        held = self.held if self.kind == "parameter" else self.module.weight
        kind: torch.dtype = held.dtype
        return kind

    def stored(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight, as `weight` returns it, in the form in which the module stores it."""
        if self.kind == "parameter":
            shape = self.held.shape
            weight = weight.view(*shape[:-2], -1, weight.shape[1])
        return (weight.mT if self.transposed else weight).contiguous()

    def bias(self) -> torch.Tensor | None:
        """Return the bias (out,), or None."""
        return None if self.kind == "parameter" else getattr(self.module, "bias", None)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (..., in) times the weight, without bias and hooks.

        Backward decodes a packed weight again.
        """
        module = self.module
        return module.product(x) if is_packed(module) else F.linear(x, self.weight().to(x.dtype))


def shown(names: Iterable[str]) -> str:
    """Return names as text, with a star instead of the number of a block.

    >>> shown(["layers.0.mlp", "layers.1.mlp", "head"])
    'layers.*.mlp, head'
    """
    return ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names))
