"""Learning-rate schedules as pure functions: step -> factor of the peak rate.

    warmup (n < W):   (n + 1) / W
    constant:         1
    linear:           (N - n) / (N - W)
    cosine:           (1 + cos(π (n - W) / (N - W))) / 2        n steps done of N

The first step learns: the warm-up begins at 1 / W, also in a run of one step. transformers.get_scheduler
begins at 0, so that with W > 0 its first step changes nothing; from step W on the values are equal to its.
"""

import math
from collections.abc import Callable

from graft.errors import one_of


def constant(progress: float) -> float:
    """Return 1."""
    return 1.0


def linear(progress: float) -> float:
    """Return a straight line from 1 to 0."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Return half a cosine wave from 1 to 0."""
    return (1.0 + math.cos(math.pi * progress)) / 2


# progress: share of the steps after the warm-up that are done, 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "linear": linear, "cosine": cosine}


def factor(schedule: str, step: int, total: int, warmup: float) -> float:
    """Return the factor for the step that follows `step` finished ones.

    warmup: a share of `total` if under 1, else a number of steps. Raises UsageError for an unknown schedule.
    """
    one_of("train.schedule", schedule, SCHEDULES)
    ramp = math.ceil(total * warmup) if warmup < 1 else int(warmup)
    if step < ramp:
        return (step + 1) / ramp
    return SCHEDULES[schedule](min(1.0, (step - ramp) / max(1, total - ramp)))
