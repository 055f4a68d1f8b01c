"""Kill a run in the middle and start it again: it ends with the bytes of a run that nobody disturbed.

    python examples/resume_after_a_kill.py

The kill is SIGKILL, which no program can catch. The same call resumes from the last checkpoint.
"""

import hashlib
import multiprocessing
import os
import signal
from pathlib import Path

import torch

import graft

DATA = {"train": "seedling:descriptions", "limit": 100, "eval": None}


class Killer(graft.Observer):
    """Kill this process after a step."""

    def step(self, record: dict) -> None:
        if record["step"] == 8:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: str, observer: graft.Observer | None = None) -> str:
    """Train an adapter into a run's folder, and return the SHA-256 of its file."""
    base = graft.load("seedling", dtype="fp32")
    torch.manual_seed(0)  # of the newborn adapter; `graft train` and `graft.run` do this by themselves
    adapter = base.attach("shop", graft.LoRA(r=4))
    keys = {"max_steps": 12, "save_every": 5, "batch_size": 4, "evaluate": {"limit": 4}, "seed": 0}
    result = graft.train(base, adapter, DATA, output=folder, observer=observer, **keys)
    return hashlib.sha256((result.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def main(folder: str = "runs/resume") -> bool:
    child = multiprocessing.get_context("spawn").Process(target=train, args=(f"{folder}/killed", Killer()))
    child.start()
    child.join()
    checkpoints = sorted(path.name for path in Path(folder, "killed/checkpoints").iterdir())
    print(f"killed: exit code {child.exitcode}, checkpoints {checkpoints}")
    resumed, undisturbed = train(f"{folder}/killed"), train(f"{folder}/undisturbed")
    print(f"resumed     {resumed[:16]}\nundisturbed {undisturbed[:16]}")
    return resumed == undisturbed


if __name__ == "__main__":
    print("equal" if main() else "NOT equal")
