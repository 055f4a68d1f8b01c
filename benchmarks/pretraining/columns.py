"""The committed columns of this benchmark: results.csv, a row a run; curves.csv, the losses that the picture
draws."""

from collections.abc import Iterator
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances, speeds


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of a raw run."""
    yield {
        "objective": run["pretrain"],
        **{column: run[column] for column in ("model", "trained", "steps", "tokens")},
        "loss_before": run["before"]["loss"], "loss_after": run["after"]["loss"],
        "perplexity": run["after"]["perplexity"], **speeds(run, train_s=run["train_s"]), **circumstances(run),
    }  # fmt: skip


def curves(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the loss of every step, with the held-out loss at the steps that have one."""
    held = dict(run["eval"])
    for step in range(len(run["losses"]) + 1):
        loss = run["losses"][step - 1] if step else None
        if step or step in held:
            yield {"objective": run["pretrain"], "step": step, "loss": loss, "held_loss": held.get(step)}


RESULTS = Table(
    "pretraining",
    key=("objective",),
    facts=(
        "model", "trained", "steps", "tokens", "loss_before", "loss_after", "perplexity", "train_s",
        *CIRCUMSTANCES,
    ),
    rows=rows,
)  # fmt: skip
CURVES = Table(
    "pretraining", key=("objective", "step"), facts=("loss", "held_loss"), rows=curves, file="curves.csv",
    named=1, exact=("loss", "held_loss"),
)  # fmt: skip
TABLES = (RESULTS, CURVES)
