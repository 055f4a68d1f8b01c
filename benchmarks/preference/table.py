"""Write RESULTS.md and own.svg from results.csv and curves.csv: Graft beside TRL, and runs on own answers.

    python benchmarks/preference/table.py
    python benchmarks/preference/table.py --raw runs/bench/preference --to /tmp/trial

The page ends with a list of what falls short of the aims.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import page
import picture
from columns import CURVES, RESULTS
from page import markdown, measured_on, spread
from results import Row

SAME = 1e-3  # by which the losses of the two tools may differ
FASTER, LEANER = 2.5, 1.3  # goals: a step beside TRL's; the peak of PPO beside SFT's
NAMES = {"graft": "Graft", "trl": "TRL"}
COMMANDS = """\
    python benchmarks/preference/run.py
    python benchmarks/preference/steps.py
    python benchmarks/preference/peaks.py
    python benchmarks/collect.py preference
    python benchmarks/preference/table.py"""


def main() -> None:
    options = page.options(__doc__, Path(__file__).parent)
    rows, curves = (t.of(options.raw) if options.raw else t.read() for t in (RESULTS, CURVES))
    short: list[str] = []
    parts = [head(rows), compared(rows, short), timed(rows, short), answered(rows, short), peaks(rows, short)]
    short += unmeasured(rows)
    falls = "\n".join(f"- {line}" for line in short) or "Nothing that is measured here."
    text = "\n".join([*(part for part in parts if part), "## What falls short\n", falls]) + "\n"
    page.write(options.to / "RESULTS.md", text)
    if curves:
        (options.to / "own.svg").write_text(picture.svg(curves), encoding="utf-8")


def head(rows: Sequence[Row]) -> str:
    """Return where, when and with what was measured, and how to read it."""
    return f"""# Preference tuning beside TRL, and on the model's own answers

{COMMANDS}

{measured_on(rows)} TRL 1.16. Data, settings and what is equal on both sides: [README](README.md).
"""


def compared(rows: Sequence[Row], short: list[str]) -> str:
    """Return the whole runs of reward and DPO, by data and tool; all seeds together."""
    own = [row for row in rows if row["part"] in ("reward", "dpo")]
    own.sort(key=lambda row: (place(row), row["seed"]))
    table = [[
        "stage", "data", "tool", "folds", "training loss", "largest difference", "held-out accuracy, %",
        "standard error", "by seed", "the length alone, %", "pairs",
    ]]  # fmt: skip
    for _, group in groupby(own, key=place):
        runs = list(group)
        sides = {tool: [row for row in runs if row["tool"] == tool] for tool in grid.TOOLS}
        means = {}
        for tool, side in sides.items():
            means[tool], error = pooled(side)
            gap = max((row["gap"] for row in side if "gap" in row), default=None)
            length = statistics.mean(row["longer_wins"] for row in side)
            table.append([
                runs[0]["part"], runs[0]["data"], NAMES[tool], str(len(side)),
                spread([row["train_loss"] for row in side], 4), "" if gap is None else f"{gap:.1e}",
                f"{means[tool]:.1f}", f"{error:.1f}", spread([row["accuracy"] for row in side]),
                f"{max(length, 100 - length):.1f}", f"{sum(row['pairs'] for row in side):,}",
            ])  # fmt: skip
            name = f"{runs[0]['part']} on {runs[0]['data']}"
            if gap is not None and gap > SAME:
                short.append(f"{name}: losses differ by {gap:.1e}, more than {SAME:g}")
            if means[tool] <= 50 + 2 * error and tool == "graft":
                short.append(f"{name}: accuracy {means[tool]:.1f} is not two standard errors above chance")
            if tool == "graft" and len(side) < len(grid.SEEDS):
                short.append(f"{name}: {len(side)} of {len(grid.SEEDS)} folds are measured")
        apart = abs(means["graft"] - means["trl"])
        seeds = [row["accuracy"] for row in sides["trl"]]
        if len(seeds) > 1 and apart > statistics.stdev(seeds):
            short.append(f"{name}: accuracy differs from TRL's by {apart:.1f}, more than the seeds do")
    return f"""## Reward models and DPO, from one start

- largest difference: of the two tools' losses, over all steps and seeds. The goal is {SAME:g}.
- held-out accuracy: the share of held-out pairs whose chosen answer has the higher reward, or for DPO the
  higher log-ratio to the model that training started from. Its standard error takes the pairs of one prompt,
  or of one tree, as one draw.
- the length alone: the accuracy of always choosing the longer answer, or the shorter one.

