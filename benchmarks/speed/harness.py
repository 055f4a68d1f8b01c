"""Both sides of a row in one run, turn by turn: A B C, C B A, A B C ...

Every side is a process of its own, which loads its model, warms up, and then works only when it is told. A
round is one turn of every side. A round in which other processes used more than half a core is thrown away
and repeated; a row without enough quiet rounds has no speeds.
"""

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grid import BEFORE, Row
from shapes import SHAPES
from turns import MOST, Others, Side, environment
from weights import RANK

PROMPT = 16  # tokens in front of a text that is written
TRIED = 2  # steps by which a peer's variants are compared, after one that does not count
HOPELESS = 5.0  # a variant whose first step takes so many times the best one's is not tried further
LIMITS = "limits"
ALLOCATOR = {  # large tensors stay in the process: glibc gives them back and faults them in again otherwise
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
SIDE = Path(__file__).with_name("side.py")


class Run:
    """One row being measured.

    folder: of the weights.  logs: where the sides' output goes.  threads: of every side.
    before: the source folder of an older checkout, for the side of that name.
    patience_s: how long a round may wait for a quiet machine.
    """

    def __init__(
        self, row: Row, folder: Path, logs: Path, threads: int, *, before: str | None = None,
        patience_s: float = 0.0, say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        self.row, self.folder, self.logs, self.threads = row, folder, logs, threads
        self.before, self.patience_s, self.say = before, patience_s, say
        self.others = Others()
        self.running: dict[str, Side] = {}
        self.rounds: list[dict[str, Any]] = []  # {"others", "turns": {side: {"seconds", ...}}}
        self.ended: dict[str, dict[str, Any]] = {}

    def measure(self) -> dict[str, Any]:
        """Carry the row out and return its raw facts."""
        try:
            facts: dict[str, Any] = {"reference": self._reference()}
            variants = {name: self._variant(name) for name in self.row.sides}
            for name in [*self.row.sides, LIMITS] if self.row.lasting else [LIMITS]:
                self.say(f"  loading  {name}")
                self.running[name] = self._start(name, variant=variants.get(name))
            ready = {name: side.facts for name, side in self.running.items()}
            self._turns()
            facts["parts"] = self._profiles()
            for name, side in list(self.running.items()):
                self.ended[name] = side.stop()
            return facts | {"ready": ready, "rounds": self.rounds, "ended": self.ended}
        finally:
            for side in self.running.values():
                side.kill()

    def _start(self, name: str, **more: Any) -> Side:
        """Start a side and wait until it has warmed up."""
        tuned = ALLOCATOR if name == "tuned" else {}
        cache = {"GRAFT_CACHE": str(self.logs / "cache")}
        variables = {**os.environ, **tuned, **environment(self.threads), **cache}
        if name == BEFORE and self.before:
            variables["PYTHONPATH"] = os.pathsep.join([self.before, os.environ.get("PYTHONPATH", "")])
        side = Side(SIDE, self._spec(name) | more, variables, self.logs / f"{self.row.name}.txt")
        self.others.pids.add(side.pid)
        return side

    def _spec(self, name: str) -> dict[str, Any]:
        row = self.row
        own = row.sides.get(name, {})
        common = {"side": name, "shape": row.shape, "folder": str(self.folder), "prompt": PROMPT}
        kind = name if name == LIMITS else row.kind
        usual = {"quant": "none", "dtype": "auto", "warm": row.warm}
        return {**common, "kind": kind, **usual, **row.work, **own}

    def _reference(self) -> dict[str, Any] | None:
        """Return what the same weights give in fp32: a loss, or greedy tokens."""
        wanted = self.row.kind == "train" or (self.row.kind == "decode" and self.row.work.get("rows") == 1)
        if not wanted:
            return None
        self.say("  fp32 reference")
        settings = next(iter(self.row.sides.values()))
        side = self._start("reference", kind="reference", of=self.row.kind, **settings)
        side.stop()
        return side.facts

    def _variant(self, name: str) -> str | None:
        """Return the fastest variant of the tuned peer, by a few steps of each."""
        if name != "tuned":
            return None
        asked = self.row.work["dtype"]
        if given := self.row.work.get("variant"):
            return str(given)
        candidates = {"fp32": ["fp32"], "bf16": ["bf16", "autocast"]}.get(asked, ["fp32", "bf16", "autocast"])
        speed: dict[str, float] = {}
        for variant in candidates:
            side = self._start(name, variant=variant, warm=0)
            (first,) = side.ask(do="turn", units=1)["seconds"]
            # The first step is slower than the others, but not so much.
            hopeless = bool(speed) and first > HOPELESS * min(speed.values())
            tried = [first] if hopeless else side.ask(do="turn", units=TRIED)["seconds"]
            speed[variant] = statistics.median(tried)
            side.stop()
        best = min(speed, key=lambda variant: speed[variant])
        self.say(f"  tuned    {best}, of " + ", ".join(f"{name} {s:.2f} s" for name, s in speed.items()))
        return best

    def _turns(self) -> None:
        """Take rounds until enough of them were quiet, or none can be hoped for."""
        quiet = 0
        most = self.row.rounds * self.row.tries
        for number in range(most):
            order = list(self.row.sides) if number % 2 == 0 else list(self.row.sides)[::-1]
            self.others.wait(self.patience_s)
            limits = self.running[LIMITS].ask(do="turn", units=1)["results"][0]
            self.others.cores()
            turns = {name: self._turn(name) for name in order}
            others = self.others.cores()
            self.rounds.append({"others": others, "limits": limits, "turns": turns})
            shown = "  ".join(f"{n} {statistics.median(t['seconds']):.3f} s" for n, t in turns.items())
            noisy = "" if others <= MOST else "   NOT QUIET"
            self.say(f"  round {number + 1}  {shown}  others {others:.2f}{noisy}")
            quiet += others <= MOST
            if quiet == self.row.rounds or quiet + most - number - 1 < self.row.rounds:
                return

    def _turn(self, name: str) -> dict[str, Any]:
        if self.row.lasting:
            return self.running[name].ask(do="turn", units=self.row.turn)
        side = self._start(name)
        self.running[name] = side
        done = side.ask(do="turn", units=self.row.turn)
        self.ended[name] = side.facts | done | side.stop()
        del self.running[name]
        return {"seconds": done["seconds"], "peak_mib": self.ended[name]["peak_mib"]}

    def _profiles(self) -> dict[str, dict[str, float]]:
        """Return the seconds of a step by part, for every side of a training row."""
        if self.row.kind != "train":
            return {}
        dimensions = {"vocabulary": SHAPES[self.row.shape].vocabulary, "rank": RANK}
        order = {"do": "profile", "dimensions": dimensions}
        return {name: self.running[name].ask(**order)["parts"] for name in self.row.sides}
