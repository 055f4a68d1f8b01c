"""Losses of the user's own: a function that a step minimises instead of the loss of its stage.

    objective: losses.py:smoothed         function(base, batch) -> (loss, {"tokens": ..., ...})

loss: one number, summed over all that is supervised, never a mean: the loop divides by the number of the
whole step. "tokens" is that number, `batch.tokens`; "correct" beside it gives the accuracy of a step. Rows,
batches, plan and scores stay those of the stage, so runs with different objectives can be compared.
"""

import contextlib
import functools
import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from graft.base.base import Base
from graft.core import functions
from graft.data.feed import Feed
from graft.errors import GraftError, UsageError, notice
from graft.generate.generate import evaluating
from graft.objectives.lm import Loss
from graft.recipe import Recipe
from graft.recipe.stages import names_function
from graft.training import rng

Function = Callable[[Any, Any], Any]
WHAT = "objective"
GIVEN = "given:"  # before the name of a function that was given in Python and that no path names
RETURNS = 'a function (base, batch) that returns (loss, metrics): a sum, and {"tokens": batch.tokens, ...}'
CORRECT = "correct the function; graft.runs.own_objective says what it returns"
FAR = 0.02  # share by which the loss of two rows may differ from the sum of their losses


def name_of(function: Function) -> str:
    """Return the name of a function as recipes have it: the path by which it is imported, if there is one."""
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    module = str(getattr(function, "__module__", ""))
    there = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}" if there is function and module != "__main__" else f"{GIVEN}{name}"


def function_of(recipe: Recipe) -> Function | None:
    """Return the function that a recipe minimises, None if it is the stage's loss. Raises UsageError."""
    path = recipe.objective
    if not names_function(path):
        return None
    if path.startswith(GIVEN):
        name = path.removeprefix(GIVEN)
        raise UsageError(
            f"the objective of this run, {name}, was given in Python and lies in no file to import",
            "the function itself, or objective: losses.py:function",
            f"call graft.train(..., objective={name}) again, or write the function into a file",
        )
    return functions.imported(path, WHAT)


def facts_of(recipe: Recipe, function: Function | None) -> dict[str, str]:
    """Return what a resumed run must have again of its function: a digest of its code; empty without one.

    Values that a function given in Python closes over are not part of it.
    """
    if function is None:
        return {}
    if not recipe.objective.startswith(GIVEN):
        return {"fingerprint of the objective": functions.fingerprint(recipe.objective, WHAT)}
    inner: Any = inspect.unwrap(function)
    fixed = ""
    while isinstance(inner, functools.partial):
        fixed += f"{inner.args!r} {sorted(inner.keywords.items())!r} "
        inner = inspect.unwrap(inner.func)
    try:
        code = inspect.getsource(inner if hasattr(inner, "__code__") else type(inner))
    except (OSError, TypeError):  # typed at a prompt: there is no source
        code = str(getattr(getattr(inner, "__code__", None), "co_code", recipe.objective))
    return {"fingerprint of the objective": hashlib.sha256((fixed + code).encode()).hexdigest()}


def checked(name: str, function: Function) -> Callable[[Any, Any], Loss]:
    """Return the function, with a look at the form of what it returns. Raises UsageError, as that does.

    name: of the function in messages.
    """
    with contextlib.suppress(ValueError):  # a function of another language does not say what it takes
        takes = inspect.signature(function)
        try:
            takes.bind(None, None)
        except TypeError:
            raise _wrong(name, f"takes {takes}") from None

    def objective(base: Any, batch: Any) -> Loss:
        returned = function(base, batch)
        if not (isinstance(returned, tuple | list) and len(returned) == 2):
            raise _wrong(name, f"returned {_shown(returned)}")
        loss, metrics = returned
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise _wrong(name, f"returned {_shown(loss)} as its loss")
        if not isinstance(metrics, Mapping) or "tokens" not in metrics:
            raise _wrong(name, f'returned {_shown(metrics)} as its metrics, without "tokens"')
        return loss.reshape(()), dict(metrics)

    objective.__qualname__ = objective.__name__ = name
    objective.__wrapped__ = function  # type: ignore[attr-defined]
    return objective


def try_out(base: Base, adapter: str, objective: Function, feed: Feed) -> None:
    """Run an objective on one batch before the first step, and leave no trace.

    adapter: the name of the one that is trained.  objective: of `checked`.
    Raises UsageError for one that fails, whose loss is not finite, that counts other tokens than the batch
    or teaches the adapter nothing. A loss that looks like a mean gives a notice.
    """
    name = objective.__qualname__
    with rng.preserved(), base.using(adapter), evaluating(base):
        batch, *alone = (one.to(base.device) for one in feed.few(2))
        if not batch.tokens:
            return  # the loop names rows that teach nothing
        with _named(objective):
            loss, metrics = objective(base, batch)
        value, counted = float(loss.detach()), float(metrics["tokens"])
        if not math.isfinite(value):
            raise _wrong(name, f"gave the loss {value} for {', '.join(batch.sources)}")
        if counted != batch.tokens:
            told = f'"tokens" {counted:g} where the batch has {batch.tokens}'
            raise _wrong(name, f"returned {told}, by which the loop divides")
        if not loss.requires_grad or not _reached(loss, base.adapters[adapter].parameters()):
            raise _wrong(name, "returned a loss from which no gradient reaches the adapter")
        del loss
        with torch.no_grad(), _named(objective):
            parts = [float(objective(base, one)[0]) for one in alone if one.tokens]
    if len(parts) > 1 and abs(value - sum(parts)) > FAR * max(abs(value), abs(sum(parts))):
        notice(
            f"objective {name} gives {value:.4g} for two rows together and "
            f"{' + '.join(f'{p:.4g}' for p in parts)} for each alone: if that is a mean, return the sum "
            "instead; the loop divides by all tokens of a step"
        )


def _reached(loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> bool:
    found = torch.autograd.grad(loss, [p for p in parameters if p.requires_grad], allow_unused=True)
    return any(gradient is not None for gradient in found)


@contextlib.contextmanager
def _named(objective: Function) -> Iterator[None]:
    """Name an objective that fails, with the line at which it does."""
    try:
        yield
    except (GraftError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        code = getattr(inspect.unwrap(objective), "__code__", None)
        line = functions.line_of(error, getattr(code, "co_filename", None))
        at = f" at {line}" if line else ""
        raise UsageError(
            f"objective {objective.__qualname__} failed with {type(error).__name__}{at}: {error}",
            RETURNS,
            CORRECT,
        ) from error


def _wrong(name: str, what: str) -> UsageError:
    return UsageError(f"objective {name} {what}", RETURNS, CORRECT)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}: {value!r:.60}"
