"""Sums that a program checks: `12 + 7 =` is answered by ` 19`.

The rows are all pairs of numbers below LIMIT, in an order that is drawn once: the first are held out, the
next are examples to learn from, and all others only ask. `right` is the reward: a function as users write
them, which gets the column `total`.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

LIMIT, HELD_OUT, EXAMPLES = 100, 200, 3000


def write(folder: Path) -> None:
    """Write answers.jsonl, to learn by example; prompts.jsonl and asked.jsonl, {prompt, total}; once."""
    if (folder / "asked.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(a, b) for a in range(LIMIT) for b in range(LIMIT)]
    random.Random(0).shuffle(pairs)
    asked = [{"prompt": f"{a} + {b} =", "total": a + b} for a, b in pairs]
    held, examples, others = (
        asked[:HELD_OUT], asked[HELD_OUT : HELD_OUT + EXAMPLES], asked[HELD_OUT + EXAMPLES :]
    )  # fmt: skip
    answers = [{"prompt": row["prompt"], "completion": f" {row['total']}"} for row in examples]
    for name, rows in (("answers", answers), ("prompts", others), ("asked", held)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def right(completions: Sequence[str], total: Sequence[int]) -> list[float]:
    """Return 1 for every answer that is the sum and nothing else, 0 for the others.

    >>> right([" 19", " 19 or so", "", " 7"], [19, 19, 19, 8])
    [1.0, 0.0, 0.0, 0.0]
    """
    return [float(text.strip() == str(value)) for text, value in zip(completions, total, strict=True)]
