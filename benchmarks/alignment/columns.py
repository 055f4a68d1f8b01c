"""The committed columns of this benchmark: results.csv, a row a run; curves.csv, what the picture draws."""

from collections.abc import Iterator
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances, speeds

KEY = ("method", "seed")
# Of greedy and of sampled answers: share that satisfies the preference, coverage, mean number of tokens.
ANSWERS = tuple(f"{how}_{what}" for how in ("greedy", "sampled") for what in ("share", "coverage", "tokens"))
# Perplexity of held-out descriptions: all of them, those that do not break the preference, chosen ones.
PERPLEXITIES = ("perplexity_all", "perplexity_kept", "perplexity_chosen")
LINES = ("loss", "reward", "judge", "kl", "length", "share", "coverage")  # of a curve


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of a raw run."""
    cell = run["cell"]
    yield {
        **{column: cell[column] for column in (*KEY, "steps", "batch_size", "lr", "beta")},
        **{column: run.get(column) for column in (*ANSWERS, *PERPLEXITIES, "accuracy", "warning")},
        **speeds(run, train_s=sum(run["step_seconds"])), **circumstances(run),
    }  # fmt: skip


def curves(run: dict[str, Any]) -> Iterator[Row]:
    """Yield what a run reports at its steps; share and coverage are of greedy answers in between."""
    key = {column: run["cell"][column] for column in KEY}
    for point in run["curve"]:
        yield {**key, "step": point["step"], **{column: point.get(column) for column in LINES}}


RESULTS = Table(
    "alignment",
    key=KEY,
    facts=(
        "steps", "batch_size", "lr", "beta", *ANSWERS, *PERPLEXITIES, "accuracy", "warning", "train_s",
        *CIRCUMSTANCES,
    ),
    rows=rows,
)  # fmt: skip
CURVES = Table("alignment", key=(*KEY, "step"), facts=LINES, rows=curves, file="curves.csv", named=len(KEY))
TABLES = (RESULTS, CURVES)
