"""RESULTS.md from results/*.json: each row beside PEFT and beside answers without a model; and what falls short.

    python benchmarks/real/table.py [runs/real/trial]

The page is written beside the folder of the results.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import curves
import grid
from page import markdown, measured_on, spread

LAST = 0.25  # share of the steps whose mean is a run's training loss
ALLOWED = 0.02  # relative difference of training losses that counts as equal
WANTED = 80.0  # per cent of Banking77's questions, by full and LoRA on all rows
METRICS = {"bleu": "BLEU", "rouge_l": "ROUGE-L", "accuracy": "accuracy", "f1": "macro-F1"}
COMMAND = "python benchmarks/real/run.py --jobs 2; python benchmarks/real/pretrain.py; python benchmarks/real/table.py"

Run = dict[str, Any]


class Row:
    """One method at one size: both tools, all seeds."""

    def __init__(self, runs: Sequence[Run], metrics: Sequence[str]) -> None:
        by_seed = sorted(runs, key=lambda run: run["cell"]["seed"])
        self.sides = {tool: [run for run in by_seed if run["cell"]["tool"] == tool] for tool in grid.TOOLS}
        self.cell, self.trained, self.metrics = runs[0]["cell"], runs[0]["trained"], metrics
        self.last = slice(-round(LAST * self.cell["steps"]), None)

    @property
    def complete(self) -> bool:
        return len(self.sides["graft"]) == len(self.sides["peft"]) == len(grid.SEEDS)

    def values(self, metric: str) -> list[list[float]]:
        """Of Graft and of PEFT, seed by seed."""
        return [[run[metric] for run in self.sides[tool]] for tool in grid.TOOLS]

    def losses(self) -> list[list[float]]:
        """The runs' training losses."""
        return [
            [statistics.mean(run["losses"][self.last]) for run in self.sides[tool]] for tool in grid.TOOLS
        ]

    def difference(self, part: slice) -> float | None:
        """The largest relative difference of these steps' mean losses over the seeds."""
        peers = {run["cell"]["seed"]: statistics.mean(run["losses"][part]) for run in self.sides["peft"]}
        pairs = [
            (statistics.mean(run["losses"][part]), peers.get(run["cell"]["seed"]))
            for run in self.sides["graft"]
        ]
        return max((abs(ours - peer) / peer for ours, peer in pairs if peer), default=None)

    def line(self) -> list[str]:
        cell = self.cell
        cells = [cell["method"], f"{cell['rows'] or cell['counts']['train']['used']:,}"]
        cells += [spread(side) for metric in self.metrics for side in self.values(metric)]
        cells += [spread(side, 4) for side in self.losses()]
        cells += [
            percent(self.difference(self.last)),
            percent(self.difference(slice(0, 1))),
            f"{self.trained:,}",
        ]
        return cells + [
            spread([sum(run["step_seconds"]) for run in self.sides[tool]], 0) for tool in grid.TOOLS
        ]

    def shortfalls(self, baseline: tuple[str, dict[str, float]]) -> Iterator[str]:
        """What this row promised and does not show."""
        if not self.complete:
            yield f"{len(self.sides['graft'])} runs of Graft and {len(self.sides['peft'])} of PEFT are there"
            return
        difference = self.difference(self.last) or 0.0
        if difference > ALLOWED:
            yield f"training losses differ by {percent(difference)}"
        for metric in self.metrics:
            name, (ours, peers) = METRICS[metric], self.values(metric)
            gap = abs(statistics.mean(ours) - statistics.mean(peers))
            if gap > max(max(side) - min(side) for side in (ours, peers)):
                yield f"{name} differs from PEFT's by {gap:.1f}, more than the seeds do"
            if statistics.mean(ours) <= baseline[1][metric]:
                yield f"{name} {statistics.mean(ours):.1f} does not beat the {baseline[0]}, {baseline[1][metric]:.1f}"
            if (
                metric == "accuracy"
                and self.cell["rows"] is None
                and self.cell["method"] != "qlora"
                and min(ours) < WANTED
            ):
                yield f"accuracy is {min(ours):.1f} in the worst seed, under {WANTED:.0f}"


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results"
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    compared = sorted((run for run in runs if "cell" in run), key=place)
    pretrained = [run for run in runs if "pretrain" in run]
    short: list[str] = []
    page = [head(runs)] + [section(list(group), short) for _, group in groupby(compared, key=place)]
    if pretrained:
        (results.parent / "pretraining.svg").write_text(curves.svg(pretrained), encoding="utf-8")
        page.append(pretraining(pretrained))
    page += [
        "## What falls short\n",
        "\n".join(f"- {line}" for line in short) or "Nothing that is measured here.",
    ]
    (results.parent / "RESULTS.md").write_text("\n".join(page) + "\n", encoding="utf-8")


