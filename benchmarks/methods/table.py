"""Write RESULTS.md and quality.svg from results.csv: every line on both tasks, PEFT's numbers next to ours.

python benchmarks/methods/table.py
python benchmarks/methods/table.py --raw runs/bench/methods/trial --to /tmp/trial
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import page
import scatter
from columns import RESULTS
from page import markdown, measured_on, spread
from results import Row as Run

METRICS = {
    "laptop": {"bleu": "BLEU", "rouge_l": "ROUGE-L", "loss": "loss"},
    "banking77": {"accuracy": "accuracy", "f1": "macro-F1"},
}
DIGITS = {"loss": 3}
COMMANDS = """\
    python benchmarks/methods/run.py
    python benchmarks/collect.py methods
    python benchmarks/methods/table.py"""
NOISY = 2.5  # load average above which the speeds of early runs, which were kept, are too low


@dataclass
class Row:
    """One line on one task.  tried: the runs that chose its rate; sides: {tool: runs at the best rate, by
    seed}."""

    line: str
    tried: list[Run]
    sides: dict[str, list[Run]]

    @property
    def lr(self) -> float | None:
        return self.sides["graft"][0]["lr"] if self.sides["graft"] else None

    @property
    def rate(self) -> str:
        """The best rate, marked if it is the smallest or the largest that was tried."""
        rates = sorted(run["lr"] for run in self.tried)
        edge = {rates[0]: " ↓", rates[-1]: " ↑"}.get(self.lr, "") if len(rates) > 1 else ""
        return f"{self.lr:g}{edge}"

    def values(self, tool: str, fact: str) -> list[float]:
        """Return a measure of all seeds that have it."""
        return [run[fact] for run in self.sides[tool] if fact in run]

    def cells(self, task: str) -> list[str]:
        """Return the cells of the table."""
        counts = [*METRICS[task], "trained", "file", "peak", "speed"]
        pairs = [cell for what in counts for cell in (self.shown("graft", what), self.shown("peft", what))]
        return [self.line, self.rate, *pairs]

    def shown(self, tool: str, what: str) -> str:
        """Return one number of one tool, as the table shows it."""
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
        """Yield what is not as it should be."""
        for run in [*self.tried, *self.sides["graft"][1:], *self.sides["peft"]]:
            if "diverged" in run:
                yield f"{run['tool']} diverged at rate {run['lr']:g}, seed {run['seed']}: {run['diverged']}"
        for tool in grid.tools_of(self.line):
            if len(self.sides[tool]) < len(grid.SEEDS):
                yield f"{len(self.sides[tool])} of {len(grid.SEEDS)} seeds of {tool}"


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    runs = RESULTS.of(options.raw) if options.raw else RESULTS.read()
    tables = {task: rows(runs, task) for task in METRICS}
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
    parts = [
        head(runs),
        *(section(task, found, runs) for task, found in tables.items() if any(r.lr for r in found)),
    ]
    parts += [
        "## What falls short\n",
        "\n".join(f"- {line}" for line in short) or "Nothing that is measured here.",
    ]
    page.write(options.to / "RESULTS.md", "\n".join(parts) + "\n")
    panels = [panel(task, found) for task, found in tables.items() if any(row.lr for row in found)]
    (options.to / "quality.svg").write_text(scatter.svg(panels), encoding="utf-8")


def rows(runs: Sequence[Run], task: str) -> list[Row]:
    """Return the lines of a task in the grid's order."""
    known = {RESULTS.name(run): run for run in runs}
    lines = [line for line in grid.LINES if any((run["task"], run["line"]) == (task, line) for run in runs)]
    return [row(known, task, line) for line in lines]


def row(known: Mapping[str, Run], task: str, line: str) -> Row:
    """Return one line of a task, with all runs at its best rate."""
    searched = grid.search(known, grid.SETTINGS[task], line)
    lr = grid.best(known, searched)
    at_best = [run for run in known.values() if (run["task"], run["line"], run["lr"]) == (task, line, lr)]
    at_best.sort(key=lambda run: run["seed"])
    sides = {tool: [run for run in at_best if run["tool"] == tool] for tool in grid.TOOLS}
    return Row(line, [known[cell.name] for cell in searched if cell.name in known], sides)


def head(runs: Sequence[Run]) -> str:
    """Return where, when and with what was measured, and how to read it."""
    noisy = sum(run["load"] > NOISY for run in runs if "tokens_per_s" in run)
    speeds = "The machine was quiet throughout."
    if noisy:
        share = f"{noisy} of {len(runs)} runs"
        speeds = f"{share} began or ended under a load above {NOISY}, so their speeds are too low."
    return f"""# Every method on two real tasks

{COMMANDS}

{measured_on(runs)}
Tasks, settings and what is equal on both sides: [README](README.md).

- ± is the standard deviation over {len(grid.SEEDS)} seeds.
- rate: the best of three to five at seed {grid.SEEDS[0]} by the loss on held-out training rows. ↓ or ↑ marks
  the smallest or largest that was tried.
- trained, file: with a classifier's head. The file is in kB.
- peak: MiB of the process above base and rows, median of the seeds.
- tokens/s: of the median step, prompts included. {speeds}

![quality against trained parameters](quality.svg)
"""


def section(task: str, found: Sequence[Row], runs: Sequence[Run]) -> str:
    """Return one task with its table."""
    first = next(run for run in runs if run["task"] == task)
    names = [*METRICS[task].values(), "trained", "file", "peak", "tokens/s"]
    header = ["line", "rate", *(word for name in names for word in (name, "PEFT"))]
    table = markdown([header, *(row.cells(task) for row in found if row.lr)])
    return (
        f"## {task} on {first['base']}\n\n{first['steps']} steps of {first['batch_size']} rows from "
        f"{first['train_rows']:,}; {first['test_cases']:,} test cases; "
        f"{first['held_cases']} held out to choose the rate.\n\n{table}"
    )


def panel(task: str, found: Sequence[Row]) -> scatter.Panel:
    """Return the task's first metric against what is trained besides a head."""
    metric, name = next(iter(METRICS[task].items()))
    head = next((row.sides["graft"][0]["trained"] for row in found if row.line == "head" and row.lr), 0)
    points = [
        scatter.Point(
            row.line, row.sides["graft"][0]["trained"] - head, statistics.mean(row.values("graft", metric))
        )
        for row in found
        if row.lr and row.line != "head"
    ]
    return scatter.Panel(f"{task}: {name}", "trained parameters" + " besides the head" * bool(head), points)


if __name__ == "__main__":
    main()
