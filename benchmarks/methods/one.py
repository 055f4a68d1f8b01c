"""One run of the comparison, in this process: python benchmarks/methods/one.py NAME RESULTS [--steps N]"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import memory
import ours
import result
import rows
import tasks
import torch

from graft.errors import TrainingError
from graft.evaluate.perplexity import perplexity
from graft.formats.peft import WEIGHTS
from graft.recipe import read
from graft.runs.build import load_base
from graft.runs.open import open_model
from graft.runs.run import RunObserver
from graft.training.signals import Interrupted

MIB = 2**20


class Watch(RunObserver):
    """Counts what is trained, and measures memory from the loaded base and rows to the last step."""

    def __init__(self) -> None:
        self.trained = self.level = self.most = 0

    def loaded(self) -> None:
        """Base and rows are there, and no adapter yet."""
        self.level = memory.resident()
        memory.forget()

    def start(self, plan: dict[str, Any]) -> None:
        self.trained = plan["trained"]

    def finished(self, record: dict[str, Any]) -> None:
        self.most = memory.peak()

    @property
    def peak_mib(self) -> float:
        """Above the level."""
        return (self.most - self.level) / MIB


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("name")
    words.add_argument("results", type=Path)
    words.add_argument("--steps", type=int)
    asked = words.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cell = next(cell for cell in grid.cells(asked.results) if cell.name == asked.name)
    if asked.steps:
        cell = replace(cell, setting=replace(cell.setting, steps=asked.steps))
    load, begun = os.getloadavg()[0], time.perf_counter()
    folder = grid.WORK / "runs" / f"{cell.name}.{cell.setting.steps}"
    shutil.rmtree(
        folder, ignore_errors=True
    )  # of a run that was broken off: its memory and speed would not be whole
    found = ours_of(cell, folder) if cell.tool == "graft" else peers_of(cell, folder)
    spent = {
        "wall_s": time.perf_counter() - begun,
        "cpu_s": time.process_time(),
        "load": [load, os.getloadavg()[0]],
    }
    facts = {"cell": describe(cell), **spent, **found, "machine": result.machine()}
    result.write(asked.results / f"{cell.name}.json", facts)
    shutil.rmtree(folder, ignore_errors=True)


def ours_of(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    """Train, count and test with Graft."""
    recipe, watch = read(cell.recipe(folder)), Watch()
    level(recipe, watch)
    try:
        found = ours.train(recipe, watch)
    except Interrupted:
        raise
    except TrainingError as error:
        return {"diverged": error.given, "trained": watch.trained}
    opened = open_model(recipe.output)
    feed, _ = ours.training_feed(recipe, opened.base)
    cases, _ = tasks.test_of(rows.held(cell.material()))
    with opened.base.using(opened.adapter):
        held = perplexity(opened.base, ours.test_feed(cell, recipe, opened.base, cases))["loss"]
    size = (folder / "adapter" / WEIGHTS).stat().st_size
    return judged(found, lambda: ours.score(cell, recipe, opened), held, feed, watch, size)


def level(recipe: Any, watch: Watch) -> None:
    """Load base and rows and let them go again: the run that follows puts its own into the same memory."""
    base = load_base(recipe)
    held = base, ours.training_feed(recipe, base)
    watch.loaded()
    del base, held


def peers_of(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    """The same with the peer."""
    from peer import (
        Peer,
    )  # late: PEFT and bitsandbytes take seconds to import, and our runs shall not need them

    recipe, watch = read(cell.recipe(folder)), Watch()
    peer = Peer(cell, recipe, **cell.peft(), loaded=watch.loaded)
    watch.start({"trained": sum(p.numel() for p in peer.trained)})
    found = peer.train()
    watch.finished({})
    cases, _ = tasks.test_of(rows.held(cell.material()))
    held = peer.held_loss(cases)
    with TemporaryDirectory() as saved:
        peer.model.save_pretrained(saved)
        size = sum(path.stat().st_size for path in Path(saved).glob("*.safetensors"))
    return judged(found, peer.score, held, peer.feed, watch, size)


def judged(
    found: dict[str, Any],
    score: Callable[[], dict[str, Any]],
    held: float,
    feed: Any,
    watch: Watch,
    size: int,
) -> dict[str, Any]:
    """What a run is measured by; one that ended in NaN is not tested."""
    facts = {"trained": watch.trained, "file_bytes": size, "peak_mib": watch.peak_mib}
    facts |= {"tokens_per_s": speed(found["step_seconds"], feed)}
    if not math.isfinite(held):
        return {"diverged": "the loss on held-out rows is not finite"} | facts
    return found | {"held_loss": held} | score() | facts


def speed(seconds: list[float], feed: Any) -> float:
    """Live tokens a second of the median step, prompts included."""
    steps = [feed.step(*divmod(step, feed.steps_per_epoch)) for step in range(len(seconds))]
    tokens = [sum(int(batch.inputs["attention_mask"].sum()) for batch in batches) for batches in steps]
    return statistics.median(n / s for n, s in zip(tokens, seconds, strict=True))


def describe(cell: grid.Cell) -> dict[str, Any]:
    """The run in words and numbers, with the count of its rows."""
    s, method = cell.setting, json.loads(json.dumps(cell.method()).replace(f"{tasks.ROOT}/", ""))
    return {
        "name": cell.name, "base": s.base, "task": s.task, "line": cell.line, "method": method,
        "tool": cell.tool, "lr": cell.lr, "seed": cell.seed, "steps": s.steps, "batch_size": s.batch_size,
        "counts": tasks.test_of(cell.material())[1] | {"held": tasks.test_of(rows.held(cell.material()))[1]},
    }  # fmt: skip


if __name__ == "__main__":
    main()
