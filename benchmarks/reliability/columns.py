"""The committed columns of this benchmark: results.csv, a row for each cell of the harness of faults."""

from collections.abc import Iterator
from typing import Any

from results import Row, Table, circumstances

FACTS = ("level", "tried", "held", "harmless", "failed")
# The largest of all cases, and what was added up over them.
MOST = {"seconds": "seconds", "memory_mib": "memory_mib", "repeated": "repeated"}


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of one cell."""
    verdicts, about = run["verdicts"], circumstances(run)
    yield {
        **{column: run[column] for column in ("part", "what", "tool", "level", "tried")},
        **{verdict: verdicts.get(verdict, 0) for verdict in ("held", "harmless", "failed")},
        "kills": run["sums"].get("kills"),
        **{column: run["most"].get(name) for column, name in MOST.items()},
        **{column: about[column] for column in ("wall_s", "machine", "date")},
    }


RESULTS = Table(
    "reliability",
    key=("part", "what", "tool"),
    facts=(*FACTS, "kills", *MOST, "wall_s", "machine", "date"),
    rows=rows,
)
TABLES = (RESULTS,)
