"""Sums that a program checks: `12 + 7 =` is answered by ` 19`.

The rows of all pairs of numbers below LIMIT, drawn once: some are held out, the others are learnt. `right` is
the reward: a function as users write them, which gets the column `total`.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

LIMIT, HELD_OUT = 20, 100


def write(folder: Path) -> None:
    """Write answers.jsonl, to learn by example; prompts.jsonl and asked.jsonl, {prompt, total}; once."""
    if (folder / "asked.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(a, b) for a in range(LIMIT) for b in range(LIMIT)]
    random.Random(0).shuffle(pairs)
    asked = [{"prompt": f"{a} + {b} =", "total": a + b} for a, b in pairs]
    answers = [{"prompt": row["prompt"], "completion": f" {row['total']}"} for row in asked[HELD_OUT:]]
    for name, rows in (("answers", answers), ("prompts", asked[HELD_OUT:]), ("asked", asked[:HELD_OUT])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def right(completions: Sequence[str], total: Sequence[int]) -> list[float]:
    """Return 1 for every answer that is the sum and nothing else, 0 for the others.

    >>> right([" 19", " 19 or so", "", " 7"], [19, 19, 19, 8])
    [1.0, 0.0, 0.0, 0.0]
    """
    return [float(text.strip() == str(value)) for text, value in zip(completions, total, strict=True)]
