"""The committed columns of this benchmark: results.csv, a row a run of one tool; curves.csv, the iterations
of runs on the model's own answers, which the picture draws."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances, speeds
from turns import MOST

LAST = 0.25  # share of the steps whose mean is a run's training loss
TOOLS = ("graft", "trl")
LOSSES = ("first_loss", "train_loss", "last_loss")
SECONDS = ("rollout_s", "update_s")
MEASURES = tuple(
    f"{what}_{when}" for what in ("reward", "length", "ended", "right") for when in ("before", "after")
)
SETTINGS = ("steps", "batch_size", "lr", "context")


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a raw run, one for each tool."""
    kind = next(kind for key, kind in KINDS.items() if key in run)
    yield from kind(run)


def compared(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a comparison of whole runs."""
    cell = run["cell"]
    out = sum(cell["left_out"].values())
    common = {
        **{column: cell[column] for column in ("part", "data", "seed", *SETTINGS)},
        "read": cell["read"], "left_out": out, "train_pairs": cell["train"], "pairs": cell["test"],
        "longer_wins": 100 * run["longer_wins"], **circumstances(run),
    }  # fmt: skip
    gap = largest_gap(*(run[tool]["losses"] for tool in TOOLS))
    for tool in TOOLS:
        side = run[tool]
        losses = side["losses"]
        last = losses[-max(1, round(LAST * len(losses))) :]
        right = [float(margin > 0) for margin in side["margins"]]
        yield common | {
            "tool": tool, "first_loss": losses[0], "train_loss": statistics.mean(last),
            "gap": gap if tool == "trl" else None, "accuracy": 100 * statistics.mean(right),
            "error": 100 * standard_error(right, run["groups"]),
            "groups": len(set(run["groups"])),
            "margin": statistics.mean(side["margins"]),
        }  # fmt: skip


def timed(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of steps that were taken in turns; without speeds if too few rounds were quiet.

    The ratio is TRL's mean seconds over Graft's, round by round, of which it is the median. Graft computes
    the reference of all rows once: the share of one of an epoch's steps is added to its seconds.
    """
    cell, rounds = run["cell"], run["rounds"]
    steps_of_epoch = cell["train"] / cell["batch_size"]
    share = run["ready"]["graft"].get("reference_s", 0.0) / steps_of_epoch
    losses = {
        tool: [*run["ready"][tool]["losses"], *(x for r in rounds for x in r["turns"][tool]["losses"])]
        for tool in TOOLS
    }
    warm = len(run["ready"]["graft"]["losses"])
    quiet = [k for k, r in enumerate(rounds) if r["others"] <= MOST]
    counted = [run["tokens"][warm + k * run["turn"] : warm + (k + 1) * run["turn"]] for k in quiet]
    for tool in TOOLS:
        facts: Row = {
            **{column: cell[column] for column in ("part", "data", "seed", *SETTINGS)}, "tool": tool,
            "first_loss": losses[tool][0], "last_loss": losses[tool][-1], "train_pairs": cell["train"],
            "gap": largest_gap(*losses.values()) if tool == "trl" else None,
            "trained": run["ready"][tool]["trained"], "peak_mib": run["ended"][tool]["peak_mib"],
            **circumstances(run),
        }  # fmt: skip
        if len(quiet) >= run["wanted"]:
            seconds = [rounds[k]["turns"][tool]["seconds"] for k in quiet]
            extra = share if tool == "graft" else 0.0
            step = statistics.median(s for turn in seconds for s in turn) + extra
            whole = sum(sum(turn) + extra * run["turn"] for turn in seconds)
            facts |= {"step_ms": 1000 * step, "tokens_per_s": sum(map(sum, counted)) / whole}
            facts["reference_ms"] = 1000 * share if tool == "graft" else None
        if tool == "trl" and "step_ms" in facts:
            ratios = [_seconds(rounds[k], "trl") / (_seconds(rounds[k], "graft") + share) for k in quiet]
            facts |= {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}
        yield facts


def answered(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of a run on answers of the model's own."""
    cell, curve = run["cell"], run["curve"]
    before, after = run["before"], run["after"]
    seconds = {name: statistics.median(at[name] for at in curve) for name in SECONDS}
    row: Row = {column: cell[column] for column in ("part", "data", "seed", *SETTINGS)} | {"tool": "graft"}
    for name in ("reward", "length", "ended", "right"):
        row |= {f"{name}_before": before.get(name), f"{name}_after": after.get(name)}
    yield row | {
        "kl": after.get("kl"), "answers": after["answers"],
        "prompts": cell["prompts"], "group": cell["group"], **speeds(run, **seconds), **circumstances(run),
    }  # fmt: skip


def peaks(run: dict[str, Any]) -> Iterator[Row]:
    """Yield the peak of each stage that was measured on the same base, batch and length."""
    for stage, side in run["stages"].items():
        yield {
            **{column: run["cell"].get(column) for column in ("data", "seed", *SETTINGS)},
            "part": f"peak {stage}", "tool": "graft", "peak_mib": side["peak_mib"],
            "idle_mib": side["idle_mib"], **circumstances(run),
        }  # fmt: skip


def curves(run: dict[str, Any]) -> Iterator[Row]:
    """Yield what each iteration of a run on answers of the model's own reports."""
    for number, at in enumerate(run.get("curve", []), 1):
        key = {column: run["cell"][column] for column in CURVES.key[:-1]}
        yield key | {"iteration": number, **{name: at[name] for name in CURVES.facts}}


KINDS = {"rounds": timed, "curve": answered, "stages": peaks, "longer_wins": compared}


def _seconds(round_: dict[str, Any], tool: str) -> float:
    """Return the mean seconds of a step in a round."""
    return statistics.mean(round_["turns"][tool]["seconds"])


def largest_gap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest difference of two curves.

    >>> largest_gap([1.0, 0.5], [1.0, 0.75])
    0.25
    """
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def standard_error(values: Sequence[float], groups: Sequence[str]) -> float:
    """Return the standard error of the mean of values that hang together in groups.

    With groups of one it is the usual one but for n/(n − 1):  √( Σ_g (Σ_{i∈g} (x_i − x̄))² ) / n.

    >>> standard_error([1.0, 0.0, 1.0, 0.0], "abcd"), standard_error([1.0, 1.0, 0.0, 0.0], "aabb")
    (0.25, 0.35355339059327373)
    """
    mean = statistics.mean(values)
    sums: dict[str, float] = {}
    for value, group in zip(values, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + value - mean
    return math.sqrt(sum(total**2 for total in sums.values())) / len(values)


RESULTS = Table(
    "preference",
    key=("part", "data", "seed", "tool"),
    facts=(
        *SETTINGS, *LOSSES, "gap", "accuracy", "error", "pairs", "groups", "margin", "longer_wins", "step_ms",
        "reference_ms", "tokens_per_s", "ratio", "ratio_low", "ratio_high", "peak_mib", "idle_mib", "trained",
        "prompts", "group", *MEASURES, "kl", "answers", *SECONDS, "read", "left_out", "train_pairs",
        *CIRCUMSTANCES,
    ),
    rows=rows,
    named=3,
    exact=LOSSES,  # both tools agree to rounding, which five digits would hide
)  # fmt: skip
CURVES = Table(
    "preference", key=("part", "data", "seed", "iteration"),
    facts=("reward", "kl", "length", "ended", "entropy"), rows=curves, file="curves.csv", named=3,
)  # fmt: skip
TABLES = (RESULTS, CURVES)
