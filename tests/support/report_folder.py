"""Write the folder of a finished run as training leaves it, without training: for tests of its page."""

import json
from pathlib import Path
from typing import Any

from graft import storage
from graft.data import DataReport
from graft.data.rows import Reject
from graft.recipe import read

START = {
    "time": "2026-11-30T06:11:08+00:00",
    "trained": 50_000,
    "parameters": 2_000_000,
    "versions": {"python": "3.11.9", "graft": "0.1.0", "torch": "2.8.0", "transformers": "5.20.0"},
    "machine": {"system": "Linux x86_64", "processor": "A Processor", "cores": 4, "threads": 2, "gpus": []},
}
SETTINGS: dict[str, Any] = {
    "model": "seedling",
    "quant": "nf4",
    "dtype": "bf16",
    "method": {"name": "lora", "r": 4},
    "data": {"train": "/home/anna/shop/rows.jsonl", "eval": 0.25},
    "train": {"epochs": 2, "batch_size": 8, "lr": 1e-3},
}
REJECT = Reject("/home/anna/shop/rows.jsonl:7", "empty answer", "nothing is left", "write an answer")
TEXTS = [
    {"prompt": f"Prompt {i}", "references": ["a red <b>cat</b>"], "before": "no", "after": "a red cat"}
    for i in range(3)
]
WORDS = "سلام دنیا 🦦"  # right to left, and an otter


def write_run(folder: Path, steps: int = 12, **changes: Any) -> Path:
    """Write a run of so many steps.  changes: of its recipe's settings."""
    folder.mkdir(parents=True)
    recipe = read(SETTINGS | changes | {"output": str(folder)})
    (folder / "recipe.yaml").write_text(recipe.yaml(), encoding="utf-8")
    metrics = [
        {"step": i, "epoch": i / 6, "loss": 2.0 / i, "lr": 1e-3 / i, "grad_norm": 1.0 + i % 3}
        for i in range(1, steps + 1)
    ]
    write_lines(folder / "metrics.jsonl", [*metrics, {"step": steps, "eval_loss": 0.5}])
    timing: list[dict[str, Any]] = [{"start": START}]
    timing += [
        {"step": i, "seconds": 2.0, "tokens_per_s": 100.0 * i, "memory_mb": 90.0, "peak_mb": 100.0 + i}
        for i in range(1, steps + 1)
    ]
    timing += [{"warning": "the loss rose"}, {"end": {"time": "2026-11-30T06:12:08+00:00"}}]
    write_lines(folder / "timing.jsonl", timing)
    report = DataReport(
        files=["/home/anna/shop/rows.jsonl"], read=25, train=18, eval=6, rejected={REJECT.reason: 1},
        rejects=[REJECT], examples=18, tokens=900, tokens_learnt=300, max_length=64, cut=2,
        lengths={"0": 10, "10": 20, "50": 40, "90": 60, "99": 63, "100": 64},
        cut_sources=["/home/anna/shop/rows.jsonl:3"], histogram=[[32, 8], [64, 10]],
        unused={"column 'id'": 24},
        samples=[{"source": "/home/anna/shop/rows.jsonl:1", "pieces": [["asked ", False], [WORDS, True]]}],
    )  # fmt: skip
    (folder / "data_report.json").write_bytes(storage.encode(report.json()))
    scores = {"before": {"perplexity": 100.0, "loss": 4.605}, "after": {"perplexity": 4.0, "loss": 1.386}}
    coverage = {"of": 7, "scored": 6, "lines": ["scored 6 of 7 rows"], "fingerprint": "x"}
    storage.write_record(
        folder / "evaluation.json", {"columns": scores, "texts": TEXTS, "coverage": coverage}
    )
    finished = {"steps": steps, "loss": 0.2, "tokens": 300, "best": None, "adapter": "adapter"}
    storage.write_record(folder / "finished.json", finished, sort=True)
    storage.write_json(folder / "notes.json", ["data.max_length is 64 here"])
    (folder / "samples.md").write_text("")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes(2048))
    return folder


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records as JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
