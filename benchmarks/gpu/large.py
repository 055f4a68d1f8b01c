"""The rows of the GPU benchmark: shapes, work, goals, and the least memory that a step can need."""

from dataclasses import dataclass

from shapes import BF16, SHAPES, Shape

GIB = 1 << 30
RANK = 16
# With the vocabulary of Llama 2, as `shapes` has it for the smaller ones.
LARGE = SHAPES | {
    shape.name: shape
    for shape in (
        Shape("33b", 6656, 17920, 60, 52, 52),
        Shape("65b", 8192, 22016, 80, 64, 64),
        Shape("70b", 8192, 28672, 80, 64, 8),
    )
}


@dataclass(frozen=True)
class Row:
    """One thing to measure.

    length: tokens of a step, in one packed row; 0: find the longest that fits.  quant: "nf4", or None for
    bf16.  checkpointing: activations are computed again in backward.  limit_gib: of memory that the row may
    take; 0: all.  share: the goal, of the measured product rate; 0: none.
    """

    name: str
    group: str
    shape: str
    length: int
    quant: str | None = "nf4"
    checkpointing: bool = False
    limit_gib: float = 0.0
    share: float = 0.0
    steps: int = 12

    @property
    def least_gib(self) -> float:
        """The least peak memory of a step in GiB; without a length, that of the model and its optimizer."""
        return least_bytes(LARGE[self.shape], self.length, self.quant, self.checkpointing) / GIB


ROWS = (
    Row("tiny", "trial", "tiny", 64, steps=3),
    Row("tiny-checkpointing", "trial", "tiny", 64, checkpointing=True, steps=3),
    Row("tiny-longest", "trial", "tiny", 0, checkpointing=True, steps=1),
    Row("qlora-7b", "G1", "7b", 2048, share=0.6),
    Row("qlora-7b-checkpointing", "G1", "7b", 2048, checkpointing=True),
    Row("longest-7b", "G2", "7b", 0, checkpointing=True, steps=4),
    Row("longest-70b", "G2", "70b", 0, checkpointing=True, steps=4),
    Row("qlora-7b-32k", "G2", "7b", 32768, checkpointing=True, steps=5),
    Row("lora-1.1b", "G3", "1.1b", 256, quant=None, steps=30),
    Row("qlora-1.1b", "G3", "1.1b", 256, steps=30),
    Row("qlora-33b", "G4", "33b", 2048, checkpointing=True, steps=6),
    Row("qlora-65b", "G4", "65b", 2048, checkpointing=True, limit_gib=48.0, steps=6),
)


def least_bytes(shape: Shape, tokens: int, quant: str | None, checkpointing: bool) -> float:
    """Return the least peak memory of a step, with tiled logits: see `Shape.training_bytes`.

    With checkpointing a layer keeps its input; the activations of one layer exist besides.
    """
    every = shape.training_bytes(tokens, RANK)
    fixed = shape.training_bytes(0, RANK)
    if quant is None:
        every, fixed = (n - shape.packed_bytes + shape.file_bytes for n in (every, fixed))
    if not checkpointing:
        return every
    return fixed + (every - fixed) / shape.layers + BF16 * shape.d * shape.layers * tokens


def chosen(words: list[str], *, trial: bool) -> list[Row]:
    """Return the rows whose names or groups hold one of these words, all without any; trials only if asked.

    Raises ValueError, which lists the rows, if there is none.
    """
    rows = [row for row in ROWS if (row.group == "trial") == trial]
    found = [
        row for row in rows if not words or any(w.lower() in f"{row.group} {row.name}".lower() for w in words)
    ]
    if not found:
        raise ValueError(f"no row for {' '.join(words)!r} among {', '.join(row.name for row in rows)}")
    return found
