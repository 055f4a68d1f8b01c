"""What is compared: bases with their tasks, and ways to train and ship in few bits.

    qlora     LoRA beside NF4; merged in 16 bits, then packed: NF4 again, int4 rounded and by GPTQ, int2 by GPTQ
    qalora    QA-LoRA beside int4 (GPTQ); merged into its minima
    qalora2   the same in 2 bits

All of a setting are trained with the same rows in the same order, steps, batch, rank, rate and schedule.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks

WORK = tasks.ROOT / "runs" / "shipping"
SEEDS = (0, 1, 2)
GROUP = 32  # the paper's
CALIBRATION = 128  # training rows that choose the codes of GPTQ
QLORA, QALORA, QALORA2 = LINES = ("qlora", "qalora", "qalora2")
BITS = {QALORA: "int4", QALORA2: "int2"}


@dataclass(frozen=True)
class Setting:
    """One task on one base.

    alpha: lora_alpha of QA-LoRA, whose input is a sum of GROUP ones; that of LoRA is 2r.  head: whether it gets a LoRA
    too; it stays in 16 bits.  new_tokens: of an answer.  The other settings are those of a recipe.
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
    Setting(
        "seedling", "descriptions", context=256, steps=200, batch_size=16, r=16, alpha=32, new_tokens=120
    ),
    # The book model hardly knows the task's signs: its head is trained too, as in benchmarks/real.
    Setting(
        "book-llama-6m",
        "laptop",
        context=192,
        steps=400,
        batch_size=4,
        r=64,
        alpha=22,
        new_tokens=96,
        head=True,
    ),
)


@dataclass(frozen=True)
class Cell:
    """One training with all forms that it is shipped in."""

    setting: Setting
    line: str
    seed: int = 0

    @property
    def name(self) -> str:
        """
        >>> Cell(SETTINGS[1], "qalora", 2).name
        'book-llama-6m.laptop.qalora.2'
        """
        return f"{self.setting.base}.{self.setting.task}.{self.line}.{self.seed}"

    def material(self) -> Path:
        """The folder of its rows and test."""
        return tasks.WORK / "data" / f"{self.setting.base}.{self.setting.task}"

    def rows(self) -> str:
        """What a recipe calls its rows."""
        own = self.setting.task not in tasks.TEXT_TASKS
        return f"seedling:{self.setting.task}" if own else str(tasks.train_file(self.material(), None))

    def data(self, limit: int | None = None) -> dict[str, Any]:
        """The `data` of a recipe."""
        return {
            "train": self.rows(),
            "eval": None,
            "max_length": self.setting.context,
            "pack": False,
            "limit": limit,
        }

    def origin(self) -> str:
        """The base before it is quantised."""
        return (
            self.setting.base
            if self.setting.base == "seedling"
            else str(tasks.model_folder(self.setting.base))
        )

    def packed(self) -> Path:
        """The folder of the base in the bits of this line, by GPTQ."""
        return WORK / "models" / f"{self.setting.base}.{self.setting.task}.{BITS[self.line]}"

    def recipe(self, output: Path) -> dict[str, Any]:
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
            "train": {
                "max_steps": s.steps, "batch_size": s.batch_size, "micro_batch_size": s.batch_size,
                "lr": s.lr, "seed": self.seed, "save_every": s.steps,
            },
            "evaluate": {"batch_size": 50},
            "output": str(output),
        }  # fmt: skip


def cells() -> Iterator[Cell]:
    """Every run, one seed after the other."""
    for seed in SEEDS:
        for setting in SETTINGS:
            yield from (Cell(setting, line, seed) for line in LINES)
