"""What is compared: every line on both tasks, some rates at one seed, then the best rate at two more, and PEFT's.

The rate is chosen by the loss on training rows that are left out of training. Both tools take the same rows in the same
order, the same steps, batch, seed and schedule.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tasks
from lines import BANKING, HEAD, LAPTOP, LINEARS, LINES

from graft.core.cards import cards

WORK = tasks.ROOT / "runs" / "methods"
TOOLS = ("graft", "peft")
SEEDS = (0, 1, 2)
FACTOR, BEYOND = 3, 2  # between neighbouring rates; how many may follow the first three


@dataclass(frozen=True)
class Setting:
    """A task on its base.

    context: tokens of a row at most.  new_tokens: of an answer.  linears: the linear layers of the blocks, as
    target_modules; those of MiniLM's pooler lie behind the states that are read.
    """

    base: str
    task: str
    context: int
    steps: int
    batch_size: int
    linears: str = "all-linear"
    new_tokens: int = 0

    @property
    def stage(self) -> str:
        return "sft" if self.task in tasks.TEXT_TASKS else "classify"

    @property
    def folder(self) -> Path:
        """Where the base lies."""
        return tasks.SHARED / "models" / self.base


SETTINGS = {
    LAPTOP: Setting("stories260K", "laptop", context=512, steps=240, batch_size=4, new_tokens=144),
    BANKING: Setting(
        "all-MiniLM-L6-v2", "banking77", context=64, steps=64, batch_size=16,
        linears=r"encoder\.layer\.\d+\..*(query|key|value|dense)",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run."""

    setting: Setting
    line: str
    tool: str
    lr: float
    seed: int = 0

    @property
    def name(self) -> str:
        """
        >>> Cell(SETTINGS["laptop"], "lora", "graft", 0.00133).name
        'laptop.lora.graft.0.00133.0'
        """
        return f"{self.setting.task}.{self.line}.{self.tool}.{self.lr:g}.{self.seed}"

    def material(self) -> Path:
        """The folder of its rows, test and held-out sample."""
        return WORK / "data" / f"{self.setting.base}.{self.setting.task}"

    def method(self) -> list[dict[str, Any]]:
        """The recipe's methods."""
        s, line = self.setting, LINES[self.line]
        first, *rest = ({k: s.linears if v == LINEARS else v for k, v in m.items()} for m in line["method"])
        first |= line.get("on", {}).get(s.task, {})
        first |= {key: round(share * s.steps) for key, share in line.get("shares", {}).items()}
        first |= (
            {"adapters": [str(m.folder() / "adapter") for m in self.members()]} if "fuses" in line else {}
        )
        bare = s.stage == "classify" and not any("final" in kinds(m["name"]) for m in line["method"])
        return [first, *rest, *([HEAD] if bare else [])]

    def members(self) -> list["Cell"]:
        """The runs whose adapters this one fuses."""
        fused = LINES[self.line].get("fuses", {}).get(self.setting.task, {})
        return [Cell(replace(self.setting, task=task), "pfeiffer", "graft", lr) for task, lr in fused.items()]

    def folder(self) -> Path:
        """Where the adapter of such a run stays."""
        return WORK / "fused" / self.name

    def peft(self) -> dict[str, Any]:
        """What the peer needs to know besides our newborn adapter's file."""
        line, steps = LINES[self.line], self.setting.steps
        more = {"total_step": steps} if "shares" in line else {}
        return {"more": line["peft"] | more, "own_start": line.get("own_start", False)}

    def recipe(self, output: Path) -> dict[str, Any]:
        """The recipe of graft's run; the peer takes its batches, rate and constants from the same."""
        s, method = self.setting, self.method()
        return {
            "model": str(s.folder),
            "quant": LINES[self.line].get("quant", "none"),
            "dtype": "fp32",
            "stage": s.stage,
            "method": method if len(method) > 1 else method[0],
            "data": {
                "train": str(tasks.train_file(self.material(), None)), "eval": None, "max_length": s.context,
                "pack": False,
            },
            "train": {
                "max_steps": s.steps, "batch_size": s.batch_size, "micro_batch_size": s.batch_size, "lr": self.lr,
                "seed": self.seed, "save_every": s.steps,
            },
            "evaluate": {"batch_size": 50},
            "output": str(output),
        }  # fmt: skip


def cells(results: Path) -> Iterator[Cell]:
    """The runs that can be named now: the rates of every line, then, where these are done, the rest at the best."""
    places = [
        (setting, line)
        for setting in SETTINGS.values()
        for line in possible()
        if setting.task in _rates(line)
    ]
    for setting, line in places:
        yield from search(results, setting, line)
    chosen = [(setting, line, best(results, search(results, setting, line))) for setting, line in places]
    for seed in SEEDS:
        for setting, line, lr in chosen:
            if lr is not None:
                found = (Cell(setting, line, tool, lr, seed) for tool in tools_of(line))
                yield from (
                    cell for cell in found if (cell.tool, seed) != ("graft", SEEDS[0])
                )  # that one searched


def search(results: Path, setting: Setting, line: str) -> list[Cell]:
    """The runs that choose a line's rate: three, and while the best of them stands at an end, the next beyond it."""
    middle, powers = _rates(line)[setting.task], [-1, 0, 1]
    at = lambda power: Cell(setting, line, "graft", float(f"{middle * FACTOR**power:.3g}"))
    for _ in range(BEYOND):
        lr = best(results, [at(power) for power in powers])
        if lr == at(powers[0]).lr:
            powers.insert(0, powers[0] - 1)
        elif lr == at(powers[-1]).lr:
            powers.append(powers[-1] + 1)
    return [at(power) for power in powers]


def best(results: Path, searched: Sequence[Cell]) -> float | None:
    """The rate with the smallest held-out loss; None while a run is missing, or where all diverged."""
    losses = []
    for cell in searched:
        path = results / f"{cell.name}.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        losses.append(math.inf if "diverged" in found else found["held_loss"])
    loss, lr = min(zip(losses, (cell.lr for cell in searched), strict=True))
    return lr if math.isfinite(loss) else None


def tools_of(line: str) -> tuple[str, ...]:
    """The tools that have it."""
    return TOOLS if "peft" in LINES[line] else TOOLS[:1]


def possible() -> list[str]:
    """The lines whose methods all have a file."""
    return [line for line in LINES if not absent(line)]


def absent(line: str) -> list[str]:
    """Methods of a line that have no file."""
    return [method["name"] for method in LINES[line]["method"] if method["name"] not in cards()]


def kinds(method: str) -> tuple[str, ...]:
    """The kinds of places at which a method sits."""
    return tuple(cards()[method].declared.get("kinds", ()))


def unlisted() -> list[str]:
    """Methods without a line."""
    return sorted(cards().keys() - {method["name"] for line in LINES.values() for method in line["method"]})


def _rates(line: str) -> dict[str, float]:
    return LINES[line]["lr"]
