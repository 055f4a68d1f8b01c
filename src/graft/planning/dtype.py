"""Settle `dtype: auto` of a run: the number format that multiplies faster here, if the run fits in it."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from graft.models.dtype import AUTO, Choice, choose
from graft.sizes import size

if TYPE_CHECKING:
    from graft.planning.plan import Plan


def settled(dtype: str, plan_in: Callable[[str], "Plan"]) -> "Plan":
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


def _smaller(wide: "Plan", choice: Choice) -> Choice:
    peak, free = size(max(wide.peaks.values())), size(wide.available)
    return Choice("bf16", f"fp32 would take {peak} of {free}; it is faster: {choice.why}")
