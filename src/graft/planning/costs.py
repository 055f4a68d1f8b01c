"""What a run takes, in numbers that a file can keep: bytes that are held, and the cost of a step as it grows.

Nothing here needs torch: what was reckoned once is read again in a tenth of a second (`graft.planning.kept`).
"""

from dataclasses import dataclass
from typing import Any

# Of the blocks that a step takes from the C library's heap, a share is lost in holes between them. It grows
# with what a step allocates for each byte that it holds at the peak, from FREE times on: benchmarks/memory.
LEAST, MOST = 0.05, 0.8
FREE, GROWTH = 2.3, 0.2


@dataclass(frozen=True)
class Work:
    """What the processor does in a step, besides the optimizer.

    products, attention: multiplications with additions.  decoded: packed weights.  written: bytes of results.
    operations: how many.
    """

    products: float = 0.0
    attention: float = 0.0
    decoded: float = 0.0
    written: float = 0.0
    operations: float = 0.0


@dataclass(frozen=True)
class Cost:
    """A step.  tensors: bytes that its operations hold at most.  heap: of these, those in small blocks."""

    tensors: int
    heap: int
    work: Work = Work()

    def holes(self, device: str) -> int:
        """Return the bytes that the allocator keeps besides."""
        if device != "cpu":
            return 0
        turned_over = self.work.written / max(self.tensors, 1)
        return round(min(max(GROWTH * (turned_over - FREE), LEAST), MOST) * self.heap)


@dataclass(frozen=True)
class Law:
    """The bytes of a step by rows and length: fixed + token · rows · length + pair · rows · length²."""

    fixed: float
    token: float
    pair: float

    @classmethod
    def through(cls, rows: int, length: int, bytes_at: tuple[int, int, int]) -> "Law":
        """Return the law of three steps: of this shape, of twice the rows, and of twice the length.

        >>> Law.through(2, 8, (100 + 3 * 16 + 2 * 128, 100 + 3 * 32 + 2 * 256, 100 + 3 * 32 + 2 * 512))
        Law(fixed=100.0, token=3.0, pair=2.0)
        """
        here, more, longer = bytes_at
        pair = max((longer - more) / (2 * rows * length**2), 0.0)
        token = max((more - here) / (rows * length) - pair * length, 0.0)
        return cls(here - rows * length * (token + pair * length), token, pair)

    def at(self, rows: int, length: int) -> float:
        """Return the bytes of a step."""
        return self.fixed + rows * self.row(length)

    def row(self, length: int) -> float:
        """Return the bytes of each row."""
        return length * (self.token + self.pair * length)

    def rows(self, length: int, room: float) -> int:
        """Return how many rows of this length fit into so many bytes."""
        return max(int((room - self.fixed) / max(self.row(length), 1.0)), 0)

    def length(self, rows: int, room: float) -> int:
        """Return the length of the longest rows that fit, so many at once."""
        each = (room - self.fixed) / rows
        if each <= 0 or not (self.token or self.pair):
            return 0
        if not self.pair:
            return int(each / self.token)
        return int((-self.token + (self.token**2 + 4 * self.pair * each) ** 0.5) / (2 * self.pair))


@dataclass(frozen=True)
class Held:
    """Bytes that are there before a step, and counts.

    parts: bytes of weights, adapter, gradients, and of the optimizer's states on the device.
    parameters, trained, sites: counts, of the base and of the adapter.
    uniform: see `sketch.same_in_every_block`.
    states: bytes of all optimizer states, paged ones included.  update: temporaries of one optimizer update.
    packed: bytes that the weights would lose as nf4; 0 if they are packed.
    """

    parts: dict[str, int]
    parameters: int
    trained: int
    sites: int
    uniform: bool
    states: int
    update: int
    packed: int


@dataclass(frozen=True)
class Facts:
    """Everything that a plan of one run in one number format is reckoned from.

    base: its name.  rows, length: of a step.  checkpointing: of `run` and `law`.  budget: bytes of a paged
    optimizer that stay.  rank: `method.r`, or 0.
    run: a step.  law: of steps.  recomputed: a step with checkpointing.  evaluation: a forward.
    beside: bytes of adapters beside the trained one.  writing: bytes of writing answers.
    step_tokens: tokens of an optimizer step, steps: how many of them, None if that is not known.
    positions: the longest row that the model reads, None without a limit.
    """

    base: str
    held: Held
    rows: int
    length: int
    step_rows: int
    steps: int | None
    checkpointing: bool
    budget: int
    rank: int
    quantisable: bool
    run: Cost
    law: Law
    recomputed: Cost
    evaluation: Cost
    beside: int = 0
    writing: int = 0
    positions: int | None = None


def facts_of(kept: dict[str, Any]) -> Facts:
    """Return the facts that `dataclasses.asdict` made JSON of."""

    def cost(values: dict[str, Any]) -> Cost:
        return Cost(**{**values, "work": Work(**values["work"])})

    costs = {name: cost(kept[name]) for name in ("run", "recomputed", "evaluation")}
    return Facts(**{**kept, **costs, "held": Held(**kept["held"]), "law": Law(**kept["law"])})
