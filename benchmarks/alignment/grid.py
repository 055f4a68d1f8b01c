"""The runs: one start for each seed, and every way from there to descriptions that state the price last.

    sft       descriptions in the order of their lists, on the bare base; the others start from its adapter
    dpo       pairs
    kto       single answers with verdicts
    reward    a reward adapter from the same pairs
    ppo       answers of its own, paid by the reward adapter, and by a program for their coverage
    grpo      answers of its own, paid by a program: 1 where the price stands in the last sentence alone, and
              for their coverage
    hacked    as grpo, but paid by a reward that can be cheated, with nothing that holds the model back

The settings are those of the recipes in recipes/, with the changes below.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results import RAW, Row

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
WORK = RAW.parent / "alignment"
SEEDS = (0, 1, 2)
SFT, REWARD, HACKED = "sft", "reward", "hacked"
METHODS = ("dpo", "kto", "ppo", "grpo")  # that have to reach the goals
POINTS = 5  # of a curve


@dataclass(frozen=True)
class Setting:
    """One kind of run.

    recipe: the file whose settings it has.  needs: the runs of the same seed that it starts from, or is paid
    by.  changes: of the recipe's settings, "key=value".
    """

    method: str
    recipe: str
    steps: int
    needs: tuple[str, ...] = (SFT,)
    changes: tuple[str, ...] = ()


CHEATED = f"{Path(__file__).with_name('cheated.py')}:shortness"
COVERAGE = "graft.seedling.preferences:coverage_reward"
# Weight of coverage beside the reward adapter, whose rewards have a deviation of 1 at first. It has
# learnt from answers that state everything but the price, so it pays as much for those that leave some out.
COVERED = 5

SETTINGS = {
    setting.method: setting
    for setting in (
        Setting(
            SFT, "sft", 400, (), ("train.lr=3e-3", "train.micro_batch_size=16", "data.pack=false")
        ),
        Setting("dpo", "dpo", 250),
        Setting("kto", "kto", 250),
        Setting(REWARD, "reward", 125),
        Setting("ppo", "ppo", 320, (SFT, REWARD), ("data.test=null", "stage.beta=0.1")),
        Setting("grpo", "grpo", 320, (SFT,), ("data.test=null",)),
        Setting(
            HACKED, "grpo", 80, (SFT,),
            (f"stage.rewards={CHEATED}", f"stage.judge={COVERAGE}", "stage.beta=0",
             "stage.scale_rewards=auto", "data.eval=0.05", "data.test=null"),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run."""

    setting: Setting
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the run, of its raw file and of its log.

        >>> Cell(SETTINGS["dpo"], 2).name
        'dpo.2'
        """
        return f"{self.setting.method}.{self.seed}"

    @property
    def folder(self) -> Path:
        """The folder of the run, which stays for the runs that need it."""
        return WORK / "kept" / f"{self.name}.{self.setting.steps}"

    @property
    def needs(self) -> dict[str, "Cell"]:
        """The runs that this one needs, by their methods; of a trial, with as few steps."""
        trial = self.setting.steps != SETTINGS[self.setting.method].steps
        changes = {"steps": self.setting.steps} if trial else {}
        return {name: Cell(replace(SETTINGS[name], **changes), self.seed) for name in self.setting.needs}

    def changes(self) -> list[str]:
        """Return what differs from the recipe's file."""
        adapters = {name: cell.folder / "adapter" for name, cell in self.needs.items()}
        begun = [f"adapter={adapters[SFT]}"] if SFT in adapters else []
        paid = []
        if REWARD in adapters:
            paid = [f"stage.rewards={json.dumps({str(adapters[REWARD]): 1, COVERAGE: COVERED})}"]
        return [
            "data.eval=null", *begun, *paid, *self.setting.changes, f"train.max_steps={self.setting.steps}",
            f"train.seed={self.seed}", f"data.seed={self.seed}", "evaluate.limit=null",
            "train.save_every=100", f"output={self.folder}",
        ]  # fmt: skip


def cells(known: Mapping[str, Row]) -> Iterator[Cell]:
    """Yield the runs whose needs are done, one seed after the other."""
    for seed in SEEDS:
        for setting in SETTINGS.values():
            cell = Cell(setting, seed)
            if all(needed.name in known for needed in cell.needs.values()):
                yield cell


def recipe(cell: Cell) -> tuple[Path, list[Any]]:
    """Return the recipe's file and its changes."""
    return RECIPES / f"{cell.setting.recipe}.yaml", cell.changes()
