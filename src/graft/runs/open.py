"""Open anything that a command accepts (run, adapter, model, hub id, "seedling") as a ready base."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft import seedling, storage
from graft.base.base import Base
from graft.core.positions import context_length
from graft.data.templates import Prompt
from graft.errors import AdapterError, CheckpointError, UsageError, notice
from graft.evaluate import answers
from graft.models.dtype import AUTO
from graft.models.files import read_config
from graft.models.load import DTYPES, load
from graft.models.tokenizer import tokenizer_in
from graft.planning.fit import require_tokenizer
from graft.recipe import Recipe, read
from graft.recipe.chain import last_finished
from graft.runs.build import load_base
from graft.runs.identity import require_same_base, require_same_settings
from graft.shipping.provenance import whereabouts
from graft.stages.stage import stage_of


@dataclass
class Opened:
    """A base that is ready to answer.

    adapter: the name of the one that answers, None for the bare base.
    recipe, folder: of the run, if it is one.
    by_template: prompts go through the chat template.
    """

    base: Base
    adapter: str | None = None
    recipe: Recipe | None = None
    folder: Path | None = None
    by_template: bool = False

    def ask(self, prompts: Sequence[Prompt], **how: Any) -> list[str]:
        """Return answers to prompts; plain texts are asked as in training.

        how: keywords of `Base.generate`.
        """
        return reply(self.base, [self.prompt(prompt) for prompt in prompts], self.adapter, **how)

    def prompt(self, asked: Prompt) -> Prompt:
        """Return what is asked as a prompt for `Base.generate`.

        A text becomes a conversation of one turn where prompts go through the chat template.
        """
        chat = self.by_template and isinstance(asked, str)
        return [{"role": "user", "content": asked}] if chat else asked

    def context(self) -> int | None:
        """Return how many tokens a prompt and its answer have room for; None without a limit."""
        limit = None if self.base.family == "seq2seq" else context_length(self.base.model.config)
        return None if limit is None else limit - self.base.positions([self.adapter])


def last_words(prompt: Prompt) -> str:
    """Return what a prompt says last: its text, or that of the last turn."""
    if isinstance(prompt, str):
        return prompt
    turns = prompt["messages"] if isinstance(prompt, dict) else prompt
    return str(turns[-1]["content"])


def reply(base: Base, prompts: Sequence[Prompt], adapter: str | None, **how: Any) -> list[str]:
    """Return what the model writes to each prompt, or what an adapter's task head predicts for each text.

    prompts: texts or conversations, see `Opened.prompt`.  how: keywords of `Base.generate`.
    """
    require_tokenizer(base.tokenizer, base.name, base.vocabulary)
    if adapter is None or base.adapters[adapter].head is None:
        return base.generate(prompts, adapters=[adapter] * len(prompts), **how)
    texts = [last_words(prompt) for prompt in prompts]
    return answers(base, texts, [adapter] * len(texts))


def open_model(
    name: str, adapters: Sequence[str] = (), quant: str | None = None, dtype: str | None = None
) -> Opened:
    """Open a run's folder (with its adapter), an adapter's folder (with its base), or a model.

    Of a folder with the stages of a chain, the last one that has finished is opened.
    adapters: folders, or NAME=FOLDER; the last one answers.
    quant: how to store the base; by default as in the run.
    dtype: in which it computes; by default as in the run, or as this machine is fastest.
    Raises UsageError for a run without an adapter, or an adapter that names no base.
    """
    if (stage := last_finished(name)) != name:
        notice(f"{name} has several stages: {Path(stage).name} is the last that has finished")
        name = stage
    folder = Path(name)
    if (folder / "recipe.yaml").exists() and not (folder / "config.json").exists():
        opened = _open_run(folder, quant, dtype)
    elif (folder / "adapter_config.json").exists():
        storage.require_unchanged(folder, AdapterError)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = _base_of(folder, config.get("base_model_name_or_path"))
        if not base:
            raise UsageError(
                f"{name} names no base", "an adapter that names one", f"give the base, and --adapter {name}"
            )
        opened = Opened(load(str(base), quant=quant, dtype=dtype or AUTO))
        adapters = [*adapters, name]
    else:
        opened = Opened(load(name, quant=quant, dtype=dtype or AUTO))
    for word in adapters:
        label, _, path = word.rpartition("=")
        path = last_finished(path)
        if (Path(path) / "adapter").is_dir():  # a run's folder
            path = str(Path(path) / "adapter")
        label = label or adapter_name(Path(path))
        opened.base.load_adapter(path, label)
        opened.adapter = label
    if opened.recipe is None:
        opened.by_template = bool(getattr(opened.base.tokenizer, "chat_template", None))
    return opened


def _base_of(folder: Path, name: Any) -> str | None:
    """Return where the base of an adapter is: by the name in its settings, or the way in its certificate."""
    if not name or Path(name).exists():
        return str(name) if name else None
    try:
        facts = json.loads((folder / storage.CERTIFICATE).read_text(encoding="utf-8"))["base"]
        return whereabouts({"name": name, "path": facts.get("path")}, folder)
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return str(name)


def adapter_name(folder: Path) -> str:
    """Return a name for an adapter: its folder's, or its run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "adapter" else folder.name


def _open_run(folder: Path, quant: str | None, dtype: str | None) -> Opened:
    """Open a run's folder. Raises UsageError if the run has not finished."""
    recipe = read(folder)
    if not (folder / "adapter" / "adapter_config.json").exists():
        raise UsageError(
            f"{folder} has no adapter yet", "a run that has finished", f"continue it: graft train {folder}"
        )
    try:
        require_same_settings(folder, recipe)
    except CheckpointError as error:
        notice(f"{folder / 'recipe.yaml'} was changed after the run began: {error.given}")
    by_template = asks_by_template(folder, recipe)
    if dtype is not None:
        recipe = recipe.model_copy(update={"dtype": dtype})
    if recipe.fresh:
        base = load(folder / "model", quant=quant, dtype=recipe.dtype)
        return Opened(base, None, recipe, folder, by_template)
    base = load_base(recipe, quant)
    require_same_base(folder, base)
    name = folder.resolve().name
    base.load_adapter(folder / "adapter", name)
    if (folder / "adapter" / "tokenizer_config.json").exists():
        base.tokenizer = tokenizer_in(folder / "adapter")  # with the template of training
    return Opened(base, name, recipe, folder, by_template)


def asks_by_template(folder: Path, recipe: Recipe) -> bool:
    """Return whether a run asks by the chat template: as its data report says, else as its rows do."""
    try:
        recorded = storage.read_json(folder / "data_report.json")["asks_by_template"]
        if isinstance(recorded, bool):
            return recorded
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        pass
    notice(
        f"{folder / 'data_report.json'} is missing or damaged: the rows tell whether to ask by the chat "
        f"template; graft train {folder} writes it anew"
    )
    return stage_of(recipe).asks_by_template(seedling.located(recipe.data))


def base_as_stored(name: str) -> Base:
    """Load a base in the dtype of its file: rounding would look like a change of the weights."""
    stored = read_config(name).dtype
    return load(name, "none", dtype=next((word for word, dtype in DTYPES.items() if dtype == stored), "fp32"))
