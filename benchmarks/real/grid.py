"""The runs: every base with its tasks, by every method, tool, number of rows and seed.

Both tools train a run with the same rows in the same order, the same steps, batch, seed, learning rate and
schedule. The methods of one setting differ in the learning rate alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks
from results import Row

METHODS = ("full", "lora", "qlora")
TOOLS = ("graft", "peft")
SEEDS = (0, 1, 2)
# All linear layers of a Llama, and its head too: these bases hardly know the tasks' signs, and some never saw
# the end of a text.
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


@dataclass(frozen=True)
class Setting:
    """One task on one base.

    context: the most tokens of a row.  lr: peak rate of full and of LoRA.  r: rank of LoRA, whose alpha is
    twice that. new_tokens: of an answer.  sizes: numbers of rows to train LoRA on, besides all of them.
    """

    base: str
    task: str
    context: int
    steps: int
    batch_size: int
    lr: dict[str, float]
    r: int = 16
    new_tokens: int = 0
    sizes: tuple[int, ...] = ()

    @property
    def stage(self) -> str:
        return "sft" if self.task in tasks.TEXT_TASKS else "classify"


SIZES = (500, 1000)
RATES = {"full": 2e-3, "lora": 3e-3}
BOOK = {"context": 192, "steps": 400, "batch_size": 4, "lr": RATES, "r": 64, "new_tokens": 96}
MINILM = {"context": 64, "steps": 220, "batch_size": 16, "lr": {"full": 5e-4, "lora": 3e-3}}
STORIES = {
    "context": 512, "steps": 600, "batch_size": 4, "lr": {"full": 2e-3, "lora": 4e-3}, "r": 32,
    "new_tokens": 144,
}  # fmt: skip
LETTERS = {"context": 256, "steps": 700, "batch_size": 4, "lr": RATES, "r": 32, "new_tokens": 200}
SETTINGS = (
    Setting("book-llama-6m", "e2e", sizes=SIZES, **BOOK),
    Setting("book-llama-6m", "laptop", sizes=SIZES, **BOOK),
    Setting("all-MiniLM-L6-v2", "banking77", sizes=SIZES, **MINILM),
    Setting("stories260K", "e2e", **STORIES),
    Setting("stories260K", "laptop", **STORIES),
    Setting("babyllama-char", "e2e", **LETTERS),
    Setting("babyllama-char", "laptop", **LETTERS),
)


@dataclass(frozen=True)
class Cell:
    """One run.  method "none": the base before any training (Graft only).  rows: how many; None is all."""

    setting: Setting
    method: str
    tool: str = "graft"
    rows: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the run, of its raw file and of its log.

        >>> Cell(SETTINGS[0], "lora", "peft", 500, 2).name
        'book-llama-6m.e2e.500.lora.peft.2'
        """
        s = self.setting
        return f"{s.base}.{s.task}.{self.rows or 'all'}.{self.method}.{self.tool}.{self.seed}"

    @property
    def lr(self) -> float:
        return self.setting.lr["full" if self.method == "full" else "lora"]

    def material(self) -> Path:
        """Return the folder of its rows and test."""
        return tasks.WORK / "data" / f"{self.setting.base}.{self.setting.task}"

    def recipe(self, output: Path) -> dict[str, Any]:
        """Return the recipe of Graft's run; the peer takes its batches, rate and constants from the same."""
        s = self.setting
        rows = tasks.train_file(self.material(), self.rows)
        method: dict[str, Any] = {"name": "full"}
        if self.method != "full":
            targets = "all-linear" if s.stage == "classify" else LINEARS
            method = {"name": "lora", "r": s.r, "lora_alpha": 2 * s.r, "target_modules": targets}
            if s.stage == "classify":
                # Classes are read from the mean of the last hidden states, which the pooler does not touch.
                method["exclude_modules"] = ["pooler.dense"]
        return {
            "model": str(tasks.model_folder(s.base)),
            "quant": "nf4" if self.method == "qlora" else "none",
            "dtype": "fp32",
            "stage": s.stage,
            "method": method,
            "data": tasks.data(rows, s),
            **tasks.training(s, self.lr, self.seed, output),
        }


def cells(known: Mapping[str, Row]) -> Iterator[Cell]:
    """Yield every run, one seed after the other, so that a table can be made early."""
    yield from (Cell(setting, "none") for setting in SETTINGS)
    for seed in SEEDS:
        for setting in SETTINGS:
            kinds = [(method, None) for method in METHODS] + [("lora", size) for size in setting.sizes]
            yield from (Cell(setting, method, tool, rows, seed) for method, rows in kinds for tool in TOOLS)
