"""The runs: every data set, stage and fold by both tools from one start, and runs on the model's own answers.

A seed is a fold: with seed k the k-th third of the pairs is held out, and adapter, head and order of rows are
drawn with k. Sums have one division, drawn once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import material
import tasks
from results import Row

BASE = "book-llama-6m"
SEEDS = range(material.FOLDS)
TOOLS = ("graft", "trl")
BETA, CENTRING = 0.1, 0.01
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"name": "lora", "r": 16, "lora_alpha": 32, "target_modules": LINEARS}


@dataclass(frozen=True)
class Setting:
    """One stage on one data set.  context: the most tokens of a prompt with one answer.

    steps, batch_size, lr: of the stage; lr falls to 0 in a line, without warm-up.
    """

    data: str
    stage: str
    context: int
    steps: int
    batch_size: int
    lr: float


HH = {"data": "hh", "context": 192}
OASST = {"data": "oasst", "context": 384}
SFT = {
    "hh": Setting(**HH, stage="sft", steps=200, batch_size=8, lr=2e-3),
    "oasst": Setting(**OASST, stage="sft", steps=60, batch_size=4, lr=2e-3),
}
SETTINGS = (
    Setting(**HH, stage="reward", steps=134, batch_size=16, lr=1e-3),
    Setting(**HH, stage="dpo", steps=80, batch_size=8, lr=3e-4),
    Setting(**OASST, stage="reward", steps=60, batch_size=4, lr=1e-3),
    Setting(**OASST, stage="dpo", steps=60, batch_size=4, lr=3e-4),
)


@dataclass(frozen=True)
class Cell:
    """One comparison: the same stage, rows and start by both tools."""

    setting: Setting
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the run, of its raw file and of its log.

        >>> Cell(SETTINGS[0], 2).name
        'reward.hh.2'
        """
        return f"{self.setting.stage}.{self.setting.data}.{self.seed}"

    def rows(self, name: str) -> Path:
        """Return a file of the fold's rows: pairs, test or answers."""
        return material.folder(self.setting.data, self.seed) / f"{name}.jsonl"

    @property
    def tuned(self) -> Path:
        """The run of supervised fine-tuning from which the stage starts."""
        return material.WORK / "starts" / f"sft.{self.setting.data}.{self.seed}"

    def supervised(self) -> dict[str, Any]:
        """Return the recipe of that run."""
        setting = SFT[self.setting.data]
        own = self._settings("answers", setting, self.tuned)
        return own | {"stage": "sft", "method": LORA}

    def recipe(self, start: Path, output: Path) -> dict[str, Any]:
        """Return the recipe of Graft's run from a saved adapter; the peer has the same numbers."""
        stages: dict[str, dict[str, Any]] = {
            "reward": {"name": "reward", "centring": CENTRING},
            "dpo": {"name": "preference", "objective": "dpo", "beta": BETA},
        }
        own = self._settings("pairs", self.setting, output)
        return own | {"stage": stages[self.setting.stage], "adapter": str(start)}

    def headed(self, output: Path) -> dict[str, Any]:
        """Return the recipe that gives the tuned adapter a new head and moves nothing: a start of reward."""
        own = self.recipe(self.tuned / "adapter", output)
        return own | {"train": own["train"] | {"max_steps": 1, "lr": 1e-30}}

    def _settings(self, rows: str, setting: Setting, output: Path) -> dict[str, Any]:
        shared = tasks.training(setting, setting.lr, self.seed, output)
        return {
            "model": model(),
            "dtype": "fp32",
            "data": tasks.data(self.rows(rows), setting) | {"pack": True},
            **shared,
            "train": shared["train"] | {"warmup": 0.0},
        }


@dataclass(frozen=True)
class Own:
    """One stage on answers that the model writes itself.  stage: ppo, or grpo.  data: hh, or sums.

    context: the most tokens of a prompt with its answer.  new: of an answer.  batch_size: prompts of a step.
    settings: of the stage, beside its rewards.  schedule: of the rate.
    """

    data: str
    stage: str
    context: int
    new: int
    steps: int
    batch_size: int
    lr: float
    settings: Mapping[str, Any]
    schedule: str = "constant"


