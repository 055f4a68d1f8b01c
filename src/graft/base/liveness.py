"""Which places of a model a forward really reaches: one small forward, as training runs it, is watched.

Names and classes tell where projections lie, not whether they act. Some are never called, as Mamba's
`dt_proj`, whose weight the code uses directly; what some return leads to no number of the answer, as with an
indexer that only picks which keys are read; what a subclass of Linear returns may be no product, as with
Llama 4's router; and many attentions do not go through transformers' interface, so that keys and values
cannot be added there. An insert at such a place would be trained, counted and saved without an effect, so it
is no site.

A mixture calls the experts that a few tokens are sent to. A module in a list inside a block therefore counts
as called if its like was: only the first number of a path tells modules apart.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from graft.base.attention import watched
from graft.base.dropout import SilentDropout
from graft.core import anatomy
from graft.core.insert import Insert
from graft.core.part import Seats
from graft.core.positions import context_length
from graft.core.route import installed
from graft.core.site import Site
from graft.errors import SiteError, listed, notice

LENGTH = 64  # some modules are called for rows of a certain length only


@dataclass
class Seen:
    """What a forward did.

    called: paths, as `alike` writes them; of projections, norms and tables, those that lead to the answer.
    unlike: names of linears that return no product, of norms of another width than their weight, and of a
    table of tokens that returns more than their embeddings.
    attention: {module: (heads, width) of its keys}; None if it could not be watched.
    """

    called: set[str] = field(default_factory=set)
    unlike: set[str] = field(default_factory=set)
    attention: dict[nn.Module, tuple[int, int]] | None = None


class Liveness:
    """The sites of one model. The forward is run once, when they are first asked for."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: Seen | None = None

    def sites(self) -> list[Site]:
        """Return every place that a method can go to."""
        seen = self._watched()
        sites = anatomy.sites(self._model, seen.unlike | set(self.dead()))
        sites = [site for site in sites if not (site.kind == "prompt" and site.name in seen.unlike)]
        if seen.attention is None:
            return sites
        shapes = seen.attention
        keyed = [
            Site(name, "kv", self._model, anatomy.layer_of(name), shape=shapes[module])
            for name, module in self._model.named_modules()
            if module in shapes
        ]
        return [*(site for site in sites[:-1] if site.kind != "kv"), *keyed, sites[-1]]

    def dead(self) -> list[str]:
        """Return the names of projections, norms and tables that no forward calls, or without an effect.

        A second name of a tensor whose module is called, as T5's `shared`, is none: merging must reach it. Of
        a linear both names are: what uses the tensor without its module would not be adapted, but merged.
        """
        called = self._watched().called
        modules = [(name, module) for name, module in self._model.named_modules() if _computes(module)]
        idle = {name for name, _ in modules if called and alike(name) not in called}
        tensors = {id(_tensor(module)) for name, module in modules if name not in idle}
        behind = {id(_tensor(m)) for name, m in modules if name in idle and isinstance(m, nn.Linear)}
        return [
            name
            for name, module in modules
            if (isinstance(module, nn.Linear) and id(_tensor(module)) in behind)
            or (name in idle and id(_tensor(module)) not in tensors)
        ]

    def check(self, seats: Seats) -> None:
        """Raise SiteError for an insert at a module that no forward calls.

        One at a second name of a table may stay where another name of it has an insert too: they share it.
        """
        idle = [site for site, insert in seats if isinstance(insert, Insert) and self._idle(site)]
        acting = {id(_tensor(s.module)) for s, i in seats if isinstance(i, Insert) and s not in idle}
        for site in idle:
            if id(_tensor(site.module)) not in acting:
                raise SiteError(
                    f"no answer of this model depends on {site.name}",
                    "a module that acts, such as another name of the same table",
                    f"leave {site.name} out, or name the module that is called",
                )

    def _idle(self, site: Site) -> bool:
        """Return whether no forward calls the module of a site, as far as a forward could be watched."""
        called, kinds = self._watched().called, ("linear", "norm", "embed", "head")
        return bool(called) and site.kind in kinds and alike(site.name) not in called

    def without_dead(self, tensors: dict[str, torch.Tensor], source: Any) -> dict[str, torch.Tensor]:
        """Return a file's tensors without those at places that no forward calls; a notice names these."""
        dead = [name for name in self.dead() if any(f".{name}." in f".{key}" for key in tensors)]
        if not dead:
            return tensors
        given = f"{source} has tensors at {listed(_starred(dead))}"
        notice(f"{given}, on which no answer of this model depends: left out")
        return {k: v for k, v in tensors.items() if not any(f".{name}." in f".{k}" for name in dead)}

    def _watched(self) -> Seen:
        if self._seen is None:
            self._seen = _watch(self._model)
        return self._seen


def _watch(model: Any) -> Seen:
    """Run a small forward in training mode without dropout, and return what it did.

    A model that cannot be run so, such as one of shapes alone, has all the sites that its modules suggest.
    """
    seen, paths = Seen(), Paths()
    table = model.get_input_embeddings()
    names = {id(module): name for name, module in model.named_modules()}

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        odd = not _is_product(module, args, output) if isinstance(module, nn.Linear) else _odd(module, output)
        if odd or (module is table and not isinstance(output, torch.Tensor)):
            seen.unlike.add(names[id(module)])
        if not (_computes(module) and isinstance(output, torch.Tensor) and output.is_floating_point()):
            seen.called.add(alike(names[id(module)]))
            return None
        return paths.begun(alike(names[id(module)]), output)

    handles = [module.register_forward_hook(after) for module in model.modules()]
    try:
        with watched(model) as attention:
            given = ids(model, 1, min(LENGTH, (context_length(model.config) or LENGTH) - 1))
            seen.called |= paths.reached(forward(model, given, graph=True))
        seen.attention = attention
    except Exception:  # every model fails in its own way
        return Seen()
    finally:
        for handle in handles:
            handle.remove()
    return seen


