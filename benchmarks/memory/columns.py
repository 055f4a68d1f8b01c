"""The committed columns of this benchmark: results.csv, a row for each run."""

from collections.abc import Iterator
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances, speeds

CELL = ("base", "stage", "method", "quant", "dtype", "rows", "length", "checkpointing", "optimizer")
BYTES = ("process", "weights", "trained", "step", "allocator")
MEMORY = ("predicted_mib", "measured_mib", "error", "phase", *(f"{part}_mib" for part in BYTES))
TIMES = ("predicted_s", "measured_s", "time_error")
MIB = 1 << 20


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of one run. The time of a run counts on a quiet machine only."""
    plan, measured = run["plan"], run["measured"]
    parts = plan["parts"] | {"process": plan["process"]}
    parts["trained"] = sum(parts[part] for part in ("adapter", "gradients", "optimizer"))
    predicted = max(plan["peaks"].values())
    seconds, expected = measured.get("step_s"), (plan.get("pace") or {}).get("step")
    if seconds is None or expected is None:
        times: Row = {}
    else:
        times = {"predicted_s": expected, "measured_s": seconds, "time_error": expected / seconds - 1}
    yield {
        **run["cell"],
        "predicted_mib": predicted / MIB,
        "measured_mib": measured["peak"] / MIB,
        "error": predicted / measured["peak"] - 1,
        "phase": max(plan["peaks"], key=plan["peaks"].get),
        **{f"{part}_mib": parts[part] / MIB for part in BYTES},
        **speeds(run, **times),
        "plan_s": run["plan_s"],
        **circumstances(run),
    }


RESULTS = Table("memory", key=("name",), facts=(*CELL, *MEMORY, *TIMES, "plan_s", *CIRCUMSTANCES), rows=rows)
TABLES = (RESULTS,)
