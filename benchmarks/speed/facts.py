"""From the turns of a row to its numbers: medians, ratios with their spread, shares of the machine's limits,
and whether all sides did the same work."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from grid import Row
from harness import LIMITS, MOST
from shapes import SHAPES, Shape
from weights import RANK

MIB = 1 << 20
SAME = 5e-3  # relative difference of the first loss from the fp32 reference
HALF_GB = 0.5e9
PLAIN = {"16 bits": 2.0, "Q4_0": 0.5 + 2 / 32}  # bytes of a weight, the head's too; else NF4

Facts = dict[str, Any]


def of_row(row: Row, raw: Mapping[str, Any]) -> dict[str, Facts]:
    """Return the facts of each side."""
    quiet = [r for r in raw["rounds"] if r["others"] <= MOST]
    refused = len(quiet) < row.rounds
    limits = _limits(raw["rounds"])
    first = next(iter(row.sides))
    shown = raw["rounds"] if refused else quiet
    state = {"refused": int(refused), "others": max(r["others"] for r in shown)}
    sides = {}
    for name in row.sides:
        ended, ready = raw["ended"].get(name, {}), raw["ready"].get(name, raw["ended"].get(name, {}))
        facts: Facts = {key: ready.get(key) for key in ("variant", "trained", "load_peak_mib", "loaded_mib")}
        facts["peak_mib"] = ended.get("peak_mib")
        facts["bound_mib"] = _bound(row)
        facts |= _same_work(name, row, raw)
        if not refused:
            facts |= _speed(name, first, ready["work"], raw, quiet) | limits
            facts["share"] = _share(name, row, facts, limits)
        sides[name] = facts | state
    return sides


def ratios(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], work: float = 1.0
) -> tuple[float, float, float]:
    """Return (ratio of medians, lowest, highest ratio of a round) of our rate to theirs.

    ours, theirs: the seconds of each round's units.  work: ours in a unit, divided by theirs.

    >>> ratios([[1.0, 1.0], [2.0]], [[2.0], [3.0, 3.0]])
    (3.0, 1.5, 2.0)
    """
    middle = statistics.median
    whole = middle(_flat(theirs)) / middle(_flat(ours)) * work
    rounds = [middle(b) / middle(a) * work for a, b in zip(ours, theirs, strict=True)]
    return whole, min(rounds), max(rounds)


def _flat(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [seconds for turn in rounds for seconds in turn]


def _speed(
    name: str, first: str, work: float, raw: Mapping[str, Any], quiet: Sequence[Mapping[str, Any]]
) -> Facts:
    """Return the median seconds of a unit with their spread, the rate, and the first side's ratio to it."""
    mine, theirs = ([r["turns"][side]["seconds"] for r in quiet] for side in (first, name))
    seconds = sorted(_flat(theirs))
    facts: Facts = {
        "seconds": statistics.median(seconds),
        "seconds_low": seconds[0],
        "seconds_high": seconds[-1],
        "per_s": work / statistics.median(seconds),
    }
    if name != first:
        own = raw["ready"].get(first, raw["ended"].get(first, {}))["work"]
        facts["ratio"], facts["ratio_low"], facts["ratio_high"] = ratios(mine, theirs, own / work)
    return facts


def _limits(rounds: Sequence[Mapping[str, Any]]) -> Facts:
    """Return the best product rate and the best reading rate that were seen between the turns."""
    found = [r[LIMITS] for r in rounds]
    return {
        "machine_gflops": max(limit["flops"] for limit in found) / 1e9,
        "machine_gb_per_s": max(limit["bandwidth"] for limit in found) / 1e9,
    }


def _share(name: str, row: Row, facts: Facts, limits: Facts) -> float | None:
    """Return the share of the machine's own limit that a side reaches, operations or bytes."""
    if row.kind == "optimizer" or row.kind == "demo":
        return None
    shape, rate = SHAPES[row.shape], facts["per_s"]
    if row.kind == "train":
        flops = shape.flops(row.work["length"], RANK, full=row.work["method"] == "full")
        return rate * flops / 1e9 / limits["machine_gflops"]
    if row.kind == "load":
        return rate * shape.file_bytes / 1e9 / limits["machine_gb_per_s"]
    rows = (row.work | row.sides[name])["rows"]
    return rate * _read(facts["variant"], shape) / rows / 1e9 / limits["machine_gb_per_s"]


def _read(variant: str, shape: Shape) -> float:
    """Return the bytes of weights that a step of decoding must read."""
    if variant in PLAIN:
        return PLAIN[variant] * (shape.linear + shape.head)
    return shape.decoding_bytes


def _bound(row: Row) -> float | None:
    """Return the memory that a row should need at most, in MiB; None if there is no bound for it."""
    if row.kind == "load":
        shape = SHAPES[row.shape]
        return (shape.packed_bytes + shape.largest_bytes + HALF_GB) / MIB
    if row.kind == "train" and row.work["method"] == "lora" and row.work.get("quant") == "nf4":
        return 1.25 * SHAPES[row.shape].training_bytes(row.work["length"], RANK) / MIB
    return None


def _same_work(name: str, row: Row, raw: Mapping[str, Any]) -> Facts:
    """Return what shows that this side did the work that the others did."""
    facts: Facts = {}
    ready, ended = raw["ready"].get(name, {}), raw["ended"].get(name, {})
    if row.kind == "train":
        losses = [*ready["warm"], *(loss for r in raw["rounds"] for loss in r["turns"][name]["results"])]
        facts |= {"loss_first": losses[0], "loss_last": losses[-1], "steps": len(losses)}
        facts["loss_reference"] = raw["reference"]["loss"]
        facts["loss_error"] = abs(losses[0] / raw["reference"]["loss"] - 1)
        facts["same"] = int(facts["loss_error"] <= SAME and len(_trained(row, raw)) == 1)
    elif row.kind == "optimizer":
        last = list(row.sides)[-1]  # torch, in fp32
        facts["distance"] = distance(ended["sample"], raw["ended"][last]["sample"])
    elif row.kind == "decode" and raw["reference"] and name.startswith("graft"):
        facts["same_tokens"] = common(ready["warm"][-1][0], raw["reference"]["tokens"])
    return facts


def _trained(row: Row, raw: Mapping[str, Any]) -> set[int]:
    return {raw["ready"][side]["trained"] for side in row.sides}


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the relative distance of two vectors.

    >>> distance([3.0, 4.0], [3.0, 0.0])
    1.3333333333333333
    """
    gap = math.dist(one, other)
    return gap / math.hypot(*other) if any(other) else gap


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts have in common before they part.

    >>> common([1, 2, 3], [1, 2, 4])
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
