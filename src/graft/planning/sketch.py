"""Sketch: a base of any size without its numbers, on which one training step is run to see what it would hold.

Everything is built of fake tensors: shapes, dtypes and devices are real, storage is not. The same classes are put
together by the same code as in a run, so counts and bytes of weights are exact, and a forward and backward of the
sketch allocates and frees what the real ones do; `Ledger` keeps the books. A deep model is run with a few
blocks and carried on to its depth in a straight line.
"""

import contextlib
import copy
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.core.insert import Insert
from graft.core.method import Method
from graft.models.load import model_class
from graft.quant import QuantLinear, Scheme
from graft.quant.replace import matrix, packable
from graft.stages.sft import SFT
from graft.stages.stage import Stage
from graft.training.step import backward

DEPTH = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
HEAP = (
    32 << 20
)  # glibc gives larger blocks back at once; smaller ones leave holes that the next step does not fill


class Sketch(Base):
    """A Base of fake tensors. It has no values, hence no fingerprint."""

    def fingerprint(self) -> str:
        return ""

    def _settle(self, insert: Insert) -> None:
        """Fake tensors cannot be moved: they are born on the device."""


class Ledger(TorchDispatchMode):
    """Bytes that operations inside the block allocate and have not freed.

    peak: the most at any time.  heap: the same for blocks of at most HEAP bytes alone.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.peak = self.heap = self._live = self._small = 0
        self._seen = weakref.WeakKeyDictionary({t.untyped_storage(): None for t in known})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        return output

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen[storage] = None
            self._count(storage.nbytes(), 1)
            weakref.finalize(storage, self._count, storage.nbytes(), -1).atexit = False

    def _count(self, size: int, sign: int) -> None:
        self._live += sign * size
        self._small += sign * size * (size <= HEAP)
        self.peak, self.heap = max(self.peak, self._live), max(self.heap, self._small)


class _Product(torch.autograd.Function):
    """A packed linear as the reference kernel computes it: one dequantised copy, in forward and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        ctx.shape = rows, x.shape[-1]
        return F.linear(x, x.new_empty(ctx.shape), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return dy @ dy.new_empty(ctx.shape), None, None


class _Packed(QuantLinear):
    """A QuantLinear whose values nobody asks for."""

    @property
    def weight(self) -> Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=self.dtype, device=self.codes.device)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return _Product.apply(x, bias, self.out_features)


@dataclass(frozen=True)
class Step:
    """What runs at once.  rows: of a micro-batch.  length: tokens of a row.  stage: what a batch is, and its loss."""

    rows: int
    length: int
    checkpointing: bool = False
    stage: Stage = SFT


@contextlib.contextmanager
def unreal() -> Iterator[None]:
    """Inside, every new tensor is fake; constants made before (code books) may take part."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def sketch(
    config: Any, *, quant: str = "none", group_size: int = 0, dtype: torch.dtype = torch.bfloat16,
    task: str | None = None,
) -> Sketch:  # fmt: skip
    """The base of a transformers configuration; arguments as for `graft.load`. Call inside `unreal`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = model_class(config, task)(copy.deepcopy(config))
    finally:
        torch.set_default_dtype(before)
    if quant != "none":
        for name, module in list(packable(model)):
            rows, columns = matrix(module).shape
            model.set_submodule(name, _Packed(columns, rows, Scheme(quant, group_size), module.bias, dtype))
    return Sketch(model)


def stored(tensors: Sequence[Tensor]) -> int:
    """Bytes behind these tensors, shared storage once."""
    return sum({id(s): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def weights(base: Base) -> int:
    """Bytes of the base: packed codes and constants, 16-bit rest, buffers."""
    return stored([*base.model.parameters(), *base.model.buffers()])


def alike(base: Base) -> bool:
    """Whether the adapter "plan" is the same in every block, so that a few blocks speak for all."""
    blocks: dict[int, set[str]] = {site.layer: set() for site in base.sites if site.layer is not None}
    for site, _ in base.adapters["plan"].inserts:
        if site.layer is not None:
            blocks[site.layer].add(re.sub(r"\d+", "#", site.name))
    return len({frozenset(names) for names in blocks.values()}) <= 1


def peak(
    config: Any, methods: Sequence[Method], step: Step, *, training: bool = True, uniform: bool, **kind: Any
) -> tuple[int, int]:
    """Bytes that one micro-batch holds at its peak, beyond weights, adapter and gradients: (all, in blocks up to HEAP).

    training: with backward.  uniform: see `alike`.  kind: quant, group_size, dtype and task of the base.
    """
    depth = max(getattr(config, key, 0) or 0 for key in DEPTH)
    # The first block hands no gradient down. Where one block at a time is computed again, that is no share of each.
    few = 2 if step.checkpointing else 1
    if depth <= few + 1 or not uniform:
        return _run(config, methods, step, training, kind)
    low, high = (_run(shallow(config, blocks), methods, step, training, kind) for blocks in (few, few + 1))
    whole, heap = (a + (b - a) * (depth - few) for a, b in zip(low, high, strict=True))
    return whole, min(heap, whole)


def shallow(config: Any, blocks: int) -> Any:
    """The configuration with so many blocks; lists with one entry per block are cut."""
    values = config.to_dict()
    depth = max(values.get(key) or 0 for key in DEPTH)
    cut = {key: blocks for key in DEPTH if isinstance(values.get(key), int)}
    cut |= {
        key: value[:blocks]
        for key, value in values.items()
        if isinstance(value, list) and len(value) == depth
    }
    return type(config)(
        **{
            key: value
            for key, value in (values | cut).items()
            if key not in ("model_type", "transformers_version")
        }
    )


def _run(
    config: Any, methods: Sequence[Method], step: Step, training: bool, kind: dict[str, Any]
) -> tuple[int, int]:
    with unreal():
        base = sketch(config, **kind)
        adapter = base.attach("plan", methods)
        known = [*base.model.parameters(), *base.model.buffers(), *adapter.checkpoint_state().values()]
        for parameter in adapter.parameters():
            parameter.grad = torch.zeros_like(parameter)
            known.append(parameter.grad)
        base.train(training)
        base.checkpointing(step.checkpointing)
        with base.using("plan"), torch.set_grad_enabled(training), Ledger(known) as ledger:
            run_step(base, adapter, step, training)
        return ledger.peak, ledger.heap


def run_step(base: Base, adapter: Adapter, step: Step, training: bool) -> None:
    """Run the stage's own loss on full rows, packed where the model allows it; in training also backward."""
    pack = base.unpackable(step.length) is None
    batch = step.stage.batches(base, step.length, pack=pack).full(step.rows, step.length)
    if training:
        backward(base, adapter, step.stage.loss, batch, batch.tokens, lambda mask: None)
    else:
        step.stage.loss(base, batch)
