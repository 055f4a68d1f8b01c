"""The committed columns of this benchmark: results.csv, a line for each side of each row on each kind of
processor."""

from collections.abc import Iterator
from typing import Any

from results import CIRCUMSTANCES, Row, Table, circumstances

PLACE = ("isa", *CIRCUMSTANCES)
SPEED = ("seconds", "seconds_low", "seconds_high", "per_s", "ratio", "ratio_low", "ratio_high", "share")
# Seconds of a training step by part, as parts.py sorts them.
PARTS = (
    "products", "unpacking", "attention", "head and loss", "element-wise", "adapter", "optimizer", "rest"
)  # fmt: skip
MEMORY = ("peak_mib", "loaded_mib", "load_peak_mib", "bound_mib")
SAME = (
    "same", "trained", "steps", "loss_reference", "loss_first", "loss_error", "loss_last", "same_tokens",
    "distance",
)  # fmt: skip
LIMITS = ("machine_gflops", "machine_gb_per_s", "refused", "others")


def rows(run: dict[str, Any]) -> Iterator[Row]:
    """Yield a line for each side; the side that ratios are about has the number 0.

    Seconds are left out if the machine was not quiet.
    """
    for number, (side, facts) in enumerate(run["sides"].items()):
        parts = {} if facts["refused"] else run["parts"].get(side, {})
        yield {
            "row": run["name"], "cpu": run["cpu"], "number": number, "side": side,
            "rounds": run["quiet"], **facts, **parts,
            "isa": run["isa"], **circumstances(run),
        }  # fmt: skip


RESULTS = Table(
    "speed",
    key=("row", "cpu", "number"),  # kinds of processors stand beside each other
    facts=("side", "variant", "rounds", *SPEED, *PARTS, *MEMORY, *SAME, *LIMITS, *PLACE),
    rows=rows,
    named=2,
)
TABLES = (RESULTS,)
