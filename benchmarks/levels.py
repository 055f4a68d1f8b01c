"""Compare what is trained with the C kernels off, and on at each level of instructions that runs here.

100 steps of QLoRA on the seedling (its own product rows) and on stories260K (TinyStories, from ../shared), in
fp32 or another format. Every level starts from the same seed; the band is what another seed alone changes,
with the kernels off. Prints the last losses and the held-out loss; exit 1 if a level lies outside the band,
or if two runs at one level differ in a single bit.

    python benchmarks/levels.py [--steps 100] [--dtype bf16]
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared"
SEEDS = 4
MODELS = {
    "seedling": {
        "model": "seedling",
        "data": {"train": "seedling:descriptions", "eval": 0.1, "limit": 400, "max_length": 256},
    },
    "stories260K": {
        "model": str(SHARED / "models" / "stories260K"),
        "data": {
            "train": str(SHARED / "data" / "tinystories" / "valid.jsonl"),
            "eval": 0.1, "limit": 200, "max_length": 256,
        },
        "stage": "pretrain",
    },
}  # fmt: skip


def train(name: str, steps: int, seed: int, dtype: str) -> dict[str, float | str]:
    """Return the mean loss of the last ten steps, the held-out loss, and the digest of the adapter."""
    import graft

    with tempfile.TemporaryDirectory() as folder:
        recipe = MODELS[name] | {
            "quant": "nf4",
            "dtype": dtype,
            "method": {"name": "lora", "r": 8, "target_modules": "all-linear"},
            "train": {"max_steps": steps, "batch_size": 8, "micro_batch_size": 8, "lr": 1e-3, "seed": seed,
                      "log_every": 1},
            "evaluate": {"metrics": ["perplexity"]},
            "output": f"{folder}/run",
        }  # fmt: skip
        result = graft.run(recipe)
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
        adapter = Path(folder, "run", "adapter", "adapter_model.safetensors").read_bytes()
        held_out = math.log(result.scores["after"]["perplexity"])
    return {"last": sum(losses[-10:]) / 10, "held_out": held_out, "digest": sha256(adapter).hexdigest()}


def at(level: str, name: str, steps: int, seed: int, dtype: str) -> dict[str, float | str]:
    """Train in a fresh process at a level."""
    command = [sys.executable, __file__, "--train", name, str(seed), "--steps", str(steps), "--dtype", dtype]
    done = subprocess.run(
        command, env={**os.environ, "GRAFT_KERNELS": level}, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def levels() -> list[str]:
    """Return the levels that run here, the reference first."""
    code = "from graft.kernels import native; print(*native.levels())"
    found = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return ["reference", *found.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(train(options.train[0], options.steps, int(options.train[1]), options.dtype)))
        return
    wrong = 0
    for name, recipe in MODELS.items():
        if not (recipe["model"] == "seedling" or Path(recipe["model"]).exists()):
            print(f"{name}: left out, its model is not beside the checkout")
            continue
        seeds = [at("reference", name, options.steps, seed, options.dtype) for seed in range(SEEDS)]
        for level in levels():
            one, again = (at(level, name, options.steps, 0, options.dtype) for _ in range(2))
            wrong += one["digest"] != again["digest"]
            for what in ("last", "held_out"):
                low, high = (extreme(float(s[what]) for s in seeds) for extreme in (min, max))
                inside = low - (high - low) <= float(one[what]) <= high + (high - low)
                wrong += not inside
                print(
                    f"{name:12} {level:12} {what:9} {one[what]:.5f}   band {low:.5f} to {high:.5f}"
                    f"   {'inside' if inside else 'OUTSIDE'}   same bytes: {one['digest'] == again['digest']}"
                )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
