"""The committed columns of this benchmark: results.csv, a line for each side of each row, and parts.csv, the
parts of a training step."""

from collections.abc import Iterator
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances

PLACE = ("cpu", "isa", *CIRCUMSTANCES)
SPEED = ("seconds", "seconds_low", "seconds_high", "per_s", "ratio", "ratio_low", "ratio_high", "share")
MEMORY = ("peak_mib", "loaded_mib", "load_peak_mib", "bound_mib")
SAME = (
    "same", "trained", "steps", "loss_reference", "loss_first", "loss_error", "loss_last", "same_tokens",
    "distance",
)  # fmt: skip
LIMITS = ("machine_gflops", "machine_gb_per_s", "refused", "others")


def _place(run: dict[str, Any]) -> Row:
    return circumstances(run) | {"cpu": run["cpu"], "isa": run["isa"]}


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield a line for each side, the first side first by its number."""
    for number, (side, facts) in enumerate(run["sides"].items()):
        yield {
            "row": run["name"], "number": number, "side": side, "rounds": run["quiet"], **_place(run), **facts
        }  # fmt: skip


def parts(run: dict[str, Any]) -> Iterator[Row]:
    """Yield a line for each part of each side's step; its seconds are empty if the machine was not quiet."""
    for number, (side, spent) in enumerate(run["parts"].items()):
        refused = run["sides"][side]["refused"]
        for part, seconds in spent.items():
            key = {"row": run["name"], "number": number, "part": part}
            yield key | {"side": side, "seconds": None if refused else seconds}


RESULTS = Table(
    "speed",
    key=("row", "number"),
    facts=("side", "variant", "rounds", *SPEED, *MEMORY, *SAME, *LIMITS, *PLACE),
    rows=rows,
    named=1,
)
PARTS = Table(
    "speed", key=("row", "number", "part"), facts=("side", "seconds"), rows=parts, file="parts.csv", named=1
)
TABLES = (RESULTS, PARTS)
