"""Reward functions of the user's own, called as TRL's `GRPOTrainer` calls them.

A function is called once with all answers and gets lists by keyword: `prompts`, `completions` (texts, or
messages where the prompt is a conversation), `completion_ids`, and each other column of the rows under its
name. One without **keywords gets only those that it names; one that names `sources` gets `file:line` of the
rows. It returns one number for each answer, or None where it does not apply. It may be `async`.
"""

import asyncio
import functools
import inspect
import math
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from graft.core.functions import line_of
from graft.data.templates import Prompt
from graft.errors import UsageError, listed, nearest

RETURNS = "a list with one number for each answer, or None where it does not apply"
CORRECT = "correct the function"
Function = Callable[..., Any]


@dataclass(frozen=True)
class Answered:
    """One answer of a model, and what it answers.

    columns: the row's other columns.  ids: of the answer, with the token that ended it if one did.
    text: without the end.  ended: whether it ended by itself.  source: `file:line` of the row.
    """

    prompt: Prompt
    columns: Mapping[str, Any]
    prompt_ids: Sequence[int]
    ids: Sequence[int]
    text: str
    ended: bool
    source: str


def called(functions: Mapping[str, Function], answered: Sequence[Answered]) -> dict[str, list[float | None]]:
    """Return what functions say of answers: a number each, or None.  Asynchronous ones run at the same time.

    functions: by the name that errors give.  Raises UsageError for a function that fails, or returns anything
    else; it names the row.
    """
    if not answered:
        return {name: [] for name in functions}
    outcomes = _outcomes(functions, answered)
    for name, outcome in outcomes.items():
        if isinstance(outcome, Exception):
            raise _failure(name, functions[name], outcome, answered) from outcome
    return {name: _numbers(name, outcome, answered) for name, outcome in outcomes.items()}


def _outcomes(functions: Mapping[str, Function], answered: Sequence[Answered]) -> dict[str, Any]:
    """Return what each function returns, or the exception that it raises."""
    keywords = {name: _keywords(name, function, answered) for name, function in functions.items()}
    waited = [name for name, function in functions.items() if _is_async(function)]
    found = {}
    for name in (name for name in functions if name not in waited):
        try:
            returned = functions[name](**keywords[name])
            found[name] = list(returned) if inspect.isgenerator(returned) else returned
        except Exception as error:
            found[name] = error
    if waited:
        calls = [functions[name](**keywords[name]) for name in waited]
        found |= zip(waited, _awaited(_together(calls)), strict=True)
    return {name: found[name] for name in functions}


def _keywords(name: str, function: Function, answered: Sequence[Answered]) -> dict[str, Any]:
    """Return what a function is called with. Raises UsageError if it asks for a column that no row has."""
    columns = dict.fromkeys(column for one in answered for column in one.columns)
    given = {column: [one.columns.get(column) for one in answered] for column in columns}
    given["prompts"] = [_asked(one.prompt) for one in answered]
    given["completions"] = [_said(one) for one in answered]
    given["completion_ids"] = [list(one.ids) for one in answered]
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a function of another language says nothing of what it takes
        return given
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if "sources" in (p.name for p in named):
        given.setdefault("sources", [one.source for one in answered])
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if missing:
        raise UsageError(
            f"reward {name!r} asks for {listed(missing)}, which no row has",
            f"names out of {listed(sorted({*given, 'sources'}), 12)}",
            f"did you mean {nearest(missing[0], given, 1)[0]}? Or give the parameter a default",
        )
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return given
    return {p.name: given[p.name] for p in named if p.name in given}


def _asked(prompt: Prompt) -> Any:
    """Return a prompt as functions get it: a text, or copies of messages, which it may change."""
    if isinstance(prompt, str):
        return prompt
    return [dict(message) for message in (prompt["messages"] if isinstance(prompt, dict) else prompt)]


def _said(one: Answered) -> Any:
    """Return an answer as functions get it: a text, or a message."""
    return one.text if isinstance(one.prompt, str) else [{"role": "assistant", "content": one.text}]


def _is_async(function: Function) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _together(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


def _awaited(work: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine. It runs in a thread of its own: a notebook has a loop in this one."""
    future = asyncio.run_coroutine_threadsafe(work, _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop of this process. It is one for all calls: connections of clients belong to it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward functions", daemon=True).start()
    return loop


def _failure(name: str, function: Function, error: Exception, answered: Sequence[Answered]) -> UsageError:
    """Return the error of a function that failed, with the first row on which it fails alone."""
    where, remedy = "", f"{CORRECT}: it fails on all answers together, and on none alone"
    for one in answered:
        alone = _outcomes({name: function}, [one])[name]
        if type(alone) is type(error):
            where, remedy, error = f" on {one.source}", CORRECT, alone
            break
    line = line_of(error, getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", None))
    return UsageError(
        f"reward {name!r} failed{where} with {type(error).__name__}{line and f' at {line}'}: {error}",
        RETURNS,
        remedy,
    )


def _numbers(name: str, returned: Any, answered: Sequence[Answered]) -> list[float | None]:
    """Return what a function returned as numbers. Raises UsageError, which names the row."""
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
        kind = type(returned).__name__
        raise UsageError(f"reward {name!r} returned a {kind}: {returned!r:.60}", RETURNS, CORRECT)
    values = list(returned)
    if len(values) != len(answered):
        given = f"reward {name!r} returned {len(values)} values for {len(answered)} answers"
        raise UsageError(f"{given}, the first to {answered[0].source}", RETURNS, CORRECT)
    numbers = [value if value is None else _number(value) for value in values]
    for value, number, one in zip(values, numbers, answered, strict=True):
        if number is not None and not math.isfinite(number):
            raise UsageError(f"reward {name!r} returned {value!r:.60} for {one.source}", RETURNS, CORRECT)
    return numbers


def _number(value: Any) -> float:
    """Return a number, also one of numpy or torch, as a float; NaN if it is none."""
    if hasattr(value, "shape") and hasattr(value, "item"):
        value = value.item() if math.prod(value.shape) == 1 else None
    return float(value) if isinstance(value, Real) else math.nan
