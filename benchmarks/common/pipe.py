"""A side's end of the pipe to the process that tells it when to work (`turns.Side`).

    to the side     {"do": "turn", "units": 3}, {"do": "profile"}, {"do": "stop"}
    from the side   {"ready": true, facts}, {"seconds": [...], facts}, {"parts": {...}}, {facts}

One line of JSON each. Whatever else the side prints goes to its log.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import memory

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
