"""One run of the comparison, in this process: python benchmarks/methods/one.py NAME [--steps N]"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import internals
import memory
import ours
import rows
import tasks
import work
from columns import RESULTS

MIB = 2**20


class Watch(internals.Observer):
    """Count what is trained, and measure memory from the loaded base and rows to the last step."""

    def __init__(self) -> None:
        self.trained = self.level = self.most = 0

    def loaded(self) -> None:
        """Start to measure: base and rows are loaded, and there is no adapter yet."""
        self.level = memory.resident()
        memory.forget()

    def start(self, plan: dict[str, Any]) -> None:
        self.trained = plan["trained"]

    def finished(self, record: dict[str, Any]) -> None:
        self.most = memory.peak()

    @property
    def peak_mib(self) -> float:
        """The peak above the memory of base and rows."""
        return (self.most - self.level) / MIB


def main() -> None:
    work.run_one(__doc__, RESULTS, grid.cells, describe, carry_out)


def carry_out(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    """Train and test with the cell's tool."""
    facts = ours_of(cell, folder) if cell.tool == "graft" else peers_of(cell, folder)
    return {"cpu_s": time.process_time(), **facts}


def ours_of(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    """Train, count and test with Graft."""
    recipe = internals.read(cell.recipe(folder))
    watch = Watch()
    level(recipe, watch)
    try:
        trained = ours.train(recipe, watch)
    except internals.Interrupted:
        raise
    except internals.TrainingError as error:
        return {"diverged": error.given, "trained": watch.trained}
    opened = internals.open_model(recipe.output)
    feed, _ = internals.training_feed(recipe, opened.base)
    cases, _ = tasks.test_of(rows.held(cell.material()))
    with opened.base.using(opened.adapter):
        held = internals.mean_loss(recipe, opened.base, ours.test_feed(recipe, opened.base, cases))
    size = weights_size(folder / "adapter")
    return judged(trained, lambda: ours.score(cell, recipe, opened), held, feed, watch, size)


def level(recipe: Any, watch: Watch) -> None:
    """Load base and rows and free them again: the run that follows puts its own into the same memory."""
    base = internals.load_base(recipe)
    held = base, internals.training_feed(recipe, base)
    watch.loaded()
    del base, held


def peers_of(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    """The same with the peer."""
    from peer import (
        Peer,
    )  # late: PEFT and bitsandbytes take seconds to import, and our runs must not need them

    recipe = internals.read(cell.recipe(folder))
    watch = Watch()
    peer = Peer(cell, recipe, **cell.peft(), loaded=watch.loaded)
    watch.start({"trained": sum(p.numel() for p in peer.trained)})
    trained = peer.train()
    watch.finished({})
    cases, _ = tasks.test_of(rows.held(cell.material()))
    held = peer.held_loss(cases)
    with TemporaryDirectory() as saved:
        peer.model.save_pretrained(saved)
        size = weights_size(Path(saved))
    return judged(trained, peer.score, held, peer.feed, watch, size)


def weights_size(folder: Path) -> int:
    """Return the bytes of a folder's safetensors files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def judged(
    trained: dict[str, Any], score: Callable[[], dict[str, Any]], held: float, feed: Any, watch: Watch,
    size: int,
) -> dict[str, Any]:  # fmt: skip
    """Return what a run is measured by; one that ended in NaN is not tested."""
    facts = {"trained": watch.trained, "file_bytes": size, "peak_mib": watch.peak_mib}
    facts |= {"tokens_per_s": speed(trained["step_seconds"], feed)}
    if not math.isfinite(held):
        return {"diverged": "the loss on held-out rows is not finite"} | facts
    return trained | {"held_loss": held} | score() | facts


def speed(seconds: list[float], feed: Any) -> float:
    """Return the tokens per second of the median step, prompts included and padding not."""
    steps = [feed.step(*divmod(step, feed.steps_per_epoch)) for step in range(len(seconds))]
    tokens = [sum(int(batch.inputs["attention_mask"].sum()) for batch in batches) for batches in steps]
    return statistics.median(n / s for n, s in zip(tokens, seconds, strict=True))


def describe(cell: grid.Cell) -> dict[str, Any]:
    """Return the run in words and numbers, with the counts of its rows."""
    s = cell.setting
    method = json.loads(json.dumps(cell.method()).replace(f"{tasks.ROOT}/", ""))
    return {
        "base": s.base, "task": s.task, "line": cell.line, "method": method,
        "tool": cell.tool, "lr": cell.lr, "seed": cell.seed, "steps": s.steps, "batch_size": s.batch_size,
        "counts": tasks.test_of(cell.material())[1] | {"held": tasks.test_of(rows.held(cell.material()))[1]},
    }  # fmt: skip


if __name__ == "__main__":
    main()
