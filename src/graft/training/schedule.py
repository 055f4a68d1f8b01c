"""Learning-rate schedules as pure functions: step -> factor of the peak rate.

    warmup (n < W):   n / W
    constant:         1
    linear:           (N - n) / (N - W)
    cosine:           (1 + cos(π (n - W) / (N - W))) / 2        n steps done of N

The values of transformers.get_scheduler: the first step after a warm start has factor 0 when W > 0.
"""

import math
from collections.abc import Callable

from graft.errors import one_of

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
}


def factor(schedule: str, step: int, total: int, warmup: float) -> float:
    """Return the factor of the step that follows `step` finished ones.

    warmup: a share of `total` if under 1, else a number of steps.
    """
    one_of("train.schedule", schedule, SCHEDULES)
    ramp = math.ceil(total * warmup) if warmup < 1 else int(warmup)
    if step < ramp:
        return step / ramp
    return SCHEDULES[schedule](min(1.0, (step - ramp) / max(1, total - ramp)))
