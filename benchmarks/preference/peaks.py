"""The peak of PPO beside that of supervised fine-tuning: the same base, batch and length, each in a process.

    python benchmarks/preference/peaks.py                a base of 28 million weights
    python benchmarks/preference/peaks.py --quick        a trial on a small base, which leaves the results be
    python benchmarks/collect.py preference              raw runs -> results.csv

Weights are random: memory does not depend on their values. Rows of SFT are prompt and answer, half each; PPO
writes answers of that length itself, and is paid by a reward adapter on the same base. The raw file is
runs/bench/preference/peaks.json.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import material
from columns import RESULTS
from results import machine, write_raw
from turns import Side, environment

SIDE = Path(__file__).with_name("step_side.py")
LENGTH, BATCH, MICRO, STEPS = 192, 8, 4, 2
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}


def main() -> None:
    options = _options()
    raw = RESULTS.raw / "trial" if options.quick else RESULTS.raw
    folder = material.WORK / "peaks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begun, load = time.perf_counter(), os.getloadavg()[0]
    recipes = written(folder, SMALL if options.quick else SHAPE)
    stages = {stage: peak(stage, recipe, folder, options.threads) for stage, recipe in recipes.items()}
    for stage, facts in stages.items():
        print(f"{stage:4} {facts['peak_mib']:.0f} MiB, {facts['idle_mib']:.0f} before there is a model")
    cell = {"data": "random", "seed": 0, "steps": STEPS, "batch_size": BATCH, "context": LENGTH}
    about = {"wall_s": time.perf_counter() - begun, "load": [load, os.getloadavg()[0]]}
    place = machine() | {"threads": options.threads}
    write_raw(raw / "peaks.json", {"cell": cell, "stages": stages, **about, "machine": place})


def written(folder: Path, shape: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Write rows, a base and a reward adapter; return the recipes of SFT and of PPO."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    import graft

    tokenizer = AutoTokenizer.from_pretrained(grid.model(), local_files_only=True)
    texts = [_text(tokenizer, random.Random(k)) for k in range(2 * BATCH)]
    answers = [{"prompt": a, "completion": b} for a, b in zip(texts, texts[1:] + texts[:1], strict=True)]
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": r["prompt"]} for r in answers]
    for name, rows in (("answers", answers), ("pairs", pairs), ("prompts", [{"prompt": t} for t in texts])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    fresh = {
        "model_type": "llama", "max_position_embeddings": 1024, "tie_word_embeddings": True,
        "vocab_size": len(tokenizer), **shape,
    }  # fmt: skip
    born = _recipe("sft", "answers", folder / "born", folder, {"config": fresh, "tokenizer": grid.model()})
    graft.run(born | {"method": {"name": "full"}, "train": born["train"] | {"max_steps": 1}})
    base = str(folder / "born" / "model")
    reward = _recipe("reward", "pairs", folder / "reward", folder, base)
    graft.run(reward | {"train": reward["train"] | {"max_steps": 1}})
    own = {
        "name": "ppo", "rewards": str(folder / "reward"), "prompts": BATCH, "group": 1, "epochs": STEPS,
        "max_new_tokens": LENGTH // 2,
    }  # fmt: skip
    return {
        "sft": _recipe("sft", "answers", folder / "sft", folder, base),
        "ppo": _recipe(own, "prompts", folder / "ppo", folder, base),
    }


def peak(stage: str, recipe: dict[str, Any], folder: Path, threads: int) -> dict[str, float]:
    """Return {peak_mib, idle_mib} of a run in a process of its own."""
    spec = folder / f"{stage}.json"
    spec.write_text(json.dumps({"recipe": recipe, "warm": STEPS}), encoding="utf-8")
    given = {"side": "graft", "spec": str(spec)}
    side = Side(SIDE, given, {**os.environ, **environment(threads)}, folder / f"{stage}.txt")
    try:
        return side.stop()
    finally:
        side.kill()


def _text(tokenizer: Any, chance: random.Random) -> str:
    """Return a text of half a row's tokens."""
    ids = [chance.randrange(300, len(tokenizer)) for _ in range(LENGTH)]
    while len(tokenizer(text := tokenizer.decode(ids))["input_ids"]) > LENGTH // 2 - 1:
        ids = ids[:-1]
    return text


def _recipe(stage: Any, rows: str, output: Path, folder: Path, model: Any) -> dict[str, Any]:
    return {
        "model": model, "dtype": "fp32", "stage": stage, "method": grid.LORA,
        "data": {"train": str(folder / f"{rows}.jsonl"), "eval": None, "max_length": LENGTH, "pack": False},
        "train": {
            "max_steps": STEPS, "batch_size": BATCH, "micro_batch_size": MICRO, "lr": 1e-5,
            "gradient_checkpointing": False,
        },
        "output": str(output),
    }  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small base, as a trial in a folder of its own"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process; all cores")
    return parser.parse_args()


if __name__ == "__main__":
    main()
