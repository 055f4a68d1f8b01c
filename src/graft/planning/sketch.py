"""Sketch: a base of any size without its numbers, on which one step is run to see how much it would hold.

Everything is built of fake tensors: shapes, dtypes and devices are real, storage is not. The same code builds
the same classes as in a run, so counts and bytes of weights are exact, and a forward and backward of the
sketch allocates and frees what the real ones do; `Ledger` counts the bytes. Deep models are extrapolated
linearly from two shallow ones.
"""

import contextlib
import copy
import functools
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from graft.base.attention import without_inserts
from graft.base.base import Base
from graft.base.probes import outer_blocks
from graft.core.anatomy import kind_of
from graft.core.insert import AdapterModule
from graft.core.method import Method
from graft.errors import Notice
from graft.kernels import native
from graft.models.load import model_class
from graft.planning.costs import Cost, Work
from graft.planning.ledger import Ledger
from graft.quant import QuantLinear, Scheme
from graft.quant.experts import PackedExperts, seat, use_ours
from graft.quant.replace import matrix, packable, packable_experts
from graft.stages.sft import SFT
from graft.stages.stage import Stage
from graft.training.step import backward, no_noise
from graft.training.together import Together

# The keys under which configurations store their number of blocks.
DEPTH = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)


class Sketch(Base):
    """A Base of fake tensors. It has no values, hence no fingerprint, and nothing can be tried on it."""

    has_values = False

    @functools.cached_property
    def _leak(self) -> str | None:
        """Whatever a block has besides linears and norms may carry one document's text to the next.

        Then the plan has padded rows: they hold as much as packed ones, but for the mask.
        """
        owners = (m for b in outer_blocks(self.model) for m in b.modules() if m._parameters)
        return None if all(map(kind_of, owners)) else "its blocks are more than attention and projections"

    def _samples(self) -> tuple[str, None]:
        """Return ("", None): there are no values to take samples of."""
        return "", None

    def _tell(self, *_: Any) -> None:
        """Do nothing: the run itself says it."""

    def _settle(self, insert: AdapterModule) -> None:
        """Do nothing: fake tensors are created on the device and cannot be moved."""


