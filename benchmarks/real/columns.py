"""The committed columns of this benchmark: results.csv, a row a run; answers.csv, the texts that RESULTS.md
quotes."""

import statistics
from collections.abc import Iterator
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances, speeds

LAST = 0.25  # share of the steps whose mean is a run's training loss
KEY = ("base", "task", "rows", "method", "tool", "seed")
SCORES = ("bleu", "rouge_l", "accuracy", "f1", "loss")
COUNTS = ("train_read", "train_used", "train_left_out", "test_read", "test_fit", "test_used", "test_left_out")


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of a raw run, and one for each answer without a model that comes with the bare base."""
    cell = {**run["cell"], "rows": run["cell"]["rows"] or "all"}
    common = {
        **{column: cell[column] for column in (*KEY, "steps", "batch_size", "lr")},
        **{f"{part}_{what}": counted for part in ("train", "test") for what, counted in _counts(cell, part)},
        **circumstances(run),
    }  # fmt: skip
    yield common | {column: run.get(column) for column in (*SCORES, "trained")} | _training(run)
    for method, measures in run.get("baselines", {}).items():
        yield common | {"method": method, "tool": "none"} | {s: measures[s] for s in SCORES if s in measures}


def _counts(cell: dict[str, Any], part: str) -> Iterator[tuple[str, Any]]:
    for what, count in cell["counts"][part].items():
        if what == "left_out":
            yield what, ", ".join(f"{n:,} {why}" for why, n in count.items()) or None
        else:
            yield what, count


def _training(run: dict[str, Any]) -> Row:
    losses = run.get("losses")
    if not losses:
        return {}
    last = losses[-round(LAST * run["cell"]["steps"]) :]
    seconds = speeds(run, train_s=sum(run["step_seconds"]))
    return {"first_loss": losses[0], "train_loss": statistics.mean(last), **seconds}


def answers(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the first test case as Graft answers it, after training on all rows at seed 0."""
    cell = run["cell"]
    trained = cell["method"] != "none" and (cell["tool"], cell["rows"], cell["seed"]) == ("graft", None, 0)
    if trained and run.get("texts"):
        first = run["texts"][0]
        text = " ".join(first["text"].split())
        yield {**{column: cell[column] for column in ANSWERS.key}, "prompt": first["prompt"], "text": text}


RESULTS = Table(
    "real",
    key=KEY,
    facts=(
        "steps", "batch_size", "lr", *SCORES, "train_loss", "first_loss", "trained", "train_s", *COUNTS,
        *CIRCUMSTANCES,
    ),
    rows=rows,
    exact=("train_loss", "first_loss"),  # both tools agree to rounding, which five digits would hide
)  # fmt: skip
ANSWERS = Table(
    "real", key=("base", "task", "method"), facts=("prompt", "text"), rows=answers, file="answers.csv"
)
TABLES = (RESULTS, ANSWERS)
