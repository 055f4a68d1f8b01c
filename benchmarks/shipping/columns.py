"""The committed columns of this benchmark: results.csv, a row for each form of each run."""

from collections.abc import Iterator
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances, speeds

CELL = ("base", "task", "line", "seed")
SCORES = ("loss", "more_loss", "bleu", "rouge_l", "coverage")


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield a row for each form; more_loss: against the form that was trained, the first one."""
    trained = next(iter(run["forms"].values()))
    for form, measures in run["forms"].items():
        yield {
            **{column: run["cell"][column] for column in (*CELL, "steps", "batch_size", "r", "lr")},
            "form": form,
            **{column: measures.get(column) for column in (*SCORES, "bytes")},
            "more_loss": None if measures is trained else measures["loss"] - trained["loss"],
            **speeds(run, tokens_per_s=measures["tokens_per_s"]), **circumstances(run),
        }  # fmt: skip


RESULTS = Table(
    "shipping",
    key=(*CELL, "form"),
    facts=("steps", "batch_size", "r", "lr", *SCORES, "bytes", "tokens_per_s", *CIRCUMSTANCES),
    rows=rows,
    named=len(CELL),
)
TABLES = (RESULTS,)
