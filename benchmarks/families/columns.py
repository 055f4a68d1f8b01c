"""The committed columns of this benchmark: results.csv, a row for each family."""

from collections.abc import Iterator
from typing import Any

from results import Row, Table, circumstances

CELLS = (
    "transformers", "load", "loss", "packed",
    "lora", "bottleneck", "prefix", "prompt", "experts", "mixed", "nf4",
)  # fmt: skip


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of one family; a family that is left out or cannot run has no cells after the first."""
    cells = {column: run["cells"].get(column) for column in CELLS}
    about = circumstances(run)
    yield {"family": run["family"], "task": run["task"], **cells} | {
        column: about[column] for column in ("wall_s", "machine", "date")
    }


RESULTS = Table("families", key=("family",), facts=("task", *CELLS, "wall_s", "machine", "date"), rows=rows)
TABLES = (RESULTS,)
