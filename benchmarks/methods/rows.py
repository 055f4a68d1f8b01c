"""Write the rows of a task without a held-out sample, once.

The rate of a method must not be chosen by the test. So some prompts, or questions, are taken out of the
training rows with all their answers, and the loss on them chooses. The test is the one of benchmarks/real.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import tasks
from grid import Cell

HELD = {"sft": 100, "classify": 200}  # cases


def held(material: Path) -> Path:
    """Return the folder of the held-out sample, which has the form of a test."""
    return material / "held"


def store(cell: Cell, tokenizer: Any) -> None:
    """Write the cell's rows, test and held-out sample if they are missing."""
    s = cell.setting
    folder = cell.material()
    if (folder / "test.json").exists():
        return
    origin = tasks.stored(s.base, s.task, tokenizer, s.context)
    lines = tasks.train_file(origin, None).read_text(encoding="utf-8").splitlines()
    asked, answered = ("prompt", "completion") if s.stage == "sft" else ("text", "label")
    rows = [json.loads(line) for line in lines]
    chosen = set(random.Random(0).sample(sorted({row[asked] for row in rows}), HELD[s.stage]))
    held(folder).mkdir(parents=True, exist_ok=True)
    kept = [line for line, row in zip(lines, rows, strict=True) if row[asked] not in chosen]
    tasks.train_file(folder, None).write_text("\n".join(kept) + "\n", encoding="utf-8")
    taken: dict[str, list[str]] = {}
    for row in rows:
        if row[asked] in chosen:
            taken.setdefault(row[asked], []).append(row[answered])
    cases = [{"prompt": text, "references": references} for text, references in taken.items()]
    facts = {"counts": {"cases": len(cases), "trained": len(kept)}, "cases": cases}
    (held(folder) / "test.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(origin / "test.json", folder / "test.json")
