"""What stands for `graft train` in tests of pages: it holds a run's folder and writes steps, without a model.

    python stand_in_run.py train RECIPE_OR_FOLDER

It writes a step every twentieth of a second; SIGTERM ends it after its step, with a checkpoint.
"""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

from graft.storage import commit, steps, write
from graft.storage.lock import locked

STEPS = 100_000
STEP_S = 0.05


def main(given: Path) -> None:
    """Hold the folder that a recipe of the studio names, and write steps after those that are there."""
    folder = given.parent.parent / given.stem if given.suffix == ".yaml" else given
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    with locked(folder):
        (folder / "checkpoints").mkdir(exist_ok=True)
        if given.suffix == ".yaml":
            shutil.copy(given, folder / "recipe.yaml")
        saved = steps(folder / "checkpoints")
        done = saved[0][0] if saved else 0
        _add(
            folder / "timing.jsonl",
            {"resumed": done} if done else {"start": {"time": "2026-11-30T06:11:08+00:00"}},
        )
        print("at work", flush=True)
        for step in range(done + 1, STEPS):
            _add(folder / "metrics.jsonl", {"step": step, "loss": 1 + 4 / step, "lr": 1e-3, "grad_norm": 1.0})
            _add(
                folder / "timing.jsonl",
                {"step": step, "seconds": STEP_S, "tokens_per_s": 900.0, "memory_mb": 90.0},
            )
            time.sleep(STEP_S)
            if asked:
                commit(
                    folder / "checkpoints" / f"step-{step:06}", lambda inner: write(inner / "state", b"abc")
                )
                return


def _add(path: Path, record: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[2]))
