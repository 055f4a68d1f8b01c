"""Kill real runs with SIGKILL at random moments; each must end with the bytes of an undisturbed one.

The runs, the moments and the comparison are those of benchmarks/reliability/kill.py. A case is one chain: a
run that is killed again and again, and then finishes.
"""

import argparse
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import children
import recorder
from cells import Cell, Fault, Outcome, counts

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"))
import kill

CACHED = {"OMP_NUM_THREADS": "1"}


class Kills:
    """The stand of one kind of run: chains without end.  size: steps, kills and steps between saves."""

    total: int | None = None

    def __init__(self, folder: Path, kind: str, size: dict[str, int]) -> None:
        self.folder, self.kind = folder, kind
        self.options = argparse.Namespace(model="seedling", data="seedling:descriptions", **size)
        path = kill.recipe(folder / kind / "calm", kind, self.options)
        if start(path).wait() != 0:
            raise Fault(f"the undisturbed run fails: {(path.parent / 'talk.txt').read_text()[-400:]}")
        self.calm = kill.digests(path.parent)

    def name(self, number: int) -> str:
        return f"{self.options.kills} kills of {self.kind}, seed {number}"

    def case(self, number: int) -> Outcome:
        place = recorder.cleared(self.folder / self.kind / "killed")
        path = kill.recipe(place, self.kind, self.options)
        try:
            trial = kill.disturbed(path, self.options, random.Random(f"{self.kind} {number}"), start)
        except kill.Lost as lost:
            raise Fault(str(lost)) from None
        pairs = zip(("adapter", "metrics"), self.calm, kill.digests(place), strict=True)
        names = [name for name, calm, killed in pairs if calm != killed]
        if names:
            raise Fault(f"{' and '.join(names)} differ after going on from {trial.resumed}")
        repeated = max(trial.repeated, default=0)
        if repeated > self.options.save_every:
            raise Fault(f"{repeated} steps were done twice, {self.options.save_every} at most are lost")
        return Outcome(facts={"repeated": repeated}, sums={"kills": trial.kills})

    def close(self) -> None:
        recorder.cleared(self.folder / self.kind)


def start(path: Path, before: str = "") -> Any:
    """Start the run of a recipe.  before: a program that its process runs first."""
    first = partial(exec, before, {}) if before else None
    return children.start(["train", str(path)], path.parent / "talk.txt", CACHED, first)


SIZE = {"steps": 60, "kills": 8, "save_every": 10}
SMALL = {"steps": 8, "kills": 2, "save_every": 3}
CELLS = [
    *(
        Cell("kill -9", kind, lambda f, kind=kind: Kills(f, kind, SIZE), counts(0, 1, 4))
        for kind in kill.KINDS
    ),
    Cell("kill -9", "short run", lambda f: Kills(f, "lora-fp32", SMALL), counts(1, 1, 4)),
]
