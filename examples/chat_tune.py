"""Tune a model on conversations: the loss counts only what the assistant says.

    python examples/chat_tune.py

The rows have `messages`, as most chat data has. The seedling has no chat template, so the data names a
built-in one.
"""

import json
from itertools import islice
from pathlib import Path

import graft
from graft.seedling import dataset

ASKED = (
    "Write a product description.\n\nname: Silver Otter\ntype: kettle\ncolour: deep green\n\nDescription:\n"
)


def write_conversations(path: Path, count: int = 400) -> None:
    """Write the embedded prompts and answers as conversations of two turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with dataset("descriptions").open() as lines, path.open("w") as out:
        for row in map(json.loads, islice(lines, count)):
            user, assistant = {"content": row["prompt"]}, {"content": row["completion"]}
            messages = [{"role": "user", **user}, {"role": "assistant", **assistant}]
            out.write(json.dumps({"messages": messages}) + "\n")


def main(steps: int = 30) -> list[str]:
    rows = Path("runs/chat_rows.jsonl")
    write_conversations(rows)
    base = graft.load("seedling", dtype="fp32")
    writer = base.attach("writer", graft.LoRA(r=16))
    data = {"train": str(rows), "eval": None, "template": "zephyr"}
    result = graft.train(base, writer, data, max_steps=steps, lr=5e-3, output="runs/chat_tune")
    print(f"{result.steps} steps, {result.tokens:,} tokens learnt, last loss {result.loss:.3f}")

    question = [{"role": "user", "content": ASKED}]
    answers = base.generate([question, question], adapters=["writer", None], max_new_tokens=30)
    for name, answer in zip(("with the adapter", "bare base"), answers, strict=True):
        print(f"{name:17}", repr(answer))
    return answers


if __name__ == "__main__":
    main()
