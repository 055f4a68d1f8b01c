"""Recipes of several stages: a chain of ordinary runs on one base, each in a folder of its own.

    stages:
      - sft                                                 the stage sft, in OUTPUT/sft
      - {name: first, stage: reward, train: {lr: 1.0e-3}}   any keys of a recipe, in OUTPUT/first

The other keys of the file are shared: each stage has them, changed by its own. What is handed on, where a
stage does not say it itself:

    adapter   from the last stage before it whose model writes text; `adapter: null` trains a new one
    rewards   of a stage that needs them: the adapter of the last stage `reward` before it
    model     where an earlier stage trained the same one from random weights: the model it became

A stage's `adapter` and `rewards` may name an earlier stage instead of a folder. Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.errors import UsageError
from graft.recipe import Recipe, refusal, text_of
from graft.recipe.chain_reader import NAME, Reader
from graft.recipe.settings import Settings
from graft.recipe.text import emit, inline, read_text
from graft.recipe.tree import explain


@dataclass(frozen=True)
class Chain:
    """A recipe of several stages.

    output: the folder of all.  recipes: of the stages by name, in their order; each is an ordinary one.
    shared, entries: the settings as they are written: those of all stages, and each stage's own.
    adapters, models: of a stage, the earlier one whose adapter it goes on from, or whose model it takes.
    """

    output: str
    recipes: Mapping[str, Recipe]
    shared: Settings
    entries: list[Settings]
    adapters: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)

    def before(self, name: str) -> Recipe:
        """Return a stage's recipe as it can be planned before any stage has run.

        It has the methods and the model's configuration of the stages that it goes on from.
        """
        recipe = self.recipes[name]
        if name in self.models:
            recipe = recipe.model_copy(update={"model": self.recipes[self.models[name]].model})
        if name in self.adapters:
            method = self.before(self.adapters[name]).method
            recipe = recipe.model_copy(update={"adapter": None, "method": method})
        return recipe

    def yaml(self) -> str:
        """Write the chain as YAML: what is shared, each key with its help, then a line for each stage.

        Reading it back gives an equal chain.
        """
        lines = [f"  - {inline(entry)}\n" for entry in self.entries]
        return emit(self.shared, explain()) + "stages:\n" + "".join(lines)

    def documents(self) -> str:
        """Write the whole recipe of every stage, as one YAML document each."""
        count = len(self.recipes)
        return "\n".join(
            f"--- # stage {number} of {count}: {name}\n{recipe.yaml()}"
            for number, (name, recipe) in enumerate(self.recipes.items(), 1)
        )


def read_chain(
    source: str | Path | Settings | Recipe | Chain,
    overrides: Iterable[str] = (),
    notices: list[str] | None = None,
) -> Chain | None:
    """Read a recipe of several stages; return None for a recipe of one.

    source, notices: as for `graft.recipe.read`.
    overrides: `key=value` words that change what is shared, `NAME.key=value` what one stage has of its own.
    Raises UsageError, which lists everything that is wrong in all stages at once.
    """
    overrides = list(overrides)
    if isinstance(source, Recipe) or (isinstance(source, Chain) and not overrides):
        return None if isinstance(source, Recipe) else source
    if isinstance(source, Chain):
        source = {**source.shared, "stages": source.entries}
    where, text = text_of(source)
    if "stages" not in text.settings:
        return None
    usual = "runs/latest" if isinstance(source, dict) else f"runs/{Path(where).stem}"
    reader = Reader(text.settings, usual, [] if notices is None else notices)
    reader.read(overrides)
    if reader.problems:
        raise refusal(where, reader.problems, reader.located(text.lines))
    entries = [{"name": stage.name, **stage.own} for stage in reader.stages]
    shared = reader.shared
    return Chain(str(shared["output"]), reader.recipes, shared, entries, reader.adapters, reader.models)


def stages_in(folder: Path) -> list[Path]:
    """Return the folders of the stages of a chain's folder; none for any other folder.

    Raises UsageError for a recipe that cannot be read, or whose stages have no names.
    """
    file = folder / "recipe.yaml"
    entries = read_text(file).settings.get("stages") if file.is_file() else None
    if not isinstance(entries, list):
        return []
    return [folder / _stage_name(entry, file) for entry in entries]


def _stage_name(entry: Any, file: Path) -> str:
    name = entry.get("name") if isinstance(entry, dict) else entry
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(
            f"{file} has a stage without a name ({inline(name)})",
            "the recipe of a chain as a run writes it",
            "name the folder of a stage instead",
        )
    return name


def last_finished(name: str) -> str:
    """Return the folder of the last finished stage of a chain's folder; anything else as it is.

    Raises UsageError if no stage has finished.
    """
    folders = stages_in(Path(name))
    done = [folder for folder in folders if (folder / "finished.json").exists()]
    if folders and not done:
        given = f"none of the stages in {name} has finished"
        raise UsageError(given, "a run that has finished", f"continue them: graft train {name}")
    return str(done[-1]) if done else name
