"""Carry out a recipe of one stage or of several, which share one base in memory.

Every stage is an ordinary run, equal to the bit to one that is carried out alone: the base is handed on
without adapters, with the tokenizer as it was loaded. A chain's folder holds recipe.yaml, which repeats it,
the folders of its runs, and report.html, which leads to their pages. The same call finds the stages that have
finished, and continues the others.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from graft import storage
from graft.base.base import Base
from graft.core.by_name import answered
from graft.data.rows_given import RowsGiven, taken_out
from graft.errors import CheckpointError, notice
from graft.planning.plan import config_of
from graft.recipe import Recipe
from graft.recipe.chain import Chain, read_chain, stages_in
from graft.runs.audience import attended
from graft.runs.build import load_base, settled
from graft.runs.identity import as_begun, require_same_settings
from graft.runs.report.chain import chain_report
from graft.runs.result import RunResult
from graft.runs.run import NOTHING_LOST, carry_out
from graft.runs.run import run as run_one
from graft.stages.stage import task_of
from graft.storage.signals import obeyed, stopped


@answered
@storage.named_errors("while training")
def run(
    recipe: str | Path | dict[str, Any] | Recipe | Chain,
    overrides: Iterable[str] = (),
    observer: Any = None,
    *,
    progress: bool = True,
) -> RunResult:
    """Carry out a recipe, from the beginning or from the newest checkpoint in its output folder.

    Of a recipe with `stages`, the result is that of the last one; `RunResult.earlier` has the others.
    overrides: "key=value" changes of the recipe; "STAGE.key=value" of one of its stages.
    observer: one or several (`graft.Observer`) that hear of it.  progress: show a bar.
    Raises UsageError for a recipe with wrong settings, DataError for rows that cannot be used,
    CheckpointError for a folder that is in use or belongs to another run, TrainingError for a step that
    failed, MachineError for errors of the system (SpaceError if the disk is full).
    """
    understood: list[str] = []
    overrides = list(overrides)
    plain, given = taken_out(recipe, overrides)
    chain = read_chain(plain, overrides, understood)
    with obeyed(), attended(observer, progress=progress) as audience:
        if chain is None:
            assert not isinstance(recipe, Chain)
            return run_one(recipe, overrides, audience)
        *earlier, last = stages(chain, audience, understood, given=given)
    return replace(last, earlier=tuple(earlier))


def stages(
    chain: Chain,
    observer: Any = None,
    understood: Sequence[str] = (),
    lock: storage.Lock | None = None,
    given: RowsGiven | None = None,
) -> Iterator[RunResult]:
    """Carry out the stages of a chain one after the other, and yield the result of each.

    understood: what to note of its reading.  lock: of the chain's folder, where the caller holds it; each
    stage locks its own.  given: rows in memory that the recipe names.  Raises as `run` does.
    """
    folder = Path(chain.output)
    storage.require_run_folder(folder)
    with storage.locked(folder, lock), attended(observer) as audience:
        with stopped(*NOTHING_LOST), audience.heard():
            for name, recipe in chain.recipes.items():
                require_same_settings(folder / name, as_begun(recipe))
            _write(folder, chain)
            if given is not None:
                given.keep()
            for text in understood:
                notice(text)
            audience.busy("planning")
            # Before a base is in memory, as a run that is alone settles: a plan counts what the process has.
            recipes = {name: _settled(chain, name) for name in chain.recipes}
        bases = Bases()
        for number, (name, recipe) in enumerate(recipes.items(), 1):
            audience.stage(name, number, len(recipes), recipe)
            result = carry_out(recipe, audience, load=bases)
            bases.release()
            storage.replace(folder / "report.html", chain_report(folder).encode())
            yield result


class Bases:
    """Loads the base of a recipe; the one that it loaded last, if that is the same."""

    def __init__(self) -> None:
        self.base: Base | None = None
        self._loaded: Any = None
        self._template: Any = None

    def __call__(self, recipe: Recipe) -> Base:
        """Return the base of a recipe, without adapters."""
        task = task_of(recipe, config_of(recipe))
        wanted = (recipe.model, recipe.quant, recipe.group_size, recipe.dtype, task)
        if self.base is None or recipe.fresh or self._loaded != wanted:
            self.base = None
            _collect()  # before the next one is read: both may not fit into memory
            self.base, self._loaded = load_base(recipe), wanted
            self._template = getattr(self.base.tokenizer, "chat_template", None)
        elif self.base.tokenizer is not None:
            self.base.tokenizer.chat_template = self._template  # a run gives it the one of its rows
        return self.base

    def release(self) -> None:
        """Take off what a run has left on the base, and free its memory."""
        if self.base is not None:
            for name in list(self.base.adapters):
                self.base.detach(name)
            self.base.compile(False)
        _collect()


def _settled(chain: Chain, name: str) -> Recipe:
    """Return a stage's recipe with what its `auto` settings come to here."""
    known = settled(as_begun(chain.before(name)))
    recipe = chain.recipes[name]
    again = known.train.gradient_checkpointing
    train = recipe.train.model_copy(update={"gradient_checkpointing": again})
    return recipe.model_copy(update={"dtype": known.dtype, "train": train})


def _write(folder: Path, chain: Chain) -> None:
    """Write the recipe of a chain into its folder. Raises CheckpointError in the folder of one run."""
    file = folder / "recipe.yaml"
    if file.exists() and not stages_in(folder):
        raise CheckpointError(
            f"{folder} holds a run of one stage", "a new folder, or that of a chain", "choose another output"
        )
    storage.replace(file, chain.yaml().encode())


def _collect() -> None:
    """Free memory that nothing refers to any longer."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
