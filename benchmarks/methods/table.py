"""RESULTS.md and quality.svg from results/*.json: every line on both tasks, PEFT's numbers beside ours.

    python benchmarks/methods/table.py [runs/methods/trial]

The page is written beside the folder of the results.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import scatter
from page import markdown, measured_on, spread

METRICS = {
    "laptop": {"bleu": "BLEU", "rouge_l": "ROUGE-L", "loss": "loss"},
    "banking77": {"accuracy": "accuracy", "f1": "macro-F1"},
}
DIGITS = {"loss": 3}
COMMAND = "python benchmarks/methods/run.py --jobs 2; python benchmarks/methods/table.py"
QUIET = 2.5  # load average up to which speeds are comparable: two runs, and a little

Run = dict[str, Any]


@dataclass
class Row:
    """One line on one task.  tried: the search for its rate; sides: {tool: runs at the best rate, seed by seed}."""

    line: str
    tried: list[Run]
    sides: dict[str, list[Run]]

    @property
    def lr(self) -> float | None:
        return self.sides["graft"][0]["cell"]["lr"] if self.sides["graft"] else None

    @property
    def rate(self) -> str:
        """The best rate; marked where it is the smallest or the largest that was tried."""
        rates = sorted(run["cell"]["lr"] for run in self.tried)
        edge = {rates[0]: " ↓", rates[-1]: " ↑"}.get(self.lr, "") if len(rates) > 1 else ""
        return f"{self.lr:g}{edge}"

    def values(self, tool: str, fact: str) -> list[float]:
        """Of the seeds that came to an end."""
        return [run[fact] for run in self.sides[tool] if fact in run]

    def cells(self, task: str) -> list[str]:
        """The line of the table."""
        counts = [*METRICS[task], "trained", "file", "peak", "speed"]
        pairs = [cell for what in counts for cell in (self.shown("graft", what), self.shown("peft", what))]
        return [self.line, self.rate, *pairs]

    def shown(self, tool: str, what: str) -> str:
        """One number of one tool, as the table has it."""
        if not self.sides[tool]:
            return ""
        if what == "trained":
            return f"{self.sides[tool][0]['trained']:,}"
        if what == "file":
            return (
                f"{self.values(tool, 'file_bytes')[0] / 1000:,.0f}" if self.values(tool, "file_bytes") else ""
            )
        if what in ("peak", "speed"):
            values = self.values(tool, {"peak": "peak_mib", "speed": "tokens_per_s"}[what])
            return f"{statistics.median(values):,.0f}" if values else ""
        return spread(self.values(tool, what), DIGITS.get(what, 1))

    def shortfalls(self) -> Iterator[str]:
        """What is not as it should be."""
        for run in [*self.tried, *self.sides["graft"][1:], *self.sides["peft"]]:
            if "diverged" in run:
                cell = run["cell"]
                yield f"{cell['tool']} diverged at rate {cell['lr']:g}, seed {cell['seed']}: {run['diverged']}"
        for tool in grid.tools_of(self.line):
            if len(self.sides[tool]) < len(grid.SEEDS):
                yield f"{len(self.sides[tool])} of {len(grid.SEEDS)} seeds of {tool}"


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results"
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    tables = {task: rows(runs, task, results) for task in METRICS}
    short = [
        f"{t}, {row.line}: {what}"
        for t, found in tables.items()
        for row in found
        for what in row.shortfalls()
    ]
    short += [f"no line for the method {name}" for name in grid.unlisted()]
    short += [
        f"{line}: there is no method {' or '.join(gone)}"
        for line in grid.LINES
        if (gone := grid.absent(line))
    ]
    page = [
        head(runs),
        *(section(task, found, runs) for task, found in tables.items() if any(r.lr for r in found)),
    ]
    page += [
        "## What falls short\n",
        "\n".join(f"- {line}" for line in short) or "Nothing that is measured here.",
    ]
    (results.parent / "RESULTS.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    panels = [panel(task, found) for task, found in tables.items() if any(row.lr for row in found)]
    (results.parent / "quality.svg").write_text(scatter.svg(panels), encoding="utf-8")


def rows(runs: Sequence[Run], task: str, results: Path) -> list[Row]:
    """The lines of a task in the grid's order."""
    found = []
    for line in grid.LINES:
        of = [run for run in runs if (run["cell"]["task"], run["cell"]["line"]) == (task, line)]
        if not of:
            continue
        searched = grid.search(results, grid.SETTINGS[task], line)
        lr = grid.best(results, searched)
        names = {cell.name for cell in searched}
        at_best = sorted((run for run in of if run["cell"]["lr"] == lr), key=lambda run: run["cell"]["seed"])
        sides = {tool: [run for run in at_best if run["cell"]["tool"] == tool] for tool in grid.TOOLS}
        found.append(Row(line, [run for run in of if run["cell"]["name"] in names], sides))
    return found


def head(runs: Sequence[Run]) -> str:
    """Where, when and with what; how to read it."""
    loads = [max(run["load"]) for run in runs]
    noisy = sum(load > QUIET for load in loads)
    speeds = (
        "The machine was quiet throughout."
        if not noisy
        else f"{noisy} of {len(runs)} runs began or ended under a load above {QUIET}: their speeds are too low."
    )
    return f"""# Every method on two real tasks

    {COMMAND}

{measured_on(runs)} Tasks, settings and what is equal on both sides: [README](README.md).

± is the standard deviation over {len(grid.SEEDS)} seeds. Rate: the best of three to five at seed {grid.SEEDS[0]} by
the loss on held-out training rows; ↓ or ↑ where it is the smallest or largest that was tried. Trained and file include
a classifier's head; file in kB. Peak: MiB of the process above base and rows, median of the seeds; tokens/s of the
median step, prompts included. {speeds}

![quality against trained parameters](quality.svg)
"""


def section(task: str, found: Sequence[Row], runs: Sequence[Run]) -> str:
    """One task with its table."""
    cell = next(run["cell"] for run in runs if run["cell"]["task"] == task)
    names = [*METRICS[task].values(), "trained", "file", "peak", "tokens/s"]
    header = ["line", "rate", *(word for name in names for word in (name, "PEFT"))]
    table = markdown([header, *(row.cells(task) for row in found if row.lr)])
    return (
        f"## {task} on {cell['base']}\n\n{cell['steps']} steps of {cell['batch_size']} rows from "
        f"{cell['counts']['held']['trained']:,}; {cell['counts']['test']['used']:,} test cases; "
        f"{cell['counts']['held']['cases']} held out to choose the rate.\n\n{table}"
    )


def panel(task: str, found: Sequence[Row]) -> scatter.Panel:
    """The task's first metric against what is trained besides a head."""
    metric, name = next(iter(METRICS[task].items()))
    head = next((row.sides["graft"][0]["trained"] for row in found if row.line == "head" and row.lr), 0)
    points = [
        scatter.Point(
            row.line, row.sides["graft"][0]["trained"] - head, statistics.mean(row.values("graft", metric))
        )
        for row in found
        if row.lr and row.line != "head"
    ]
    return scatter.Panel(f"{task}: {name}", "trained numbers" + " besides the head" * bool(head), points)


if __name__ == "__main__":
    main()
