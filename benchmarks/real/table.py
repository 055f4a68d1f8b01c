"""Write RESULTS.md from results.csv and answers.csv: Graft next to PEFT and to answers without a model.

    python benchmarks/real/table.py
    python benchmarks/real/table.py --raw runs/bench/real/trial --to /tmp/trial

The page ends with a list of what falls short of the aims.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import page
from columns import ANSWERS, LAST, RESULTS
from page import markdown, measured_on, spread
from results import Row as Run

ALLOWED = 0.02  # relative difference of training losses that counts as equal
WANTED = 80.0  # per cent of Banking77's questions, by full and LoRA on all rows
METRICS = {"bleu": "BLEU", "rouge_l": "ROUGE-L", "accuracy": "accuracy", "f1": "macro-F1"}
COMMANDS = """\
    python benchmarks/real/run.py
    python benchmarks/collect.py real
    python benchmarks/real/table.py"""


class Row:
    """One method at one size: both tools, all seeds."""

    def __init__(self, runs: Sequence[Run], metrics: Sequence[str]) -> None:
        by_seed = sorted(runs, key=lambda run: run["seed"])
        self.sides = {tool: [run for run in by_seed if run["tool"] == tool] for tool in grid.TOOLS}
        self.first = by_seed[0]
        self.metrics = metrics

    @property
    def complete(self) -> bool:
        return len(self.sides["graft"]) == len(self.sides["peft"]) == len(grid.SEEDS)

    def values(self, metric: str) -> list[list[float]]:
        """Return what was measured, of Graft and of PEFT, seed by seed."""
        return [[run[metric] for run in self.sides[tool] if metric in run] for tool in grid.TOOLS]

    def difference(self, loss: str) -> float | None:
        """Return the largest relative difference of a loss over the seeds."""
        peers = {run["seed"]: run[loss] for run in self.sides["peft"]}
        pairs = [(run[loss], peers.get(run["seed"])) for run in self.sides["graft"]]
        return max((abs(ours - peer) / peer for ours, peer in pairs if peer), default=None)

    def line(self) -> list[str]:
        """Return the cells of the table."""
        size = self.first["train_used"] if self.first["rows"] == "all" else self.first["rows"]
        cells = [self.first["method"], f"{size:,}"]
        cells += [spread(side) for metric in self.metrics for side in self.values(metric)]
        cells += [spread(side, 4) for side in self.values("train_loss")]
        cells += [percent(self.difference(loss)) for loss in ("train_loss", "first_loss")]
        return [*cells, f"{self.first['trained']:,}", *(spread(side, 0) for side in self.values("train_s"))]

    def shortfalls(self, baseline: Run) -> Iterator[str]:
        """Yield what this row promised and does not show."""
        if not self.complete:
            yield f"{len(self.sides['graft'])} runs of Graft and {len(self.sides['peft'])} of PEFT are there"
            return
        difference = self.difference("train_loss") or 0.0
        if difference > ALLOWED:
            yield f"training losses differ by {percent(difference)}"
        for metric in self.metrics:
            name, (ours, peers) = METRICS[metric], self.values(metric)
            gap = abs(statistics.mean(ours) - statistics.mean(peers))
            if gap > max(max(side) - min(side) for side in (ours, peers)):
                yield f"{name} differs from PEFT's by {gap:.1f}, more than the seeds do"
            if statistics.mean(ours) <= baseline[metric]:
                beaten = f"does not beat the {baseline['method']}, {baseline[metric]:.1f}"
                yield f"{name} {statistics.mean(ours):.1f} {beaten}"
            promised = (
                metric == "accuracy" and self.first["rows"] == "all" and self.first["method"] != "qlora"
            )
            if promised and min(ours) < WANTED:
                yield f"accuracy is {min(ours):.1f} in the worst seed, under {WANTED:.0f}"


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    runs, texts = (t.of(options.raw) if options.raw else t.read() for t in (RESULTS, ANSWERS))
    runs.sort(key=place)
    short: list[str] = []
    parts = [head(runs)]
    parts += [section(list(group), texts, short) for _, group in groupby(runs, key=place)]
    short_list = "\n".join(f"- {line}" for line in short) or "Nothing that is measured here."
    text = "\n".join([*parts, "## What falls short\n", short_list]) + "\n"
    page.write(options.to / "RESULTS.md", text)


def head(runs: Sequence[Run]) -> str:
    """Return where, when and with what was measured, and how to read it."""
    return f"""# Real input: Graft next to PEFT

