"""Levers: the settings that save memory, how much each would save, and what it costs.

There is one list of them. `graft plan` fills in the numbers before a run, from a sketch of it; the error for
memory that ran out (`graft.training.memory`) fills in what it can still measure.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lever:
    """A setting that saves memory.

    name: what becomes smaller.  change: "key=value", for a recipe or the command line.
    saves: estimated bytes of the training peak.  costs: the price, in words.
    """

    name: str
    change: str
    saves: int
    costs: str


@dataclass(frozen=True)
class Use:
    """The settings of a run, and the bytes that each lever could move.

    rows, length: of a micro-batch.  rank: `method.r`, 0 if the method has none.
    row: bytes of a step per row.
    recomputed: bytes of activations that checkpointing would free, 0 if it is on.
    states: bytes of optimizer states that a paged 8-bit optimizer would take off the device.
    packed: bytes that the weights would lose as nf4, 0 if they are packed.
    trained: bytes of the adapter, its gradients and its optimizer states.
    """

    rows: int
    length: int
    rank: int
    row: int
    recomputed: int
    states: int
    packed: int
    trained: int


def levers(use: Use) -> list[Lever]:
    """Return the levers that save anything, in the order of their price: none, time, quality."""
    rows = max(use.rows // 2, 1)
    length = max(use.length // 2, 1)
    rank = max(use.rank // 2, 1)
    trained = use.trained // 2 if rank < use.rank else 0
    all_levers = [
        Lever("micro-batch", f"train.micro_batch_size={rows}", use.row * (use.rows - rows), "same result"),
        Lever("optimizer", "train.optimizer=paged_adamw_8bit", use.states, "8-bit states, off the device"),
        Lever(
            "activations",
            "train.gradient_checkpointing=true",
            use.recomputed,
            "same result, about a third more time",
        ),
        Lever("weights", "quant=nf4", use.packed, "4-bit base, merging becomes lossy"),
        Lever("length", f"data.max_length={length}", use.row * use.rows // 2, "longer rows are cut"),
        Lever("method", f"method.r={rank}", trained, "fewer trained parameters"),
    ]
    return [lever for lever in all_levers if lever.saves > 0]
