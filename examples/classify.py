"""Sort texts into classes: a LoRA and a task head, trained on rows with a label.

    python examples/classify.py

The scores stand next to those of always answering with the most frequent class.
"""

import graft
from graft.evaluate import answers

LABELS = ("bag", "desk", "device", "furniture", "garment", "kitchen", "light", "outdoor")
TEXTS = [
    "Meet the Silver Otter, a kettle in deep green.",
    "This jumper is made of washed linen and costs forty euros.",
]


def main(steps: int = 40) -> dict[str, dict[str, float]]:
    base = graft.load("seedling", dtype="fp32")
    shelves = base.attach("shelves", [graft.LoRA(r=8), graft.TaskHead(labels=LABELS, pool="mean", lr=1e-2)])
    data = {"train": "seedling:shelves", "test": "seedling:shelves-held-out", "eval": None, "max_length": 64}
    rates = {"max_steps": steps, "micro_batch_size": 16, "lr": 5e-3}
    result = graft.train(base, shelves, data, stage="classify", output="runs/classify", **rates)

    print(f"{shelves.count():,} trainable parameters; the base has {base.count():,}")
    for column, scores in result.scores.items():
        print(f"{column:9}", "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    for text, label in zip(TEXTS, answers(base, TEXTS, ["shelves", "shelves"]), strict=True):
        print(f"{label:12} {text}")
    return result.scores


if __name__ == "__main__":
    main()