OWN = (
    Own(
        "hh", "ppo", context=192, new=48, steps=240, batch_size=16, lr=3e-4,
        settings={"prompts": 32, "group": 1, "epochs": 4, "temperature": 1.0, "beta": 0.05},
    ),
    Own(
        "sums", "grpo", context=32, new=6, steps=200, batch_size=64, lr=3e-4,
        settings={
            "prompts": 64, "group": 8, "epochs": 1, "temperature": 1.0, "beta": 0.0, "missing_end": 0.0,
        },
        schedule="linear",
    ),
)  # fmt: skip
SUMS = Setting("sums", "sft", context=32, steps=600, batch_size=64, lr=1.5e-3)
TESTED = 100  # prompts that are answered before and after


@dataclass(frozen=True)
class OwnCell:
    """One run on answers of the model's own, by Graft."""

    setting: Own
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the run, of its raw file and of its log.

        >>> OwnCell(OWN[0], 2).name
        'ppo.hh.2'
        """
        return f"{self.setting.stage}.{self.setting.data}.{self.seed}"

    def rows(self, name: str) -> Path:
        """Return a file of rows: prompts to learn by, or test, the held-out ones."""
        return material.folder(self.setting.data, self.seed) / f"{name}.jsonl"

    @property
    def tuned(self) -> Path:
        """The run of supervised fine-tuning from which the stage starts."""
        return material.WORK / "starts" / f"sft.{self.setting.data}.{self.seed}"

    @property
    def paying(self) -> str:
        """What pays the answers: a run of stage reward on the same fold, or the function that checks sums."""
        if self.setting.data == "sums":
            return f"{Path(__file__).with_name('sums.py')}:right"
        return str(material.WORK / "starts" / f"reward.{self.setting.data}.{self.seed}")

    def supervised(self) -> dict[str, Any]:
        """Return the recipe of supervised fine-tuning."""
        if self.setting.data != "sums":
            return Cell(self._pairs(), self.seed).supervised()
        shared = tasks.training(SUMS, SUMS.lr, self.seed, self.tuned)
        return {
            "model": model(), "dtype": "fp32", "stage": "sft",
            "method": LORA | {"r": 64, "lora_alpha": 128},
            "data": tasks.data(self.rows("answers"), SUMS) | {"pack": True},
            **shared,
            "train": shared["train"] | {"warmup": 0.1},
        }  # fmt: skip

    def reward(self) -> dict[str, Any]:
        """Return the recipe of the run that pays."""
        return Cell(self._pairs(), self.seed).recipe(self.tuned / "adapter", Path(self.paying))

    def recipe(self, output: Path) -> dict[str, Any]:
        """Return the recipe of the run."""
        s = self.setting
        shared = tasks.training(s, s.lr, self.seed, output)
        return {
            "model": model(), "dtype": "fp32", "adapter": str(self.tuned / "adapter"),
            "stage": {"name": s.stage, "rewards": self.paying, "max_new_tokens": s.new, **s.settings},
            "data": {"train": str(self.rows("prompts")), "eval": None, "max_length": s.context},
            **shared,
            "train": shared["train"] | {"schedule": s.schedule, "warmup": 0.1},
        }  # fmt: skip

    def _pairs(self) -> Setting:
        return next(s for s in SETTINGS if (s.data, s.stage) == (self.setting.data, "reward"))


AnyCell = Cell | OwnCell


def model() -> str:
    """Return the folder of the base."""
    return str(tasks.model_folder(BASE))


def cells(known: Mapping[str, Row]) -> Iterator[AnyCell]:
    """Yield every run, one seed after the other, so that a table can be made early."""
    for seed in SEEDS:
        yield from (Cell(setting, seed) for setting in SETTINGS)
        yield from (OwnCell(setting, seed) for setting in OWN)
