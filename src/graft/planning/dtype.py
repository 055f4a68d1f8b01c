"""Settle `dtype: auto` of a run: the number format that multiplies faster here, if the run fits in it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from graft.models.dtype import AUTO, Choice, choose
from graft.planning.machine import memory
from graft.planning.sketch import sketch, unreal
from graft.recipe import Recipe
from graft.sizes import size
from graft.stages.stage import task_of

P = TypeVar("P", bound=Any)  # planning.plan.Plan, whose module imports this one


def settled(dtype: str, plan_in: Callable[[str], P]) -> P:
    """Return the plan of a run in a recipe's dtype; `Plan.dtype` and `Plan.why` say which that is.

    plan_in: returns the plan in bf16 or fp32.
    """
    if dtype != AUTO:
        return replace(plan_in(dtype), dtype=dtype, why="as the recipe says")
    choice = choose("cuda" if torch.cuda.is_available() else "cpu")
    planned = plan_in(choice.dtype)
    if choice.free and choice.dtype == "fp32" and not planned.fits:
        narrow = plan_in("bf16")
        if max(narrow.peaks.values()) < max(planned.peaks.values()):
            planned, choice = narrow, _smaller(planned, choice)
    return replace(planned, dtype=choice.dtype, why=choice.why)


def surely_fits(recipe: Recipe, config: Any) -> bool:
    """Return whether a run in fp32 is so small that it fits without a plan, which takes seconds.

    Far more is reckoned than a run takes: for each weight all that full fine-tuning holds, twice; for each
    token of a batch and each block a hundred vectors, and all scores of its attention.
    """
    text = config.get_text_config()
    width, depth = getattr(text, "hidden_size", None), getattr(text, "num_hidden_layers", None)
    if not isinstance(width, int) or not isinstance(depth, int):
        return False
    with unreal():
        weights = sketch(config, task=task_of(recipe, config)).count()
    length = recipe.data.max_length
    rows = max(recipe.train.micro_batch_size, recipe.evaluate.batch_size)
    heads = getattr(text, "num_attention_heads", None) or width
    needed = 32 * weights + 4 * rows * length * depth * (100 * width + 4 * heads * length)
    available, _, process = memory()
    return needed < (available - process) / 2


def _smaller(wide: Any, choice: Choice) -> Choice:
    peak, free = size(max(wide.peaks.values())), size(wide.available)
    return Choice("bf16", f"fp32 would take {peak} of {free}; it is faster: {choice.why}")
