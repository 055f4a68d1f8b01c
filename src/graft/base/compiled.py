"""How forwards of the model are carried out: compiled by torch, or recomputed block by block in backward."""

import contextlib
import functools
import gc
from collections.abc import Callable
from typing import Any

import torch

from graft.core.route import Route, current, installed
from graft.errors import UsageError


class Compiled:
    """A model, and what torch.compile made of it.

    Whoever adds or removes a hook must call `forget`: dynamo does not notice a new hook, and compiled code
    would go on without the new adapter.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._options: dict[str, Any] | None = None
        self._compiled: Any = None

    def switch(self, options: dict[str, Any] | None) -> None:
        """Compile with these options from now on; None switches compiling off."""
        self._options = options
        self.forget()

    def forget(self) -> None:
        """Throw compiled code away."""
        if self._compiled is not None:
            self._compiled = None
            torch.compiler.reset()

    def model(self, route: Route | None) -> Any:
        """Return what to call for a forward along this Route.

        There is one graph per layout of spans, and dynamo recompiles 8 times at most. So mixed batches and
        in-place methods run eagerly.
        """
        if self._model.training and torch.is_grad_enabled():
            keep_routes(self._model)
        if self._options is None or route is None or len(route.spans) != 1:
            return self._model
        if self._compiled is None:
            # Dynamo counts the entries of weak tables: a model collected meanwhile would shorten them.
            gc.collect()
            self._compiled = torch.compile(self._model, **self._options)
        return self._compiled


def recompute_blocks(model: Any, on: bool) -> None:
    """Let backward recompute every block of a model instead of keeping its activations, or end that.

    The recomputation finds the Route of its own forward again, even if another adapter is in use by then.
    """
    if not on:
        if model.supports_gradient_checkpointing:
            model.activation_checkpointing_disable()
        return
    if not model.supports_gradient_checkpointing:
        raise UsageError(
            f"gradient checkpointing of {type(model).__name__}",
            "a model of transformers that can recompute its blocks",
            "leave it off; smaller micro-batches save memory too",
        )
    model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": _contexts})
    # Needless without reentry, and it would keep backward going to the bottom.
    model.disable_input_require_grads()


def keep_routes(model: Any, on: bool = True) -> None:
    """Let blocks find their Route in backward, too, where others than `Base` have switched recomputing on.

    Those are `model.gradient_checkpointing_enable()` and transformers' Trainer.  on: False puts back what
    they had set.
    """
    for module in model.modules():
        function = vars(module).get("_gradient_checkpointing_func")
        if isinstance(function, _Routed) and not on:
            module._gradient_checkpointing_func = function.own
        elif on and function is not None and module.gradient_checkpointing and not _is_routed(function):
            module._gradient_checkpointing_func = _Routed(function)


def _contexts() -> tuple[Any, Any]:
    """Return what surrounds a block's forward, and its recomputation."""
    return contextlib.nullcontext(), installed(current())


def _is_routed(function: Any) -> bool:
    return isinstance(function, _Routed) or _keyword(function, "context_fn") is _contexts


def _keyword(function: Any, name: str) -> Any:
    return function.keywords.get(name) if isinstance(function, functools.partial) else None


class _Routed:
    """A function that runs a block, and again in backward: both times along the Route of the forward.

    own: transformers' function. It runs without reentry, which would need gradients of frozen embeddings.
    """

    def __init__(self, own: Any) -> None:
        self.own = own
        reenters = _keyword(own, "use_reentrant")
        self._run = functools.partial(own, use_reentrant=False) if reenters else own

    def __call__(self, block: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        route = current()

        def along(*given: Any, **named: Any) -> Any:
            with installed(route):
                return block(*given, **named)

        return self._run(along, *args, **keywords)