def head(runs: Sequence[Run]) -> str:
    """Where, when and with what; how to read it."""
    return f"""# Real input: Graft beside PEFT

    {COMMAND}

{measured_on(runs)}
Tasks, settings and what is left out: [README](README.md).

Both tools get the same rows in the same order, the same newborn adapter, steps, rates and clipping, in fp32. Training
loss: mean of the last {percent(LAST)} of the steps, which are the same batches for both; differences (of it, and of the
first step's loss) are the largest of the seeds. They start at rounding and grow with the steps: Adam divides small
gradients by their size, and their rounding with them. ± is the standard deviation over {len(grid.SEEDS)} seeds. Seconds
are of training alone, with other work on the machine.
"""


def section(runs: list[Run], short: list[str]) -> str:
    """One task on one base; adds to `short` what falls short."""
    before = next((run for run in runs if run["cell"]["method"] == "none"), None)
    metrics = [name for name in METRICS if name in runs[0]]
    sides = [f"{METRICS[name]}, {tool}" for name in metrics for tool in ("Graft", "PEFT")]
    header = [
        "method",
        "rows",
        *sides,
        "training loss, Graft",
        "PEFT",
        "difference",
        "at step 1",
        "trained",
        "s, Graft",
        "s, PEFT",
    ]
    free = before["baselines"] | {"before training": before} if before else {}
    table = [
        [name, "", *(cell for metric in metrics for cell in (f"{found[metric]:.1f}", ""))]
        for name, found in free.items()
    ]
    trained = sorted((run for run in runs if run is not before), key=order)
    rows = [Row(list(group), metrics) for _, group in groupby(trained, key=order)]
    cell = (trained or runs)[0]["cell"]
    for row in rows:
        where = f"{cell['task']} on {cell['base']}, {row.cell['method']}, {row.cell['rows'] or 'all'} rows"
        short += [f"{where}: {what}" for what in row.shortfalls(next(iter(free.items())))] if free else []
    parts = [
        f"## {cell['task']} on {cell['base']}\n",
        caption(cell, rows),
        markdown([header, *table, *(row.line() for row in rows)]),
    ]
    return "\n".join([*parts, answers(trained)] if "bleu" in metrics else parts)


def caption(cell: dict[str, Any], rows: Sequence[Row]) -> str:
    """Settings and the count of rows."""
    rates = ", ".join(
        f"{method} {rate:g}" for method, rate in {row.cell["method"]: row.cell["lr"] for row in rows}.items()
    )
    out = lambda part: ", ".join(f"{n:,} {why}" for why, n in part["left_out"].items()) or "none"
    train, test = cell["counts"]["train"], cell["counts"]["test"]
    return (
        f"{cell['steps']} steps of {cell['batch_size']} rows; peak rates: {rates}. "
        f"Training rows: {train['read']:,} read, {train['used']:,} used, left out: {out(train)}. "
        f"Test cases: {test['read']:,} read, {test['fit']:,} fit, left out: {out(test)}; "
        f"measured on a fixed sample of {test['used']:,}.\n"
    )


def answers(trained: Sequence[Run]) -> str:
    """The first test case as each method of Graft answers it, seed 0, all rows."""
    chosen = [
        r for r in trained if (r["cell"]["tool"], r["cell"]["rows"], r["cell"]["seed"]) == ("graft", None, 0)
    ]
    lines = [
        f"- {run['cell']['method']}: {' '.join(run['texts'][0]['text'].split()) or '(nothing)'}"
        for run in chosen
    ]
    return f"`{chosen[0]['texts'][0]['prompt']}`\n\n" + "\n".join(lines) + "\n" if chosen else ""


def pretraining(runs: Sequence[Run]) -> str:
    """Runs on the books, with the picture of their losses."""
    table = [
        [
            "objective",
            "model",
            "trained",
            "steps",
            "tokens learnt",
            "held-out loss before",
            "after",
            "perplexity",
            "s",
        ]
    ]
    for run in runs:
        before, after = run["before"], run["after"]
        scores = [
            f"{before['loss']:.3f}",
            f"{after['loss']:.3f}",
            f"{after['perplexity']:.1f}",
            f"{run['train_s']:.0f}",
        ]
        table.append(
            [
                run["pretrain"],
                run["model"],
                f"{run['trained']:,}",
                str(run["steps"]),
                f"{run['tokens']:,}",
                *scores,
            ]
        )
    return (
        "## Pretraining on books\n\n"
        + markdown(table)
        + "\n![training and held-out loss by step](pretraining.svg)\n"
    )


def place(run: Run) -> int:
    """Where the run's section stands: as in the grid."""
    pairs = [(setting.base, setting.task) for setting in grid.SETTINGS]
    return pairs.index((run["cell"]["base"], run["cell"]["task"]))


def order(run: Run) -> tuple[int, float]:
    """Where the run stands in its section: by method, then from all rows down."""
    return ("none", *grid.METHODS).index(run["cell"]["method"]), -(run["cell"]["rows"] or float("inf"))


def percent(share: float | None) -> str:
    """
    >>> percent(0.01234), percent(3e-8)
    ('1.2 %', '3e-06 %')
    """
    return "" if share is None else f"{100 * share:.2g} %"


if __name__ == "__main__":
    main()
