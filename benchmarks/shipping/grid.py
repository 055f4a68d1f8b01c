"""The runs: bases with their tasks, and ways to train and ship in few bits.

    qlora     LoRA on an NF4 base; merged in 16 bits, then packed: NF4 again, int4 rounded and by GPTQ,
              int2 by GPTQ
    qalora    QA-LoRA on an int4 base (GPTQ); merged into the minima of its groups
    qalora2   the same in 2 bits

All runs of a setting have the same rows in the same order, steps, batch, rank, rate and schedule.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks
from results import RAW, Row

WORK = RAW.parent / "shipping"
SEEDS = (0, 1, 2)
GROUP = 32  # the paper's
CALIBRATION = 128  # training rows that choose the codes of GPTQ
QLORA, QALORA, QALORA2 = LINES = ("qlora", "qalora", "qalora2")
BITS = {QALORA: "int4", QALORA2: "int2"}
# The forms of each line in the order of the table; the first is the one that was trained.
FORMS = {
    QLORA: (
        "nf4 + adapter", "16 bits", "nf4, packed again", "int4, rounded", "int4, GPTQ", "int2, GPTQ",
        "GGUF Q4_1, rounded", "GGUF Q8_0",
    ),
    **{
        line: (f"{bits} + adapter", "16 bits", f"{bits}, merged", "GGUF Q4_1, merged")
        for line, bits in BITS.items()
    },
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One task on one base.

    alpha: lora_alpha of QA-LoRA, whose A reads sums of GROUP inputs; LoRA has 2r.  head: whether the head
    gets a LoRA too; it stays in 16 bits.  new_tokens: of an answer.  The other settings are those of a
    recipe.
    """

    base: str
    task: str
    context: int
    steps: int
    batch_size: int
    r: int
    alpha: float
    new_tokens: int
    lr: float = 3e-3
    head: bool = False

    @property
    def stage(self) -> str:
        return "sft"


SETTINGS = (
    Setting("seedling", "descriptions", 256, steps=200, batch_size=16, r=16, alpha=32, new_tokens=120),
    # The book model hardly knows the task's signs: its head is trained too, as in benchmarks/real.
    Setting(
        "book-llama-6m", "laptop", 192, steps=400, batch_size=4, r=64, alpha=22, new_tokens=96, head=True
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One training, and all forms in which the result is shipped."""

    setting: Setting
    line: str
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the run, of its raw file and of its log.

        >>> Cell(SETTINGS[1], "qalora", 2).name
        'book-llama-6m.laptop.qalora.2'
        """
        return f"{self.setting.base}.{self.setting.task}.{self.line}.{self.seed}"

    def material(self) -> Path:
        """Return the folder of its rows and test."""
        return tasks.WORK / "data" / f"{self.setting.base}.{self.setting.task}"

    def rows(self) -> str:
        """Return the rows as a recipe names them."""
        if self.setting.task in tasks.TEXT_TASKS:
            return str(tasks.train_file(self.material(), None))
        return f"seedling:{self.setting.task}"

    def data(self, limit: int | None = None) -> dict[str, Any]:
        """Return the `data` of a recipe."""
        return {**tasks.data(self.rows(), self.setting), "limit": limit}

    def origin(self) -> str:
        """Return the base before it is quantised."""
        return "seedling" if self.setting.base == "seedling" else str(tasks.model_folder(self.setting.base))

    def packed(self) -> Path:
        """Return the folder of the base in the bits of this line, packed by GPTQ."""
        return WORK / "models" / f"{self.setting.base}.{self.setting.task}.{BITS[self.line]}"

    def recipe(self, output: Path) -> dict[str, Any]:
        """Return the recipe of the training."""
        s = self.setting
        low_rank = {"name": "lora", "r": s.r, "lora_alpha": 2 * s.r, "target_modules": "all-linear"}
        pooled = {**low_rank, "name": "qa_lora", "lora_alpha": s.alpha}
        head = {**low_rank, "target_modules": ["lm_head"]}
        return {
            "model": self.origin() if self.line == QLORA else str(self.packed()),
            "quant": "nf4" if self.line == QLORA else "none",
            "dtype": "bf16",
            "stage": s.stage,
            "method": [low_rank if self.line == QLORA else pooled, *([head] if s.head else [])],
            "data": self.data(),
            **tasks.training(s, s.lr, self.seed, output),
        }


def cells(known: Mapping[str, Row]) -> Iterator[Cell]:
    """Yield every run, one seed after the other."""
    for seed in SEEDS:
        for setting in SETTINGS:
            yield from (Cell(setting, line, seed) for line in LINES)
