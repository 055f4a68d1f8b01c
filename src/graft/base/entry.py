"""Entry: the model called by itself inside a `using` block.

Own loops, transformers' Trainer and `generate`, and lm-eval call `base.model`, not the base. Hooks at the
model, and at the models in it (a backbone, an encoder), then put the Route of the block in place for this one
forward. They are there while an adapter is attached. They do nothing outside a `using` block, or where a
Route is in place already. What such loops call besides, `model.train` and `model.zero_grad`, reaches the
adapters as well.

What cannot be answered so is refused, and never answered by the bare base: logits of a task head, a cache
under an adapter that allows none, a copy of the model.
"""

import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from graft.base.adapter import Adapter
from graft.base.choice import Choice, Rows
from graft.base.compiled import keep_routes
from graft.base.host import Host
from graft.core.route import Route, current, decided, installed
from graft.errors import ModelError, UsageError
from graft.layers.taps import Tap


@dataclass
class _Running:
    """A forward of this thread that got its Route here.  block: the `using` block it runs in."""

    module: nn.Module
    block: Any
    route: Route
    context: Any


class Entry(Host):
    """The hooks of one model.

    cacheable: whether text can be written with a cache under these adapters.
    """

    def __init__(self, model: Any, choice: Choice, cacheable: Callable[[Rows], bool]) -> None:
        self._model, self._choice, self._cacheable = model, choice, cacheable
        self._parts: list[nn.Module] = []
        self._handles: list[Any] = []
        self._live = threading.local()
        choice.on_exit = self._leave_block

    def remove(self, name: str) -> None:
        self.rehook(leaving=name)

    def rehook(self, leaving: str = "") -> None:
        """Hook the models again, around all other hooks; not at all if no adapter stays.

        leaving: an adapter that goes.
        """
        while self._handles:
            self._handles.pop().remove()
        if all(adapter.name == leaving for adapter in self._choice.adapters):
            self._parts = []
            keep_routes(self._model, False)
            for name in ("train", "zero_grad"):
                vars(self._model).pop(name, None)
            return

        # Functions, not methods: a copy of the model keeps these, and is refused.
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._enter(module, kwargs)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._leave(module)

        def train(model: Any, mode: bool = True) -> Any:
            type(model).train(model, mode)
            for adapter in self._adapters_of(model):
                adapter.train(mode)
            return model

        def zero_grad(model: Any, set_to_none: bool = True) -> None:
            type(model).zero_grad(model, set_to_none)
            for adapter in self._adapters_of(model):
                for _, insert in adapter.inserts:
                    insert.zero_grad(set_to_none)

        for method in (train, zero_grad):
            vars(self._model)[method.__name__] = types.MethodType(method, self._model)
        self._parts = [m for m in self._model.modules() if m is self._model or isinstance(m, PreTrainedModel)]
        for part in self._parts:
            self._handles.append(part.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
            self._handles.append(part.register_forward_hook(after, always_call=True))

    def _adapters_of(self, model: Any) -> list[Adapter]:
        """Return the adapters of a model; a copy of it has none."""
        return self._choice.adapters if model is self._model else []

    def _enter(self, module: nn.Module, kwargs: dict[str, Any]) -> None:
        """Put the Route of the `using` block in place, if this forward has none yet."""
        if decided() and not self._is_last(module):
            return
        name = self._choice.active
        if name is None and not self._choice.open:
            return
        self._require_plain(module)
        if name is None:
            return
        self._require_answer(self._choice.usable(name), module, kwargs)
        if self._model.training and torch.is_grad_enabled():
            keep_routes(self._model)
        route = self._choice.route(((name, 0, 1),), 1)  # one span, of however many rows
        context = installed(route)
        context.__enter__()
        self._running.append(_Running(module, self._choice.block, route, context))

    @property
    def _running(self) -> list[_Running]:
        """The forwards of this thread, the innermost last."""
        running: list[_Running] = self._live.__dict__.setdefault("running", [])
        return running

    def _is_last(self, module: nn.Module) -> bool:
        """Return whether hooks read the Route that was put in place for this module.

        If it is called now, it is called inside its own forward, or that forward was interrupted.
        """
        return (
            bool(self._running)
            and self._running[-1].module is module
            and current() is self._running[-1].route
        )

    def _leave(self, module: nn.Module) -> None:
        """Take away the Route that was put in place for this module."""
        if self._is_last(module):
            self._running.pop().context.__exit__(None, None, None)

    def _leave_block(self, block: Any) -> None:
        """Take away what forwards left that were interrupted, as by Ctrl-C: then no hook runs after them."""
        while self._running and self._running[-1].block is block:
            self._running.pop().context.__exit__(None, None, None)

    def _require_plain(self, module: nn.Module) -> None:
        """Raise UsageError where nobody can know which adapter is meant."""
        if not any(module is part for part in self._parts):
            raise UsageError(
                "a copy of base.model inside a `using` block, as deepcopy and DataParallel make them",
                "base.model itself",
                "call it outside the block or inside using(None); for several GPUs start one process each",
            )

    def _require_answer(self, adapter: Adapter, module: nn.Module, kwargs: dict[str, Any]) -> None:
        """Raise ModelError or UsageError if this forward would not answer as the base does."""
        given = f"base.model(...) inside using({adapter.name!r})"
        if module is self._model and any(site.kind == "final" for site, _ in adapter.inserts):
            raise ModelError(
                f"{given}, an adapter with a task head",
                "a call of the base, which runs that head; the model has none",
                "call base(...)",
            )
        cached = kwargs.get("past_key_values") is not None
        if cached and not self._cacheable([adapter.name]):
            raise UsageError(
                f"{given} with a cache",
                "no cache: this adapter needs the whole text at every step",
                "pass use_cache=False, or call base.generate",
            )
        tapped = any(isinstance(insert, Tap) for _, insert in adapter.inserts)
        if tapped and kwargs.get("encoder_outputs") is not None:
            raise UsageError(
                f"{given} with encoder_outputs: this adapter reads more of the encoder than they hold",
                "one forward through encoder and decoder",
                "pass input_ids, or call base.generate",
            )
