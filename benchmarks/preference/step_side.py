"""One side of a step's speed, in a process of its own: python step_side.py '{"side": "graft", ...}'

Each side is a whole training loop with its log, held between two steps while the other has its turn. steps.py
starts it and tells it when to work (common/pipe.py).
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import internals
import memory
import torch
from pipe import MIB, Link

import graft


class Stopped(Exception):
    """Enough has been seen."""


class Turns:
    """Counts the steps of a turn, and waits for the next one."""

    def __init__(self, pipe: Link, warm: int) -> None:
        self.pipe = pipe
        self.left = warm
        self.orders = pipe.orders()
        self.warm = True
        self.facts: dict[str, Any] = {}
        self.idle = memory.resident() / MIB
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def begin(self) -> None:
        """A step begins."""
        self.since = time.perf_counter()

    def end(self, loss: float) -> None:
        """A step ends; after the last of a turn, wait. Raises Stopped."""
        self.seconds.append(time.perf_counter() - self.since)
        self.losses.append(loss)
        self.left -= 1
        if self.left:
            return
        if self.warm:
            self.pipe.ready(**self.facts, losses=self.losses)
            self.warm = False
        else:
            self.pipe.say(seconds=self.seconds, losses=self.losses)
        self.seconds, self.losses = [], []
        order = next(self.orders, None)
        if order is None:
            raise Stopped
        self.left = order["units"]

    def stop(self) -> None:
        """Send the peak of the whole process, and what it held before there was a model."""
        self.pipe.say(peak_mib=memory.peak() / MIB, idle_mib=self.idle)


class Held(internals.Observer):  # type: ignore[misc]
    """Holds Graft's run, and measures what its reference takes before the first step."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.reference_since: float | None = None

    def note(self, text: str) -> None:
        if text.startswith("the reference reads"):
            self.reference_since = time.perf_counter()
        print(text)

    def start(self, plan: dict[str, Any]) -> None:
        spent = time.perf_counter() - self.reference_since if self.reference_since else 0.0
        self.turns.facts = {"reference_s": spent, "trained": plan["trained"]}
        self.turns.begin()

    def step(self, record: dict[str, Any]) -> None:
        self.turns.end(record["loss"])
        self.turns.begin()


def by_graft(turns: Turns, spec: dict[str, Any]) -> None:
    """Train by `graft.run`."""
    graft.run(spec["recipe"], observer=Held(turns))


def by_trl(turns: Turns, spec: dict[str, Any]) -> None:
    """Train by TRL's trainer."""
    import material
    import theirs

    class Paced(theirs.Timed):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.end(made.losses[-1])

    rows = material.rows(Path(spec["recipe"]["data"]["train"]))
    made = theirs.trainer(
        spec["stage"], Path(grid.model()), Path(spec["recipe"]["adapter"]), [rows[k] for k in spec["order"]],
        setting=grid.Setting(**spec["setting"]), beta=grid.BETA, centring=grid.CENTRING,
        folder=Path(spec["recipe"]["output"]), callbacks=[Paced()],
    )  # fmt: skip
    turns.facts = {"trained": sum(p.numel() for p in made.model.parameters() if p.requires_grad)}
    made.train()


def main() -> None:
    given = json.loads(sys.argv[1])
    spec = given | json.loads(Path(given["spec"]).read_text(encoding="utf-8"))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    turns = Turns(Link(), spec["warm"])
    spec["recipe"]["output"] += f"/{spec['side']}"
    try:
        {"graft": by_graft, "trl": by_trl}[spec["side"]](turns, spec)
    except Stopped:
        turns.stop()


if __name__ == "__main__":
    main()
