"""How long a step takes, by what it does and how fast this machine was measured to be (`kernels.measure`).

    micro-batch   products / rate + attention / (share · fp32's rate) + decoded / decoding
                  + written · passes / reading + operations · overhead
    optimizer     states · passes / reading

The constants are those of benchmarks/memory.
"""

from dataclasses import dataclass

from graft.planning.costs import Facts, Work
from graft.sizes import duration

ATTENTION = 1.4  # of the rate of fp32 products, as if nothing were skipped: half is in a causal order
PASSES = 4.0  # times that the memory of a result is touched, reads and fresh pages included
OVERHEAD = 20e-6  # s: what an operation costs beside its arithmetic
UPDATE = 3.0  # times that the optimizer touches its states
NOT_MEASURED = "not measured: `graft doctor --bench` measures this machine"


@dataclass(frozen=True)
class Rates:
    """What a machine does a second.  products: FLOP/s in the number format of the run, fp32: in fp32.

    decoding: weights.  reading: bytes.
    """

    products: float
    fp32: float
    decoding: float
    reading: float


@dataclass(frozen=True)
class Pace:
    """The speed of a run.  step: seconds of an optimizer step.  tokens: of rows, a second.

    steps: of the run, None if it is not known.
    """

    step: float
    tokens: float
    steps: int | None = None

    def __str__(self) -> str:
        text = f"{in_words(self.step)} a step of full rows, {self.tokens:,.0f} tokens/s"
        if self.steps is None:
            return text
        return f"{text}; {self.steps:,} steps in {duration(self.step * self.steps)} at most"


def in_words(seconds: float) -> str:
    """Return a short time in words.

    >>> in_words(0.031), in_words(2.34), in_words(75)
    ('31 ms', '2.3 s', '75 s')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def of_work(work: Work, rates: Rates) -> float:
    """Return the seconds of one micro-batch."""
    return (
        2 * work.products / rates.products
        + 2 * work.attention / (ATTENTION * rates.fp32)
        + work.decoded / rates.decoding
        + PASSES * work.written / rates.reading
        + OVERHEAD * work.operations
    )


def pace(facts: Facts, rates: Rates) -> Pace:
    """Return the pace of a run whose rows are full."""
    micro_batches = -(-facts.step_rows // facts.rows)
    update = UPDATE * (facts.held.states + 2 * facts.held.parts["gradients"]) / rates.reading
    step = micro_batches * of_work(facts.run.work, rates) + update
    return Pace(step, facts.step_rows * facts.length / step, facts.steps)