{COMMANDS}

{measured_on(runs)}
Tasks, settings and what is left out: [README](README.md).

Both tools get the same rows in the same order, the same untrained adapter, steps, rates and clipping, all in
fp32.

- training loss: the mean of the last {percent(LAST)} of the steps, which are the same batches for both tools.
- difference, at step 1: the largest relative difference of this loss, and of the first step's loss, over the
  seeds. It starts at rounding and grows with the steps, because Adam divides small gradients, and so their
  rounding, by their size.
- ± is the standard deviation over {len(grid.SEEDS)} seeds.
- s: seconds of training alone, with other work on the machine.
"""


def section(runs: list[Run], texts: Sequence[Run], short: list[str]) -> str:
    """Return one task on one base; add to `short` what falls short."""
    metrics = [name for name in METRICS if any(name in run for run in runs)]
    sides = [f"{METRICS[name]}, {tool}" for name in metrics for tool in ("Graft", "PEFT")]
    training = ["training loss, Graft", "PEFT", "difference", "at step 1", "trained", "s, Graft", "s, PEFT"]
    free = sorted((run for run in runs if run["tool"] == "none"), key=lambda run: run["method"])
    bare = [run | {"method": "before training"} for run in runs if run["method"] == "none"]
    table = [
        [run["method"], "", *(cell for metric in metrics for cell in (f"{run[metric]:.1f}", ""))]
        for run in [*free, *bare]
    ]
    trained = sorted((run for run in runs if run["method"] in grid.METHODS), key=order)
    rows = [Row(list(group), metrics) for _, group in groupby(trained, key=order)]
    first = (trained or runs)[0]
    for row in rows if free else ():
        where = f"{first['task']} on {first['base']}, {row.first['method']}, {row.first['rows']} rows"
        short += [f"{where}: {what}" for what in row.shortfalls(free[0])]
    parts = [
        f"## {first['task']} on {first['base']}\n",
        caption(first, rows),
        markdown([["method", "rows", *sides, *training], *table, *(row.line() for row in rows)]),
    ]
    return "\n".join([*parts, answers(first, texts)] if "bleu" in metrics else parts)


def caption(first: Run, rows: Sequence[Row]) -> str:
    """Return the settings and the counts of rows."""
    by_method = {row.first["method"]: row.first["lr"] for row in rows}
    rates = ", ".join(f"{method} {rate:g}" for method, rate in by_method.items())
    train_out, test_out = (first.get(f"{part}_left_out", "none") for part in ("train", "test"))
    return (
        f"{first['steps']} steps of {first['batch_size']} rows; peak rates: {rates}. "
        f"Training rows: {first['train_read']:,} read, {first['train_used']:,} used, left out: {train_out}. "
        f"Test cases: {first['test_read']:,} read, {first['test_fit']:,} fit, left out: {test_out}; "
        f"measured on a fixed sample of {first['test_used']:,}.\n"
    )


def answers(first: Run, texts: Sequence[Run]) -> str:
    """Return the first test case as each method of Graft answers it, at seed 0 after training on all rows."""
    chosen = [text for text in texts if place(text) == place(first)]
    chosen.sort(key=lambda text: grid.METHODS.index(text["method"]))
    lines = [f"- {text['method']}: {text.get('text', '(nothing)')}" for text in chosen]
    return f"`{chosen[0]['prompt']}`\n\n" + "\n".join(lines) + "\n" if chosen else ""


def place(run: Run) -> int:
    """Return where the run's section stands: as in the grid."""
    pairs = [(setting.base, setting.task) for setting in grid.SETTINGS]
    return pairs.index((run["base"], run["task"]))


def order(run: Run) -> tuple[int, float]:
    """Return where the run stands in its section: by method, then from all rows down."""
    return grid.METHODS.index(run["method"]), -float("inf" if run["rows"] == "all" else run["rows"])


def percent(share: float | None) -> str:
    """Return a share in per cent with two digits.

    >>> percent(0.01234), percent(3e-8)
    ('1.2 %', '3e-06 %')
    """
    return "" if share is None else f"{100 * share:.2g} %"


if __name__ == "__main__":
    main()
