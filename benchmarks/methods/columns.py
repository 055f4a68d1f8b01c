"""The committed columns of this benchmark: results.csv, a row a run."""

from collections.abc import Iterator
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances, speeds

KEY = ("task", "line", "tool", "lr", "seed")
SCORES = ("held_loss", "loss", "bleu", "rouge_l", "accuracy", "f1")
COSTS = ("trained", "file_bytes", "peak_mib")


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of a raw run."""
    cell = run["cell"]
    counts = cell["counts"]
    yield {
        **{column: cell[column] for column in (*KEY, "base", "steps", "batch_size")},
        "train_rows": counts["held"]["trained"], "held_cases": counts["held"]["cases"],
        "test_cases": counts["test"]["used"], "diverged": run.get("diverged"),
        **{column: run.get(column) for column in (*SCORES, *COSTS, "cpu_s")},
        **speeds(run, tokens_per_s=run.get("tokens_per_s")), **circumstances(run),
    }  # fmt: skip


RESULTS = Table(
    "methods",
    key=KEY,
    facts=(
        "base", "steps", "batch_size", "train_rows", "held_cases", "test_cases", *SCORES, "diverged", *COSTS,
        "tokens_per_s", "cpu_s", *CIRCUMSTANCES,
    ),
    rows=rows,
)  # fmt: skip
TABLES = (RESULTS,)
