"""A side's end of the pipe to the harness: it prepares, says that it is ready, and works when it is told.

    harness → side   {"do": "turn", "units": 3}, {"do": "profile"}, {"do": "stop"}
    side → harness   {"ready": true, facts}, {"seconds": [...], facts}, {"parts": {...}}, {facts}

One line of JSON each. Whatever else the side prints goes to its log.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import memory
import parts

MIB = 1 << 20


class Link:
    """The pipe of this process.  It takes over standard output, which libraries may write to."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._memory: dict[str, float] = {}

    def say(self, **facts: Any) -> None:
        """Send one line."""
        self._out.write(json.dumps(facts) + "\n")
        self._out.flush()

    def loaded(self) -> None:
        """Note the memory of loading, and measure the peak of the work from here on."""
        self._memory = {"load_peak_mib": memory.peak() / MIB, "loaded_mib": memory.resident() / MIB}
        memory.forget()

    def ready(self, **facts: Any) -> None:
        """Say that the warm-up is over."""
        self.say(ready=True, **self._memory, **facts)

    def orders(self) -> Iterator[dict[str, Any]]:
        """Yield what the harness wants, until it wants the side to stop."""
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "stop":
                return
            yield order


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
