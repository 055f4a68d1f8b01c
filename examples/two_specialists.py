"""Two specialists on one encoder: one names a product's shelf, one finds names and prices.

    python examples/two_specialists.py
    python examples/two_specialists.py --model sentence-transformers/all-MiniLM-L6-v2

Both are small adapters on the same frozen model. They are trained one after the other, and they answer one
batch row by row. Taking turns costs nothing: the first answers after the second as it did before, bit for
bit.
"""

import argparse
import json
from typing import Any

import torch

import graft
from graft.base.base import Base
from graft.evaluate import answers
from graft.seedling import dataset

TEXTS = [
    "Meet the Silver Otter, a kettle in deep green.",
    "This backpack is made of washed linen and costs forty euros.",
]


def classes(rows: str) -> tuple[str, ...]:
    """Return every label or tag that the rows of `seedling:ROWS` have."""
    read = [json.loads(line) for line in dataset(rows).read_text(encoding="utf-8").splitlines()]
    return tuple(sorted({name for row in read for name in row.get("tags", [row.get("label")])}))


def teach(base: Base, rows: str, pool: str, output: str, **train: Any) -> dict[str, dict[str, float]]:
    """Attach a specialist named after its rows, train it, and return its scores and the majority class's."""
    adapter = base.attach(rows, [graft.LoRA(r=8), graft.TaskHead(labels=classes(rows), pool=pool)])
    data = {"train": f"seedling:{rows}", "test": f"seedling:{rows}-held-out", "eval": None, "max_length": 64}
    keys = {"batch_size": 16, "micro_batch_size": 16, "lr": 5e-3, **train}
    return graft.train(base, adapter, data, stage="classify", output=f"{output}/{rows}", **keys).scores


def same_after_a_swap(base: Base, first: str, second: str) -> bool:
    """Return True if the first adapter gives the same logits before and after the second had its turn."""
    ids = base.tokenizer(TEXTS[:1], return_tensors="pt")["input_ids"]
    turns = []
    for name in (first, second, first):
        with base.using(name), torch.no_grad():
            turns.append(base(ids)[0])
    return torch.equal(turns[0], turns[2])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="seedling", help="a folder, a hub id, or the embedded model")
    parser.add_argument("--output", default="runs/two_specialists", help="where the two runs are kept")
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    options = parser.parse_args()

    torch.manual_seed(0)
    base = graft.load(options.model, dtype="fp32")
    pools = {"shelves": "mean", "entities": "none"}  # a class for the text, a class for every token
    for rows, pool in pools.items():
        for column, scores in teach(base, rows, pool, options.output, max_steps=options.steps).items():
            print(f"{rows:9} {column:9}" + "".join(f"  {name} {value:.3f}" for name, value in scores.items()))

    asked = [(text, name) for text in TEXTS for name in ("shelves", "entities")]
    for (_, name), answer in zip(asked, answers(base, *zip(*asked, strict=True)), strict=True):
        print(f"{name:9} {answer}")
    equal = same_after_a_swap(base, "shelves", "entities")
    print("shelves, entities, shelves:", "equal" if equal else "NOT equal")


if __name__ == "__main__":
    main()