{markdown(table)}""" if own else ""  # fmt: skip


def unmeasured(rows: Sequence[Row]) -> list[str]:
    """Return what has no row at all, a sentence each."""
    wanted = [(s.stage, s.data) for s in (*grid.SETTINGS, *grid.OWN)]
    wanted += [(f"step {s.stage}", s.data) for s in grid.SETTINGS]
    known = {(row["part"], row["data"]) for row in rows}
    return [f"{part} on {data}: not measured" for part, data in wanted if (part, data) not in known]


def pooled(side: Sequence[Row]) -> tuple[float, float]:
    """Return the accuracy of all folds together, and its standard error."""
    count = sum(row["pairs"] for row in side)
    mean = sum(row["accuracy"] * row["pairs"] for row in side) / count
    return mean, math.sqrt(sum((row["error"] * row["pairs"]) ** 2 for row in side)) / count


def timed(rows: Sequence[Row], short: list[str]) -> str:
    """Return the seconds and the memory of steps that were taken in turns."""
    own = [row for row in rows if row["part"].startswith("step ")]
    own.sort(key=lambda row: (place(row), grid.TOOLS.index(row["tool"])))
    table = [[
        "step", "data", "tool", "ms", "of it reference", "tokens/s", "TRL / Graft", "rounds", "peak MiB",
        "loss at first", "at last", "largest difference",
    ]]  # fmt: skip
    for row in own:
        rounds = f"{row['ratio_low']:.2f} … {row['ratio_high']:.2f}" if "ratio" in row else ""
        table.append([
            row["part"].removeprefix("step "), row["data"], NAMES[row["tool"]], number(row, "step_ms", 0),
            number(row, "reference_ms", 0), number(row, "tokens_per_s", 0), number(row, "ratio", 2), rounds,
            number(row, "peak_mib", 0), number(row, "first_loss", 4), number(row, "last_loss", 4),
            f"{row['gap']:.1e}" if "gap" in row else "",
        ])  # fmt: skip
        name = f"{row['part']} on {row['data']}"
        if row["tool"] == "trl" and "ratio" not in row:
            short.append(f"{name}: no speeds, the machine was not quiet")
        elif row["part"] == "step dpo" and row.get("ratio", FASTER) < FASTER:
            short.append(f"{name}: {row['ratio']:.2f} times as fast as TRL, the goal is {FASTER}")
        if row.get("gap", 0.0) > SAME:
            short.append(f"{name}: losses differ by {row['gap']:.1e}, more than {SAME:g}")
    return f"""## A step, in turns

Graft computes the reference of all rows once; the share of one of an epoch's steps is in its milliseconds.
The peak is that of the whole process. The goal for DPO is {FASTER}.

{markdown(table)}""" if own else ""  # fmt: skip


def answered(rows: Sequence[Row], short: list[str]) -> str:
    """Return the runs on answers of the model's own."""
    own = [row for row in rows if row["part"] in ("ppo", "grpo")]
    own.sort(key=lambda row: (place(row), row["seed"]))
    table = [[
        "stage", "data", "seed", "steps", "reward before", "after", "divergence", "length before", "after",
        "right before, %", "after", "writing, s", "learning, s",
    ]]  # fmt: skip
    for row in own:
        shares = [f"{100 * row[key]:.1f}" if key in row else "" for key in ("right_before", "right_after")]
        table.append([
            row["part"], row["data"], str(row["seed"]), str(row["steps"]), number(row, "reward_before", 3),
            number(row, "reward_after", 3), number(row, "kl", 2), number(row, "length_before", 1),
            number(row, "length_after", 1), *shares, number(row, "rollout_s", 2), number(row, "update_s", 2),
        ])  # fmt: skip
        name = f"{row['part']} on {row['data']}, seed {row['seed']}"
        for what in ("reward", "right"):
            before, after = row.get(f"{what}_before", 0.0), row.get(f"{what}_after", 1.0)
            if after <= before:
                short.append(f"{name}: {what} falls from {before:.3g} to {after:.3g}")
        if row.get("rollout_s", 0.0) > row.get("update_s", 0.0):
            short.append(f"{name}: writing takes longer than learning")
    return f"""## On the model's own answers

Rewards and lengths are means over {grid.TESTED} sampled answers to held-out prompts; the divergence is that
from the start, in nats an answer. Sums are answered greedily. Seconds are medians of the iterations.

![rewards and divergence by iteration](own.svg)

{markdown(table)}""" if own else ""  # fmt: skip


def peaks(rows: Sequence[Row], short: list[str]) -> str:
    """Return the peak of PPO beside that of SFT."""
    own = {row["part"].removeprefix("peak "): row for row in rows if row["part"].startswith("peak ")}
    if not own:
        return ""
    sft, ppo = own["sft"], own["ppo"]
    ratio = ppo["peak_mib"] / sft["peak_mib"]
    above = (ppo["peak_mib"] - ppo["idle_mib"]) / (sft["peak_mib"] - sft["idle_mib"])
    if above >= LEANER:
        short.append(f"PPO's peak is {above:.2f} times SFT's without the interpreter, the goal is {LEANER}")
    table = [["stage", "peak MiB", "before there is a model"]]
    table += [[name, f"{row['peak_mib']:.0f}", f"{row['idle_mib']:.0f}"] for name, row in own.items()]
    return f"""## Memory of PPO and of SFT

The same base of random weights, {sft["batch_size"]} rows of {sft["context"]} tokens a step, LoRA, in fp32. \
PPO's policy, value, reward and reference are adapters on one base. Its peak is {ratio:.2f} times SFT's, and \
{above:.2f} times without what the process holds before there is a model. The goal is below {LEANER}.

{markdown(table)}"""


def number(row: Row, name: str, digits: int) -> str:
    """Return a number of a row; nothing where it was not measured."""
    return f"{row[name]:.{digits}f}" if name in row else ""


def place(row: Row) -> tuple[int, int]:
    """Return where a row stands: by its stage, then by its data."""
    stages = ("reward", "dpo", "step reward", "step dpo", "ppo", "grpo")
    return stages.index(row["part"]), ("hh", "oasst", "sums").index(row["data"])


if __name__ == "__main__":
    main()
