"""Write RESULTS.md and curves.svg from results.csv and curves.csv: each way to teach a preference.

python benchmarks/alignment/table.py
python benchmarks/alignment/table.py --raw runs/bench/alignment/trial --to /tmp/trial
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import curves
import grid
import page
from columns import CURVES, RESULTS
from page import markdown, measured_on, spread
from results import Row as Run

BEFORE, AFTER = 0.4, 0.9  # share of satisfied answers: at most, and at least
LOST = 0.03  # of coverage, at most
DEARER = 0.10  # perplexity, at most
COMMANDS = """\
    python benchmarks/alignment/run.py
    python benchmarks/collect.py alignment
    python benchmarks/alignment/table.py"""
QUALITY = {
    "greedy_share": ("share", 3), "sampled_share": ("share, sampled", 3),
    "greedy_coverage": ("coverage", 3), "sampled_coverage": ("coverage, sampled", 3),
    "greedy_tokens": ("tokens", 1), "perplexity_kept": ("perplexity, kept", 3),
    "perplexity_all": ("perplexity, all", 3), "perplexity_chosen": ("perplexity, chosen", 3),
    "accuracy": ("accuracy", 3), "train_s": ("s", 0),
}  # fmt: skip


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    runs, points = (t.of(options.raw) if options.raw else t.read() for t in (RESULTS, CURVES))
    names = [name for name in grid.SETTINGS if any(run["method"] == name for run in runs)]
    groups = {name: [run for run in runs if run["method"] == name] for name in names}
    (options.to / "curves.svg").write_text(picture(points), encoding="utf-8")
    short = "\n".join(f"- {line}" for line in shortfalls(groups)) or "Nothing that is measured here."
    parts = [head(runs), results(groups), used(groups), "![share of satisfied answers by step](curves.svg)\n"]
    if grid.HACKED in groups:
        parts.append(hacked(groups[grid.HACKED], points))
    page.write(options.to / "RESULTS.md", "\n".join([*parts, f"## What falls short\n\n{short}\n"]))


def head(runs: Sequence[Run]) -> str:
    """Return where, when and with what was measured, and how to read it."""
    return f"""# One preference, taught in every way

{COMMANDS}

{measured_on(runs)} Data, methods and settings: [README](README.md).

- share: of the descriptions of 200 held-out products, those whose last sentence states the price and no
  sentence before it does. Answers are greedy if nothing else is said; "sampled" is at temperature 1.
- coverage: mean share of a product's attribute values that its description states.
- perplexity: of the generator's descriptions of held-out products. "Kept" are those that do not break the
  preference; "all" are all of them, half of which state the price early, which should become less likely.
  "Chosen" are the better ones of held-out pairs.
- accuracy: of held-out pairs or verdicts, by the reward or the implicit reward.
- ± is the standard deviation over {len(grid.SEEDS)} seeds.
"""


def results(groups: dict[str, list[Run]]) -> str:
    """Return the table of what was measured."""
    header = ["run", *(title for title, _ in QUALITY.values())]
    lines = [
        [name, *(spread(values(runs, column), digits) for column, (_, digits) in QUALITY.items())]
        for name, runs in groups.items()
    ]
    return markdown([header, *lines])


def used(groups: dict[str, list[Run]]) -> str:
    """Return the table of the settings."""
    lines = []
    for name, (run, *_) in groups.items():
        beta = f"{run['beta']:g}" if "beta" in run else ""
        lines.append([name, str(run["steps"]), str(run["batch_size"]), f"{run['lr']:g}", beta])
    return markdown([["run", "steps", "batch", "peak rate", "β"], *lines])


def values(runs: Sequence[Run], column: str) -> list[float]:
    """Return what the runs have of a column."""
    return [run[column] for run in runs if column in run]


def shortfalls(groups: dict[str, list[Run]]) -> Iterator[str]:
    """Yield what the goals ask and the runs do not show."""
    start = {run["seed"]: run for run in groups.get(grid.SFT, ())}
    for run in start.values():
        if run["greedy_share"] >= BEFORE:
            share = run["greedy_share"]
            yield f"sft, seed {run['seed']}: {share:.2f} satisfy the preference before it is taught"
    for name in grid.METHODS:
        runs = groups.get(name, [])
        if len(runs) < len(grid.SEEDS):
            yield f"{name}: {len(runs)} of {len(grid.SEEDS)} seeds are there"
        for run in runs:
            before, where = start[run["seed"]], f"{name}, seed {run['seed']}"
            if run["greedy_share"] <= AFTER:
                yield f"{where}: {run['greedy_share']:.3f} satisfy the preference, {AFTER} was wanted"
            lost = before["greedy_coverage"] - run["greedy_coverage"]
            if lost > LOST:
                yield f"{where}: coverage is {lost:.3f} lower than before, {LOST} is allowed"
            for rows in ("kept", "all"):
                dearer = run[f"perplexity_{rows}"] / before[f"perplexity_{rows}"] - 1
                if dearer > DEARER:
                    yield f"{where}: perplexity of {rows} rows is {100 * dearer:.0f} % higher than before"
    for run in groups.get(grid.HACKED, []):
        if "warning" not in run:
            yield f"hacked, seed {run['seed']}: the run says nothing of the judge"
    if grid.HACKED not in groups:
        yield "hacked: no run is there"


def picture(points: Sequence[Run]) -> str:
    """Return the curves as SVG."""
    of = {name: [point for point in points if point["method"] == name] for name in grid.SETTINGS}
    panels = {name: (of[name], {"share": "l"}) for name in grid.METHODS if of.get(name)}
    if of.get(grid.HACKED):
        panels["cheated reward; judge"] = (of[grid.HACKED], {"reward": "l", "judge": "j"})
    return curves.svg(panels)


def hacked(runs: Sequence[Run], points: Sequence[Run]) -> str:
    """Say what the cheated reward did, and what the run said of it."""
    lines = []
    for run in runs:
        own = [p for p in points if p["method"] == grid.HACKED and p["seed"] == run["seed"]]
        first, *_, last = [point for point in own if "judge" in point]
        said = f"`{run['warning']}`" if "warning" in run else "nothing"
        lines.append(
            f"- seed {run['seed']}: reward {first['reward']:.2f} to {last['reward']:.2f}, judge "
            f"{first['judge']:.2f} to {last['judge']:.2f}. The run says: {said}"
        )
    return "## A reward that can be cheated\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
