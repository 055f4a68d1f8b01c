"""Six mistakes of a user: what the error says, the exit code, and how long it takes.

    python benchmarks/reliability/errors.py

Exit 1 if an error ends in a traceback, has exit code 0, or does not say what was given, what was expected and
what to do. Exit 1 also if it takes more than a second although no model is needed: run this on an idle
machine, as the start of Python alone can take so long under load. The full disk is a tmpfs of 2 MiB, which
needs root.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[1] / "common"))
import internals

import graft

PAIR = {"prompt": "Describe: name: Alto", "completion": "The Alto is a lamp."}
SECONDS = 1.0  # the most that an error may take on an idle machine if no model is needed


def rows(folder: Path, *lines: dict[str, str]) -> str:
    """Write a JSONL file of eight good rows with these in their middle; return its path."""
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [PAIR] * 4 + [*lines] + [PAIR] * 4) + "\n")
    return str(path)


def train(data: str, folder: Path, *more: str) -> list[str]:
    """Return the words of a command for a short run."""
    words = ["train", "--model", "seedling", "--data", data, "train.max_steps=4", f"output={folder / 'run'}"]
    return [*words, "data.eval=null", *more]


def misspelt_key(folder: Path) -> list[str]:
    return train(rows(folder), folder, "train.lerning_rate=1e-4")


def row_without_answer(folder: Path) -> list[str]:
    return train(rows(folder, {"prompt": "Describe: name: Brio"}), folder)


def nan_in_the_base(folder: Path) -> list[str]:
    shutil.copytree(internals.SEEDLING, folder / "base")
    weights = folder / "base" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    return train(rows(folder), folder, f"model={folder / 'base'}")


def adapter_of_another_base(folder: Path) -> list[str]:
    base = graft.load(str(internals.SEEDLING))
    base.attach("mine", graft.LoRA(r=2)).save(folder / "adapter")
    shutil.copytree(internals.SEEDLING, folder / "base")
    weights = folder / "base" / "model.safetensors"
    save_file({k: v * 1.01 for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return ["eval", str(folder / "base"), "--adapter", str(folder / "adapter"), "--data", rows(folder)]


def targets_that_match_nothing(folder: Path) -> list[str]:
    return train(rows(folder), folder, "method.target_modules=[q_porj]")


def full_disk(folder: Path) -> list[str]:
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    return train(rows(folder), disk, "method.r=64")


# name: (makes the mistake and returns the command, whether a model must be opened to see it)
CASES: dict[str, tuple[Callable[[Path], list[str]], bool]] = {
    "a misspelt key": (misspelt_key, False),
    "a row without answer": (row_without_answer, False),
    "a NaN in the base weights": (nan_in_the_base, True),
    "an adapter of another base": (adapter_of_another_base, True),
    "target_modules that match nothing": (targets_that_match_nothing, True),
    "a full disk": (full_disk, True),
}


def main() -> None:
    wrong = 0
    for name, (make, needs_model) in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            words = make(Path(temporary))
            began = time.perf_counter()
            graft_command = [sys.executable, "-c", "from graft.cli import main; main()"]
            done = subprocess.run([*graft_command, *words], capture_output=True, text=True)
            seconds = time.perf_counter() - began
            subprocess.run(["umount", str(Path(temporary) / "disk")], capture_output=True)
        lines = done.stderr.strip().splitlines()
        problem = next((i for i, line in enumerate(lines) if line.startswith("graft: error")), len(lines))
        whole = done.returncode != 0 and "Traceback" not in done.stderr and len(lines[problem:]) >= 3
        ok = whole and (needs_model or seconds <= SECONDS)
        wrong += not ok
        print(f"{name}: exit {done.returncode}, {seconds:.2f} s{'' if ok else '   WRONG'}")
        print("\n".join(f"    {line}" for line in lines[problem:]), flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
