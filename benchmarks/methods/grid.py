"""The runs: every line on both tasks, some rates at one seed, then the best rate at all seeds, and PEFT's
side of it.

The rate is chosen by the loss on training rows that are left out of training. Both tools take the same rows
in the same order, the same steps, batch, seed and schedule.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import internals
import tasks
from lines import BANKING, HEAD, LAPTOP, LINEARS, LINES
from results import RAW, Row

WORK = RAW.parent / "methods"
TOOLS = ("graft", "peft")
SEEDS = (0, 1, 2)
FACTOR = 3  # between neighbouring rates
BEYOND = 2  # rates that may follow the first three


@dataclass(frozen=True)
class Setting:
    """A task on its base.

    context: the most tokens of a row.  new_tokens: of an answer.  linears: the linear layers of the blocks,
    as target_modules; MiniLM's pooler is left out, as the states are read before it.
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
        """The folder of the base."""
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
        """The name of the run, of its raw file and of its log.

        >>> Cell(SETTINGS["laptop"], "lora", "graft", 0.00133).name
        'laptop.lora.graft.0.00133.0'
        """
        return f"{self.setting.task}.{self.line}.{self.tool}.{self.lr:g}.{self.seed}"

    def material(self) -> Path:
        """Return the folder of its rows, test and held-out sample."""
        return WORK / "data" / f"{self.setting.base}.{self.setting.task}"

    def method(self) -> list[dict[str, Any]]:
        """Return the recipe's methods."""
        s = self.setting
        line = LINES[self.line]
        first, *rest = ({k: s.linears if v == LINEARS else v for k, v in m.items()} for m in line["method"])
        first |= line.get("on", {}).get(s.task, {})
        first |= {key: round(share * s.steps) for key, share in line.get("shares", {}).items()}
        first |= (
            {"adapters": [str(m.folder() / "adapter") for m in self.members()]} if "fuses" in line else {}
        )
        bare = s.stage == "classify" and not any("final" in kinds(m["name"]) for m in line["method"])
        return [first, *rest, *([HEAD] if bare else [])]

    def members(self) -> list["Cell"]:
        """Return the runs whose adapters this one fuses."""
        fused = LINES[self.line].get("fuses", {}).get(self.setting.task, {})
        return [Cell(replace(self.setting, task=task), "pfeiffer", "graft", lr) for task, lr in fused.items()]

    def folder(self) -> Path:
        """Return the folder in which such a run stays."""
        return WORK / "fused" / self.name

    def peft(self) -> dict[str, Any]:
        """Return what the peer needs besides the file of our untrained adapter."""
        line = LINES[self.line]
        steps = self.setting.steps
        more = {"total_step": steps} if "shares" in line else {}
        return {"more": line["peft"] | more, "own_start": line.get("own_start", False)}

    def recipe(self, output: Path) -> dict[str, Any]:
        """Return the recipe of Graft's run; the peer takes its batches, rate and constants from the same."""
        s = self.setting
        method = self.method()
        return {
            "model": str(s.folder),
            "quant": LINES[self.line].get("quant", "none"),
            "dtype": "fp32",
            "stage": s.stage,
            "method": method if len(method) > 1 else method[0],
            "data": tasks.data(tasks.train_file(self.material(), None), s),
            **tasks.training(s, self.lr, self.seed, output),
        }


def cells(known: Mapping[str, Row]) -> Iterator[Cell]:
    """Yield the runs that can be named: the rates of every line, then, where these are known, the rest at the
    best."""
    places = [
        (setting, line)
        for setting in SETTINGS.values()
        for line in possible()
        if setting.task in LINES[line]["lr"]
    ]
    for setting, line in places:
        yield from search(known, setting, line)
    chosen = [(setting, line, best(known, search(known, setting, line))) for setting, line in places]
    for seed in SEEDS:
        for setting, line, lr in chosen:
            for tool in tools_of(line) if lr is not None else ():
                if (tool, seed) != ("graft", SEEDS[0]):  # the search has that one
                    yield Cell(setting, line, tool, lr, seed)


def search(known: Mapping[str, Row], setting: Setting, line: str) -> list[Cell]:
    """Return the runs that choose a line's rate: three, and while the best is the first or last, the next
    beyond it."""
    middle = LINES[line]["lr"][setting.task]
    powers = [-1, 0, 1]

    def at(power: int) -> Cell:
        return Cell(setting, line, "graft", float(f"{middle * FACTOR**power:.3g}"))

    for _ in range(BEYOND):
        lr = best(known, [at(power) for power in powers])
        if lr == at(powers[0]).lr:
            powers.insert(0, powers[0] - 1)
        elif lr == at(powers[-1]).lr:
            powers.append(powers[-1] + 1)
    return [at(power) for power in powers]


def best(known: Mapping[str, Row], searched: Sequence[Cell]) -> float | None:
    """Return the rate with the smallest held-out loss; None if a run is missing or all diverged."""
    if any(cell.name not in known for cell in searched):
        return None
    loss, lr = min((known[cell.name].get("held_loss", math.inf), cell.lr) for cell in searched)
    return lr if math.isfinite(loss) else None


def tools_of(line: str) -> tuple[str, ...]:
    """Return the tools that have the line."""
    return TOOLS if "peft" in LINES[line] else TOOLS[:1]


def possible() -> list[str]:
    """Return the lines whose methods all have a file."""
    return [line for line in LINES if not absent(line)]


def absent(line: str) -> list[str]:
    """Return the methods of a line that have no file."""
    return [method["name"] for method in LINES[line]["method"] if method["name"] not in internals.cards()]


def kinds(method: str) -> tuple[str, ...]:
    """Return the kinds of places at which a method sits."""
    return tuple(internals.cards()[method].declared.get("kinds", ()))


def unlisted() -> list[str]:
    """Return the methods without a line."""
    return sorted(
        internals.cards().keys() - {method["name"] for line in LINES.values() for method in line["method"]}
    )
