"""Pretrain on real books: next token, corrupted spans, masked tokens; a run that is finished is not done
again.

    python benchmarks/pretraining/run.py                  all three
    python benchmarks/pretraining/run.py --only causal    one
    python benchmarks/pretraining/run.py --steps 2        a trial, which leaves the results alone
    python benchmarks/collect.py pretraining              raw runs -> results.csv, curves.csv
    python benchmarks/pretraining/table.py                these -> RESULTS.md, losses.svg

    causal    a small fresh Llama and a tokenizer trained on the same text
    span      a small fresh T5, likewise
    masked    MiniLM, which has no language head: a fresh one is trained with the LoRA, its decoder tied to
              the table of words

Text: the same number of characters from the beginning of each of the 48 training books; held out: the three
books of the validation part. Raw runs go to runs/bench/pretraining/NAME.json.
"""

import argparse
import gzip
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import internals
import tasks
import torch
from columns import RESULTS
from results import RAW, machine, write_raw
from work import TRIAL

import graft

WORK = RAW.parent / "pretraining"
CHARACTERS = {"train": 60_000, "valid": 15_000}  # from each book
LLAMA = {
    "model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 192, "d_kv": 48, "d_ff": 512, "num_layers": 3, "num_decoder_layers": 3,
    "num_heads": 4, "dropout_rate": 0.0,
}  # fmt: skip
NEW_TOKENIZER = {"train": "bpe", "vocab_size": 2048}
HEAD = "cls.predictions.transform"
STEPS = {"causal": 300, "span": 300, "masked": 200}


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the recipes of the three runs."""
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
            "model": str(tasks.SHARED / "models" / "all-MiniLM-L6-v2"), "objective": "masked",
            "method": low_rank, "data": data | {"max_length": 64}, "train": train(8, 0.0),
        },
    }  # fmt: skip


def train(rows: int, weight_decay: float) -> dict[str, Any]:
    """Return the settings of training that the runs share."""
    size = {"batch_size": rows, "micro_batch_size": rows}
    return {**size, "lr": 2e-3, "schedule": "cosine", "weight_decay": weight_decay}


class Count(internals.Observer):
    """Remember how many parameters are trained."""

    trained = 0

    def start(self, plan: dict[str, Any]) -> None:
        self.trained = plan["trained"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(STEPS), nargs="+", default=list(STEPS))
    parser.add_argument("--steps", type=int, help="fewer steps, for a trial")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("GRAFT_CACHE", str(WORK / "cache"))
    raw = RESULTS.raw / TRIAL if options.steps else RESULTS.raw
    known = {} if options.steps else RESULTS.known(raw)
    for name, recipe in recipes(WORK / "data").items():
        if name in options.only and name not in known:
            steps = options.steps or STEPS[name]
            often = {"max_steps": steps, "eval_every": max(1, steps // 6), "save_every": steps}
            carry_out(name, recipe | {"train": recipe["train"] | often}, raw / f"{name}.json")


def books(folder: Path, split: str) -> Path:
    """Return the file with the beginning of every book of a split, a book a row; write it if it is
    missing."""
    path = folder / f"books-{split}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = tasks.SHARED / "data" / "gutenberg" / f"{split}.jsonl.gz"
        with gzip.open(source, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"][: CHARACTERS[split]] for line in lines]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def carry_out(name: str, recipe: dict[str, Any], raw: Path) -> None:
    """Carry out one run and write its raw file, with its losses."""
    output = WORK / "runs" / name
    load = os.getloadavg()[0]
    begun = time.perf_counter()
    settings = internals.read({**recipe, "output": str(output)})
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
        "before": columns[0], "after": columns[-1], "wall_s": time.perf_counter() - begun,
        "load": [load, os.getloadavg()[0]], "machine": machine(),
    }  # fmt: skip
    write_raw(raw, facts)
    shutil.rmtree(output)
    first, *_, last = [*facts["losses"], facts["losses"][-1]]
    print(f"done  {name}  loss {first:.3f} -> {last:.3f}  {facts['train_s']:.0f} s", flush=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
