"""Many adapters on one base: find them in folders, load the base that all of them name, and them on it.

A folder holds adapters and runs, each under the name of its own folder. Only those that are asked are loaded.
How a run is asked, by which template and with which tokenizer, is as it was trained.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft import storage
from graft.base.base import Base
from graft.errors import GraftError, UsageError, listed, notice
from graft.models.load import load
from graft.models.tokenizer import tokenizer_in
from graft.recipe import Recipe, read
from graft.recipe.chain import last_finished
from graft.runs.build import load_base
from graft.runs.identity import require_same_base
from graft.runs.open import adapter_name, asks_by_template

CONFIG = "adapter_config.json"
# Files of an adapter's folder that no tokenizer reads.
OTHERS = ("adapter_config.json", "adapter_model.safetensors", storage.MANIFEST, "README.md")


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter in a folder, before it is loaded.

    folder: with its files.  model: the base that it names, None if it names none.
    run, recipe: of the run that trained it, if the folder is that of a run.
    """

    folder: Path
    model: str | None
    run: Path | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Voice:
    """How an adapter, or the bare base, is asked.

    tokenizer: with the chat template of training.  by_template: texts become conversations of one turn.
    """

    tokenizer: Any
    by_template: bool


def adapters_in(folders: Iterable[str | Path]) -> dict[str, FoundAdapter]:
    """Return the adapters in these folders, by name; a folder may also be one itself.

    Raises UsageError for a folder without any, and for two of one name.
    """
    found: dict[str, FoundAdapter] = {}
    for folder in map(Path, folders):
        own = _adapter(folder) if folder.is_dir() else None
        children = [] if own else sorted(folder.iterdir()) if folder.is_dir() else []
        named = {adapter_name(folder): own} if own else {child.name: _adapter(child) for child in children}
        here = {name: adapter for name, adapter in named.items() if adapter is not None}
        if not here:
            raise UsageError(
                f"{folder} has no adapter in it",
                "a folder of adapters (each with adapter_config.json) or of finished runs",
                "check the path; `graft runs` lists the runs in a folder",
            )
        if both := here.keys() & found.keys():
            raise UsageError(
                f"two adapters are called {sorted(both)[0]}", "one of each name", "rename one of the folders"
            )
        found |= here
    return found


def _adapter(folder: Path) -> FoundAdapter | None:
    """Return the adapter that a folder is, or that its run trained; None if there is none."""
    if not folder.is_dir() or folder.name.startswith("."):
        return None
    try:
        folder = Path(last_finished(str(folder)))
    except UsageError as error:
        notice(f"{folder} is left out: {error.given}")
        return None
    run = folder if (folder / "adapter" / CONFIG).is_file() else None
    if run is None and folder.name == "adapter" and (folder.parent / "recipe.yaml").is_file():
        run = folder.parent
    if run is not None:
        return _of_run(run)
    if not (folder / CONFIG).is_file():
        if (folder / "identity.json").is_file():
            notice(f"{folder} is left out: it has no adapter yet (continue it: graft train {folder})")
        return None
    try:
        model = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, RecursionError, AttributeError):
        notice(f"{folder} is left out: its {CONFIG} cannot be read")
        return None
    return FoundAdapter(folder, str(model) if model else None)


def _of_run(run: Path) -> FoundAdapter | None:
    try:
        recipe = read(run)
    except GraftError as error:
        notice(f"{run} is left out: {error.given.splitlines()[0]}")
        return None
    if not isinstance(recipe.model, str):
        notice(f"{run} is left out: it trained a model of its own, {run / 'model'}")
        return None
    return FoundAdapter(run / "adapter", recipe.model, run, recipe)


def base_of(adapters: Mapping[str, FoundAdapter], model: str | None = None, quant: str | None = None) -> Base:
    """Load the base of adapters.

    model: instead of the one that they name.  quant: how to store it; by default as in their runs.
    Raises UsageError if they name none, or several, or if their runs stored it in different ways.
    """
    if model is None:
        named: dict[str, list[str]] = {}
        for name, adapter in adapters.items():
            if adapter.model is not None:
                known = Path(adapter.model).expanduser()
                place = str(known.resolve()) if known.exists() else adapter.model
                named.setdefault(place, []).append(name)
        if len(named) != 1:
            told = "; ".join(f"{place}: {listed(names, 2)}" for place, names in named.items())
            raise UsageError(
                f"the adapters name {len(named)} bases{told and f' ({told})'}",
                "one base for all",
                "name it with --model"
                if not named
                else "ask those of each base by themselves, or give --model",
            )
        model = next(adapter.model for adapter in adapters.values() if adapter.model is not None)
    recipes = [adapter.recipe for adapter in adapters.values() if adapter.recipe is not None]
    stored = {(recipe.quant, recipe.group_size) for recipe in recipes}
    if quant is None and len(stored) > 1:
        told = listed(sorted({way for way, _ in stored}))
        raise UsageError(
            f"the adapters were trained on a base that is stored as {told}",
            "one way",
            "choose it with --quant",
        )
    if recipes:
        return load_base(recipes[0].model_copy(update={"model": model}), quant)
    return load(model, quant=quant)


def voices_on(
    base: Base, adapters: Mapping[str, FoundAdapter], names: Sequence[str | None], *, raw: bool
) -> dict[str | None, Voice]:
    """Load these adapters onto their base, and return how each of them is asked.

    raw: texts are continued as they are.
    Raises AdapterError for one that does not fit the base, or was trained on another.
    """
    own = base.tokenizer
    tokenizers: dict[str, Any] = {}
    voices: dict[str | None, Voice] = {}
    for name in names:
        tokenizer, by_template = own, bool(getattr(own, "chat_template", None))
        if name is not None:
            adapter = adapters[name]
            if adapter.run is not None and adapter.recipe is not None:
                require_same_base(adapter.run, base)
                by_template = asks_by_template(adapter.run, adapter.recipe)
                if (adapter.folder / "tokenizer_config.json").is_file():
                    tokenizer = _tokenizer(adapter.folder, tokenizers)
            base.load_adapter(adapter.folder, name)
        voices[name] = Voice(tokenizer, by_template and not raw)
    return voices


def _tokenizer(folder: Path, known: dict[str, Any]) -> Any:
    """Return the tokenizer in an adapter's folder; those with equal files are one.  known: by their files."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name not in OTHERS)
    key = " ".join(f"{file.name} {storage.known_digest(file)}" for file in files)
    if key not in known:
        known[key] = tokenizer_in(folder)
    return known[key]