class Paths:
    """Which tensors lead to an answer, by autograd's graph of the forward; no gradient is computed."""

    def __init__(self) -> None:
        self._nodes: dict[str, list[Any]] = {}

    def begun(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor as part of the graph, of whose nodes this one has the name."""
        # A copy: the code may change it in place, which is forbidden where a graph begins.
        known = tensor if tensor.requires_grad else tensor.detach().requires_grad_().clone()
        self._nodes.setdefault(name, []).append(known.grad_fn)
        return known

    def reached(self, answer: Any) -> set[str]:
        """Return the names of the nodes from which some tensor of the answer was computed."""
        waiting = [tensor.grad_fn for tensor in _tensors(answer)]
        behind: set[Any] = set()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in behind:
                behind.add(node)
                waiting += [before for before, _ in node.next_functions]
        return {name for name, nodes in self._nodes.items() if not behind.isdisjoint(nodes)}


def _tensors(answer: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in transformers' output; those in its cache are no answer."""
    if isinstance(answer, torch.Tensor):
        yield answer
    elif isinstance(answer, (dict, list, tuple)):
        for part in answer.values() if isinstance(answer, dict) else answer:
            yield from _tensors(part)


def ids(model: Any, rows: int, length: int) -> torch.Tensor:
    """Return ids (rows, length) of a model's vocabulary, on its device, each row another."""
    table = model.get_input_embeddings().weight
    numbers = torch.arange(rows * length, device=table.device).view(rows, length)
    return (numbers * 7 + 5) % max(2, min(len(table), 1000) - 5) + min(4, len(table) - 2)


def has_values(model: Any) -> bool:
    """Return whether a model is more than the shapes of its tensors."""
    table = model.get_input_embeddings().weight
    return table.device.type != "meta" and not isinstance(table, FakeTensor)


def forward(
    model: Any, given: torch.Tensor, *, training: bool = True, graph: bool = False, **keywords: Any
) -> Any:
    """Run a forward of the bare model without gradients, and leave it as it was.

    training: in training mode, without dropout.  graph: autograd notes what was computed from what.  Returns
    transformers' output.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        keywords = {"decoder_input_ids": given[:, :4], **keywords}
    with quietly(model, training=training), torch.set_grad_enabled(graph):
        return model(given, **{"attention_mask": torch.ones_like(given), **keywords})


@contextlib.contextmanager
def quietly(model: Any, *, training: bool) -> Iterator[None]:
    """Let forwards inside the block leave no trace: no gradients, no adapters, no dropout."""
    with torch.no_grad(), installed(None), _mode(model, training), _rng():
        yield


@contextlib.contextmanager
def _mode(model: Any, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    silent = SilentDropout(model)
    silent.on()
    for module, _ in modes:
        module.training = training
    try:
        yield
    finally:
        silent.off()
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _rng() -> Iterator[None]:
    """Put torch's generator back: a router may add noise in training."""
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _odd(norm: Any, output: Any) -> bool:
    """Return whether a norm gives another number of values than it has weights, for states that have none."""
    if anatomy.kind_of(norm) != "norm" or not isinstance(output, torch.Tensor):
        return False
    return bool(output.shape[-1] != norm.weight.shape[-1])


def _is_product(module: nn.Linear, args: tuple[Any, ...], output: Any) -> bool:
    """Return whether a linear returned x Wᵀ + b. One whose class has no forward of its own always does."""
    if type(module).forward is nn.Linear.forward:
        return True
    if not isinstance(output, torch.Tensor) or output.shape[-1] != module.out_features:
        return False
    weight = module.weight
    if not (isinstance(weight, torch.Tensor) and weight.is_floating_point() and args):
        return True  # a packed one
    wanted = F.linear(args[0].to(weight.dtype), weight, module.bias)
    return wanted.shape == output.shape and _near(output, wanted)


def _near(ours: torch.Tensor, wanted: torch.Tensor) -> bool:
    try:
        return torch.allclose(ours.float(), wanted.float(), rtol=0.05, atol=0.05 * float(wanted.abs().max()))
    except Exception:  # a model of shapes alone has no values
        return True


def holds_site(module: nn.Module) -> bool:
    """Return whether a module is a projection, a norm, a table or a block."""
    return anatomy.kind_of(module) is not None or isinstance(module, nn.Embedding)


def _computes(module: nn.Module) -> bool:
    return anatomy.kind_of(module) in ("linear", "norm") or isinstance(module, nn.Embedding)


def _tensor(module: nn.Module) -> Any:
    return module._parameters.get("weight") if "weight" in module._parameters else module


def alike(name: str) -> str:
    """Return a path with a star for every number but the first.

    >>> alike("h.3.mlp.experts.7.up"), alike("norm")
    ('h.3.mlp.experts.*.up', 'norm')
    """
    head, number, rest = re.match(r"(\D*)(\d*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return head + number + re.sub(r"\d+", "*", rest)


def _starred(names: list[str]) -> list[str]:
    return list(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names))
