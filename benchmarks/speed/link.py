"""Do a unit of work whenever the harness asks for it, and time it (`pipe.Link`)."""

import time
from collections.abc import Callable
from typing import Any

import memory
import parts
from pipe import MIB, Link


def serve(
    link: Link, unit: Callable[[], Any], *, warm: int, ready: dict[str, Any],
    last: Callable[[], dict[str, Any]] = dict,
) -> None:  # fmt: skip
    """Do `unit` whenever the harness asks, and time it.

    warm: units before the first that counts.  ready: facts for the harness.  last: gives facts for the end.
    """
    first = [unit() for _ in range(warm)]
    peak = 0.0
    link.ready(**ready, warm=first)
    for order in link.orders():
        if order["do"] == "profile":
            peak = peak or memory.peak() / MIB  # the profiler's own memory is not the side's
            with parts.profiler() as profile:
                begun = time.perf_counter()
                unit()
                wall = time.perf_counter() - begun
            link.say(parts=parts.split(profile.events(), wall, **order["dimensions"]))
            continue
        seconds, results = [], []
        for _ in range(order["units"]):
            begun = time.perf_counter()
            results.append(unit())
            seconds.append(time.perf_counter() - begun)
        link.say(seconds=seconds, results=results)
    link.say(peak_mib=peak or memory.peak() / MIB, **last())
