"""Write RESULTS.md from results.csv: what was predicted beside what was measured.

python benchmarks/memory/table.py
python benchmarks/memory/table.py --raw runs/bench/memory/trial --to /tmp/trial
"""

import statistics
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import page
from columns import RESULTS
from page import markdown, measured_on
from results import Row as Run

COMMANDS = """\
    python benchmarks/memory/run.py
    python benchmarks/collect.py memory
    python benchmarks/memory/table.py"""
TITLES = {
    "1m": "0.9 million weights, trained",
    "minilm": "An encoder of 22.7 million, trained",
    "15m": "15 million, random",
    "160m": "160 million, random",
    "1.1b": "1.1 billion, random",
}
HEADER = [
    "stage", "method", "weights", "rows", "recomputed", "optimizer",
    "predicted MiB", "measured MiB", "error", "predicted s", "measured s", "error",
]  # fmt: skip
WITHIN, IN_TIME = 0.10, 0.25  # what the errors of memory and of time should stay below


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    runs = RESULTS.of(options.raw) if options.raw else RESULTS.read()
    order = list(TITLES)
    names = [cell.name for cell in grid.cells({})]
    runs.sort(key=lambda run: (order.index(run["base"]), names.index(run["name"])))
    parts = [head(runs), *(section(list(group)) for _, group in groupby(runs, key=lambda run: run["base"]))]
    page.write(options.to / "RESULTS.md", "\n".join(parts))


def head(runs: Sequence[Run]) -> str:
    """Return where, when and with what was measured, how to read it, and the summary."""
    timed = [run for run in runs if "time_error" in run]
    planning = [run["plan_s"] for run in runs if "plan_s" in run]
    return f"""# Memory and time, predicted and measured

{COMMANDS}

{measured_on(runs)}

- measured MiB: the largest resident set of the whole process of `graft train`, as the system counts it.
- predicted MiB: the largest peak that `graft plan` names for the same recipe.
- measured s: of a step on full rows. It counts on a quiet machine only; otherwise both times are left out.
- recomputed: activations are computed again in backward.

**Memory.** {summary([run["error"] for run in runs], WITHIN)}

**Time.** {summary([run["time_error"] for run in timed], IN_TIME)}

**The plan itself** {of_plans(planning)}
"""


def of_plans(seconds: Sequence[float]) -> str:
    """Return how long plans took, of recipes that were not planned before."""
    if not seconds:
        return "was not measured yet."
    return (
        f"took {statistics.median(seconds):.1f} s of processor time in the median, {max(seconds):.1f} at "
        "most, for a recipe that was not planned before. What is kept is answered without importing torch."
    )


def summary(errors: Sequence[float], within: float) -> str:
    """Return the median and the largest error, and how many lie within a bound.

    >>> summary([0.05, -0.02, 0.3], 0.1)
    '3 runs: median error 5.0 %, largest +30.0 %; 2 of 3 within 10 %.'
    """
    if not errors:
        return "Not measured yet."
    sizes = [abs(error) for error in errors]
    worst = max(errors, key=abs)
    inside = sum(size <= within for size in sizes)
    return (
        f"{len(errors)} runs: median error {statistics.median(sizes):.1%}, largest {worst:+.1%}; "
        f"{inside} of {len(errors)} within {within:.0%}."
    ).replace("%", " %")


def section(runs: list[Run]) -> str:
    """Return the table of one base."""
    return f"## {TITLES[runs[0]['base']]}\n\n{markdown([HEADER, *map(cells, runs)])}"


def cells(run: Run) -> list[str]:
    """Return a line of the table."""
    weights = run["dtype"] if run["quant"] == "none" else f"{run['quant']}, {run['dtype']}"
    times = ["", "", ""]
    if "time_error" in run:
        times = [f"{run['predicted_s']:.2f}", f"{run['measured_s']:.2f}", percent(run["time_error"])]
    return [
        run["stage"], run["method"], weights, f"{run['rows']} x {run['length']}",
        "yes" if run["checkpointing"] else "", run["optimizer"],
        f"{run['predicted_mib']:,.0f}", f"{run['measured_mib']:,.0f}", percent(run["error"]), *times,
    ]  # fmt: skip


def percent(share: float) -> str:
    """Return a signed share.

    >>> percent(-0.031)
    '-3.1 %'
    """
    return f"{100 * share:+.1f} %"


if __name__ == "__main__":
    main()