class _Product(torch.autograd.Function):
    """A packed linear: where torch multiplies, with one decoded copy per direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        ctx.shape = rows, x.shape[-1]
        copy = _decoded(x, ctx.shape)
        y = x.new_empty(*x.shape[:-1], rows)
        del copy
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        copy = _decoded(dy, ctx.shape)
        dx = dy.new_empty(*dy.shape[:-1], ctx.shape[1])
        del copy
        return dx, None, None


def _decoded(x: Tensor, shape: tuple[int, int]) -> Tensor | None:
    """Return the copy of a packed weight that a product with x holds, if it holds one."""
    native.left_out("decoded", math.prod(shape))
    native.left_out("product", x.numel() // x.shape[-1] * math.prod(shape))
    whole = native.level() == "reference" or x.device.type != "cpu" or native.packed_by_torch(x.dtype)
    return x.new_empty(shape) if whole else None


class _Packed(QuantLinear):
    """A QuantLinear of which only the bytes matter."""

    @property
    def weight(self) -> Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=self.dtype, device=self.codes.device)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return _Product.apply(x, bias, self.out_features)


class _PackedExperts(PackedExperts):
    """Packed experts of which only the bytes matter: those of one layer with the rows of all."""

    def __init__(self, one: _Packed, stack: _Packed, count: int, transposed: bool) -> None:
        super().__init__([stack])
        self._each: tuple[QuantLinear, ...] = (one,) * count
        self.transposed = transposed

    @property
    def layers(self) -> list[QuantLinear]:
        return list(self._each)


@dataclass(frozen=True)
class Step:
    """One micro-batch.

    rows: their number.  length: tokens of a row.  stage: makes the batch and its loss.
    """

    rows: int
    length: int
    checkpointing: bool = False
    stage: Stage = SFT


@contextlib.contextmanager
def unreal() -> Iterator[None]:
    """Make every tensor that the block creates fake; real ones from before (code books) may take part."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def sketch(
    config: Any,
    *,
    quant: str = "none",
    group_size: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    task: str | None = None,
) -> Sketch:
    """Return the base of a transformers configuration; arguments as for `graft.load`.

    Call it inside `unreal`.
    """
    config = copy.deepcopy(config)
    without_inserts(config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = model_class(config, task)(config)
    finally:
        torch.set_default_dtype(before)
    if quant != "none":
        for name, module in list(packable(model)):
            rows, columns = matrix(module).shape
            bias: Any = module.bias
            model.set_submodule(name, _Packed(columns, rows, Scheme(quant, group_size), bias, dtype))
        for module, name in packable_experts(model).values():
            turned = bool(module.is_transposed)
            count, rows, columns = getattr(module, name).mT.shape if turned else getattr(module, name).shape
            one = _Packed(columns, rows, Scheme(quant, group_size), None, dtype)
            stack = _Packed(columns, count * rows, one.scheme, None, dtype)
            seat(module, name, _PackedExperts(one, stack, count, turned))
            use_ours(model)
    return Sketch(model)


def stored(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of these tensors; a shared storage counts once."""
    return sum({id(s): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def weights(base: Base) -> int:
    """Return the bytes of the base: packed codes and constants, 16-bit rest, buffers."""
    return stored([*base.model.parameters(), *base.model.buffers()])


def same_in_every_block(base: Base) -> bool:
    """Return whether the adapter "plan" is the same in every block, so that a few blocks represent all."""
    blocks: dict[int, set[str]] = {site.layer: set() for site in base.sites if site.layer is not None}
    for site, _ in base.adapters["plan"].inserts:
        if site.layer is not None:
            blocks[site.layer].add(re.sub(r"\d+", "#", site.name))
    return len({frozenset(names) for names in blocks.values()}) <= 1


class Traced:
    """Runs steps on sketches of one base with its adapter, which are as deep as it takes to know all blocks.

    uniform: see `same_in_every_block`.  loading: quant, group_size, dtype and task of the base.
    """

    def __init__(
        self, config: Any, methods: Sequence[Method], stage: Stage, *, uniform: bool, **loading: Any
    ) -> None:
        self.depth = depth_of(config)
        # The first block passes no gradient on. With checkpointing, blocks are computed again one at a time,
        # so that the first one alone would not be typical.
        self.depths = FEW if uniform and self.depth > FEW[-1] else (self.depth,)
        configs = [config if blocks == self.depth else shallow(config, blocks) for blocks in self.depths]
        with warnings.catch_warnings():
            if len(configs) > 1:
                warnings.simplefilter("ignore", Notice)  # of blocks left out; the run speaks of the whole
            self._sketches = [_Attached(each, methods, stage, loading) for each in configs]
        self.taken = self._sketches[0].taken  # positions of the context
        self.steps = 0  # that were run, on all sketches

    def cost(self, step: Step, *, training: bool = True) -> Cost:
        """Return the cost of one micro-batch, without weights, adapter and gradients.

        training: with backward.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            found = [each.cost(step, training) for each in self._sketches]
        self.steps += len(found)
        return found[0] if len(found) == 1 else _deep(found[0], found[1], self.depth - self.depths[0])


FEW = (2, 3)  # blocks of the sketches that stand for all


def depth_of(config: Any) -> int:
    """Return how many blocks a configuration has."""
    return max(getattr(config, key, 0) or 0 for key in DEPTH)


def _deep(fewer: Cost, more: Cost, blocks: int) -> Cost:
    """Return the cost of a model with so many more blocks than `fewer`; `more` has one of them."""

    def carried(a: float, b: float) -> Any:
        return a + (b - a) * blocks

    work = {key: carried(a, vars(more.work)[key]) for key, a in vars(fewer.work).items()}
    whole = carried(fewer.tensors, more.tensors)
    return Cost(whole, min(carried(fewer.heap, more.heap), whole), Work(**work))


def peak(
    config: Any,
    methods: Sequence[Method],
    step: Step,
    *,
    training: bool = True,
    uniform: bool,
    **loading: Any,
) -> tuple[int, int]:
    """Return the bytes of one micro-batch at its peak: all, and those in small blocks (`Cost`)."""
    cost = Traced(config, methods, step.stage, uniform=uniform, **loading).cost(step, training=training)
    return cost.tensors, cost.heap


def shallow(config: Any, blocks: int) -> Any:
    """Return the configuration with so many blocks; lists with one entry per block are cut."""
    values = config.to_dict()
    depth = depth_of(config)
    for key, value in values.items():
        if key in DEPTH and isinstance(value, int):
            values[key] = blocks
        elif isinstance(value, list) and len(value) == depth:
            values[key] = value[:blocks]
    for key in ("model_type", "transformers_version"):  # no arguments of the class
        values.pop(key, None)
    return type(config)(**values)


class _Attached:
    """A sketch of a configuration as it is, however deep, with the adapter."""

    def __init__(self, config: Any, methods: Sequence[Method], stage: Stage, loading: dict[str, Any]) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)  # fakes of two modes do not mix
        with self._mode:
            self._base = base = sketch(config, **loading)
            self._adapter = adapter = attached(base, methods, stage)
            known = [*base.model.parameters(), *base.model.buffers(), *adapter.checkpoint_state().values()]
            for parameter in adapter.parameters():
                parameter.grad = torch.zeros_like(parameter)
                known.append(parameter.grad)
            self._known = known
            base.probe()  # as `load` does: it is no part of the step
            self.taken = base.positions(["plan"])

    def cost(self, step: Step, training: bool) -> Cost:
        base = self._base
        with self._mode:
            base.unpackable(step.length)  # tried once, before the first step
            base.train(training)
            base.checkpointing(step.checkpointing)
            with base.using("plan"), torch.set_grad_enabled(training), Ledger(self._known) as ledger:
                run_step(base, self._adapter, step, training)
            base.checkpointing(False)
        return ledger.cost


def attached(base: Base, methods: Sequence[Method], stage: Stage) -> Together:
    """Attach these methods as "plan", and what the stage trains beside them; return all that is trained."""
    own = base.attach("plan", methods)
    beside = stage.beside(base, "plan")
    return Together(own, {folder: base.adapters[name] for folder, name in beside.items()})


def run_step(base: Base, adapter: Together, step: Step, training: bool) -> None:
    """Run the stage's loss on full rows, packed if the model allows it; in training also backward."""
    pack = base.unpackable(step.length) is None
    batch = step.stage.batches(base, step.length, pack=pack).full(step.rows, step.length)
    if training:
        backward(base, adapter, step.stage.loss, batch, batch.tokens, no_noise)
    else:
        step.stage.loss(base, batch)
