"""Pretraining on real books: next token, corrupted spans, masked tokens.

    python benchmarks/real/pretrain.py [--only causal] [--steps 300]

    causal    a small fresh Llama and a tokenizer trained on the same text
    span      a small fresh T5, likewise
    masked    MiniLM, which has no language head: a fresh one is trained with the LoRA, the decoder tied to the table

Text: the same number of characters from the beginning of each of the 48 training books; held out: the three books of
the validation part. Leaves results/pretrain-NAME.json with every loss; table.py draws them.
"""

import argparse
import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import result
import run
import tasks
import torch

import graft
from graft.recipe import read
from graft.runs.run import RunObserver

CHARACTERS = {"train": 60_000, "valid": 15_000}  # from each book
LLAMA = {
    "model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 192, "d_kv": 48, "d_ff": 512, "num_layers": 3, "num_decoder_layers": 3,
    "num_heads": 4, "dropout_rate": 0.0,
}  # fmt: skip
NEW_TOKENIZER = {"train": "bpe", "vocab_size": 2048}
HEAD = "cls.predictions.transform"
STEPS = {"causal": 300, "span": 300, "masked": 200}


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """The three runs."""
    data = {"train": str(books(folder, "train")), "eval": str(books(folder, "valid"))}
    usual = {"stage": "pretrain", "dtype": "fp32", "evaluate": {"metrics": ["loss", "perplexity"]}}
    fresh = usual | {"data": data | {"max_length": 128}, "train": train(16, 0.01)}
    low_rank = {
        "name": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear",
        "exclude_modules": [f"{HEAD}.dense"], "modules_to_save": [HEAD],
    }  # fmt: skip
    return {
        "causal": fresh | {"model": {"config": LLAMA, "tokenizer": NEW_TOKENIZER}, "objective": "causal"},
        "span": fresh | {"model": {"config": T5, "tokenizer": NEW_TOKENIZER}, "objective": "span"},
        "masked": usual | {
            "model": str(tasks.SHARED / "models" / "all-MiniLM-L6-v2"), "objective": "masked", "method": low_rank,
            "data": data | {"max_length": 64}, "train": train(8, 0.0),
        },
    }  # fmt: skip


def train(rows: int, weight_decay: float) -> dict[str, Any]:
    """What the runs share."""
    return {
        "batch_size": rows,
        "micro_batch_size": rows,
        "lr": 2e-3,
        "schedule": "cosine",
        "weight_decay": weight_decay,
    }


class Count(RunObserver):
    """Remembers how many numbers are trained."""

    trained = 0

    def start(self, plan: dict[str, Any]) -> None:
        self.trained = plan["trained"]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--only", choices=list(STEPS), nargs="+", default=list(STEPS))
    words.add_argument("--steps", type=int, help="fewer steps, for a trial; results go to runs/real/trial")
    words.add_argument("--threads", type=int, default=2)
    asked = words.parse_args()
    torch.set_num_threads(asked.threads)
    os.environ.setdefault("GRAFT_CACHE", str(tasks.WORK / "cache"))
    results = run.TRIAL if asked.steps else run.RESULTS
    for name, recipe in recipes(tasks.WORK / "data").items():
        if name in asked.only and (asked.steps or not (results / f"pretrain-{name}.json").exists()):
            steps = asked.steps or STEPS[name]
            recipe["train"] = recipe["train"] | {
                "max_steps": steps,
                "eval_every": max(1, steps // 6),
                "save_every": steps,
            }
            carry_out(name, recipe, tasks.WORK / "pretrain" / name, results)


def books(folder: Path, split: str) -> Path:
    """The beginning of every book of a split, a book a row."""
    path = folder / f"books-{split}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(
            tasks.SHARED / "data" / "gutenberg" / f"{split}.jsonl.gz", "rt", encoding="utf-8"
        ) as lines:
            texts = [json.loads(line)["text"][: CHARACTERS[split]] for line in lines]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def carry_out(name: str, recipe: dict[str, Any], output: Path, results: Path) -> None:
    """One run, and its curve as JSON."""
    settings = read({**recipe, "output": str(output)})
    observer = Count()
    done = graft.run(settings, observer=observer)
    metrics, timing = (_lines(output / file) for file in ("metrics.jsonl", "timing.jsonl"))
    model = settings.model.config["model_type"] if settings.fresh else Path(str(settings.model)).name
    columns = list(done.scores.values())
    facts = {
        "pretrain": name, "model": f"fresh {model}" if settings.fresh else model,
        "trained": observer.trained, "steps": done.steps, "tokens": done.tokens,
        "losses": [round(line["loss"], 5) for line in metrics if "loss" in line],
        "eval": [[line["step"], round(line["eval_loss"], 5)] for line in metrics if "eval_loss" in line],
        "train_s": sum(line["seconds"] for line in timing if "seconds" in line),
        "before": columns[0], "after": columns[-1], "machine": result.machine(),
    }  # fmt: skip
    result.write(results / f"pretrain-{name}.json", facts)
    shutil.rmtree(output)
    print(
        f"done  {name}  loss {facts['losses'][0]:.3f} -> {facts['losses'][-1]:.3f}  {facts['train_s']:.0f} s",
        flush=True,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
