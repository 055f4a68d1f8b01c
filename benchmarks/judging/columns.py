"""The committed columns of this benchmark: a row a number, with the paper's number beside it."""

from collections.abc import Iterator
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a raw run."""
    for row in run["rows"]:
        yield {"part": run["part"], **row, **circumstances(run)}


RESULTS = Table(
    "judging",
    key=("part", "measure", "name"),
    facts=("value", "low", "high", "published", *CIRCUMSTANCES),
    rows=rows,
    named=1,
)
TABLES = (RESULTS,)
